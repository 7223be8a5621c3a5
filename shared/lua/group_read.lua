-- What is known of a group.
--
-- KEYS  about, members
-- ARGV  none, or a name: the group is called so from now on
-- Gives created (epoch ms), name, owner, how many members, the order of the newest message; nil when there is no group.
local about = KEYS[1]
if redis.call('HEXISTS', about, 'created') == 0 then
  return false
end
if ARGV[1] then
  redis.call('HSET', about, 'name', ARGV[1])
end
local held = redis.call('HMGET', about, 'created', 'name', 'owner', 'last')
return { held[1], held[2], held[3], redis.call('SCARD', KEYS[2]), held[4] or '0000000000000000' }
