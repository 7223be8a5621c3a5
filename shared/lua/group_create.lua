-- Make a group.
--
-- KEYS  about, members
-- ARGV  name, owner, a word of this call alone
-- Gives when it was created (epoch ms), 0 when the group is there already, -1 while one of this id is being deleted.
local about, members = KEYS[1], KEYS[2]
local created = redis.call('HGET', about, 'created')
if created then
  return redis.call('HGET', about, 'call') == ARGV[3] and tonumber(created) or 0 -- asked again: the answer was lost
end
if redis.call('EXISTS', about, members) > 0 then
  return -1
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', about, 'name', ARGV[1], 'owner', ARGV[2], 'created', string.format('%.0f', now_ms), 'call', ARGV[3])
return now_ms
