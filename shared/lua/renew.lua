-- Renew or take a node's lease.
--
-- KEYS  the lease, the set of nodeIds
-- ARGV  nodeId, epoch, life in ms, the lease as JSON
-- Gives 1 when this epoch held the lease until now; 0 when it did not (first time, lapsed, or Redis lost it): then
-- the node's sessions must be registered again.
local held = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1])
if held and cjson.decode(held).epoch == ARGV[2] then
  return 1
end
return 0
