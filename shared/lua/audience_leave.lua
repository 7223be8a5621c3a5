-- A node hosts no members of groups any more, as far as this epoch of it is concerned.
--
-- KEYS  per group: where
-- ARGV  per group: nodeId, epoch
-- Gives how many were there.
local left = 0
for i = 1, #KEYS do
  if redis.call('HGET', KEYS[i], ARGV[2 * i - 1]) == ARGV[2 * i] then
    left = left + redis.call('HDEL', KEYS[i], ARGV[2 * i - 1])
  end
end
return left
