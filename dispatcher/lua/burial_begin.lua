-- Keep a node from taking its lease while a janitor cleans up behind it, under the janitor's lock.
--
-- KEYS  the lock, the lease, burial
-- ARGV  the lock's token, life of the mark in ms
-- Gives 1; 0 when the node has a lease; -1 when the lock is another's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[2])
return 1
