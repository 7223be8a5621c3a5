-- The oldest entries of the outbox.
--
-- KEYS  the outbox, its bytes
-- ARGV  most entries
-- Gives the number of entries and of bytes in all, then per entry: id, topic, lines.
local answer = { redis.call('XLEN', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or '0') }
if tonumber(ARGV[1]) > 0 then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1])) do
    answer[#answer + 1] = entry[1]
    answer[#answer + 1] = entry[2][2]
    answer[#answer + 1] = entry[2][4]
  end
end
return answer
