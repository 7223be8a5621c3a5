-- A page of the clients that are known in a partition. page.lua stands before it.
--
-- KEYS  clients
-- ARGV  where the scan goes on (0: at the beginning), how many, the clientId behind which it goes on ('': none)
-- Gives where the next page begins ('': this is the last), behind which clientId, then the clients. One that has
-- neither audiences any more nor a session is forgotten.
local tag = string.match(KEYS[1], '^[^}]*}:')
local cursor, last, page = page_of(KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3])
local answer = { cursor, last }
for i = 1, #page do
  if redis.call('EXISTS', tag .. 'audiences:' .. page[i], tag .. 'route:' .. page[i]) > 0 then
    answer[#answer + 1] = page[i]
  else
    redis.call('SREM', KEYS[1], page[i])
  end
end
return answer
