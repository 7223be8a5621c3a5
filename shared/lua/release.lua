-- Give a lease back, if this epoch holds it.
--
-- KEYS  the lease, the set of nodeIds
-- ARGV  nodeId, epoch
local held = redis.call('GET', KEYS[1])
if held and cjson.decode(held).epoch == ARGV[2] then
  redis.call('DEL', KEYS[1])
  redis.call('SREM', KEYS[2], ARGV[1])
  return 1
end
return 0
