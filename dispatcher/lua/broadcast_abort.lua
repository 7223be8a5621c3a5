-- Abort a broadcast: its runner sees it after the page it is at.
--
-- KEYS  broadcast, running, reached
-- ARGV  broadcastId, a word for this call alone, now (epoch ms), ms to keep it
-- Gives 1; 0 when it has ended; nil when there is none.
local state, by = unpack(redis.call('HMGET', KEYS[1], 'state', 'aborted'))
if not state then
  return false
end
if state ~= 'running' then
  return by == ARGV[2] and 1 or 0
end
redis.call('HSET', KEYS[1], 'state', 'aborted', 'aborted', ARGV[2], 'ended', ARGV[3])
redis.call('HDEL', KEYS[1], 'msg')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3])
return 1
