-- Retire acknowledged messages.
--
-- KEYS  per message: inbox
-- ARGV  per message: its id
-- Gives the number of messages that were there.
local retired = 0
for i = 1, #KEYS do
  local bytes = redis.call('HSTRLEN', KEYS[i], ARGV[i])
  if bytes > 0 then
    redis.call('HDEL', KEYS[i], ARGV[i])
    if redis.call('HINCRBY', KEYS[i], '#', -bytes) == 0 then
      redis.call('DEL', KEYS[i])
    end
    retired = retired + 1
  end
end
return retired
