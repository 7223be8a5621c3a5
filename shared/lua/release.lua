-- Give a lease back, if this epoch holds it. The start stays in `starts`, for a janitor, unless all is cleaned up.
--
-- KEYS  the lease, the set of nodeIds, starts, drain
-- ARGV  nodeId, epoch, clean (0, 1): nothing of the node is left
local held = redis.call('GET', KEYS[1])
if held and cjson.decode(held).epoch == ARGV[2] then
  redis.call('DEL', KEYS[1], KEYS[4])
  redis.call('SREM', KEYS[2], ARGV[1])
end
if ARGV[3] == '1' then
  redis.call('ZREM', KEYS[3], ARGV[1] .. ' ' .. ARGV[2])
end
return 1
