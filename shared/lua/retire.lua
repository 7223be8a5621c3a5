-- Retire acknowledged messages.
--
-- KEYS  per message: inbox
-- ARGV  per message: its id
-- Gives the number of messages that were there.
local retired = 0
for i = 1, #KEYS do
  local inbox, id = KEYS[i], ARGV[i]
  if redis.call('HLEN', inbox) == 2 then -- one message and the count of bytes: what nearly all inboxes hold
    if redis.call('HEXISTS', inbox, id) == 1 then
      redis.call('DEL', inbox)
      retired = retired + 1
    end
  else
    local bytes = redis.call('HSTRLEN', inbox, id)
    if bytes > 0 then
      redis.call('HDEL', inbox, id)
      redis.call('HINCRBY', inbox, '#', -bytes)
      retired = retired + 1
    end
  end
end
return retired
