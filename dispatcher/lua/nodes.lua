-- The leases of the nodes that live. A nodeId without one is taken out of the set: its node died, and puts itself in
-- again should it come back.
--
-- KEYS  the set of nodeIds
-- ARGV  what stands before a nodeId in the key of its lease (the same partition tag as the set's)
-- Gives nodeId, lease (JSON), nodeId, lease, ...
local answer = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local lease = redis.call('GET', ARGV[1] .. id)
  if lease then
    answer[#answer + 1] = id
    answer[#answer + 1] = lease
  else
    redis.call('SREM', KEYS[1], id)
  end
end
return answer
