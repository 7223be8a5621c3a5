-- How much is in the outbox, and its oldest entries.
--
-- KEYS  the outbox, its bytes
-- ARGV  most entries and most bytes to give (at least one entry, unless most entries is 0)
-- Gives the number of entries and of bytes in all, then per entry: id, topic, lines.
local answer = { redis.call('XLEN', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or '0') }
if tonumber(ARGV[1]) > 0 then
  local bytes = 0
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])) do
    bytes = bytes + #entry[2][4]
    if #answer > 2 and bytes > tonumber(ARGV[2]) then
      break
    end
    answer[#answer + 1] = entry[1]
    answer[#answer + 1] = entry[2][2]
    answer[#answer + 1] = entry[2][4]
  end
end
return answer
