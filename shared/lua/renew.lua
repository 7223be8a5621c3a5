-- Renew a node's lease, or take it.
--
-- KEYS  the lease, the set of nodeIds, starts, burial, drain, store
-- ARGV  nodeId, epoch, life in ms, the lease as JSON, take (0, 1)
-- Gives a state, the request to drain ('' without one), and a word that stays the same for as long as Redis keeps its
-- data.
--    1 held   0 this epoch does not hold the lease, and nothing was done: it is to be taken with a new epoch
--   -1 a janitor is cleaning up behind the node's last start: come again
local held = redis.call('GET', KEYS[1])
local mine = held and cjson.decode(held).epoch == ARGV[2]
if not mine then
  if redis.call('EXISTS', KEYS[4]) == 1 then
    return { -1, '', '' }
  end
  if ARGV[5] == '0' then
    return { 0, '', '' }
  end
end
local time = redis.call('TIME')
local ends = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], ends, ARGV[1] .. ' ' .. ARGV[2])
redis.call('SETNX', KEYS[6], ARGV[2])
return { 1, redis.call('GET', KEYS[5]) or '', redis.call('GET', KEYS[6]) }
