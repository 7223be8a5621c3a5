-- Nothing is left of these starts of a node: forget them, under the janitor's lock. With `buried` its topic is gone,
-- too: forget the node, unless it has come back, and let it take its lease again.
--
-- KEYS  the lock, the lease, starts, burial, the set of nodeIds, drain
-- ARGV  the lock's token, nodeId, buried (0, 1), epochs
-- Gives 1; 0 when it is not buried and has no lease: its topic is still to be deleted; -1 when the lock is another's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local held = redis.call('GET', KEYS[2])
if not held and ARGV[3] == '0' then
  return 0
end
local living = held and cjson.decode(held).epoch
for i = 4, #ARGV do
  if ARGV[i] ~= living then
    redis.call('ZREM', KEYS[3], ARGV[2] .. ' ' .. ARGV[i])
  end
end
if not held then
  redis.call('DEL', KEYS[6])
  redis.call('SREM', KEYS[5], ARGV[2])
end
redis.call('DEL', KEYS[4])
return 1
