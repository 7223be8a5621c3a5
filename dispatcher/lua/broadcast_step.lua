-- A page of a broadcast was sent: count it, and remember where the next one begins. Under the broadcast's lock.
--
-- KEYS  broadcast, running, the lock, reached
-- ARGV  the lock's token, broadcastId, number of the page (from 1), where the next one begins, online, offline,
--       failed, what it is from now on ('': it goes on), now (epoch ms), ms to keep it when it ends, whether those who
--       were reached before are forgotten (0, 1), clientIds to be remembered as reached
-- Gives its state; nil when the lock is another's, or nothing is known of it. A page counts once, also one that was
-- sent while the broadcast was aborted.
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return false
end
local state, pages = unpack(redis.call('HMGET', KEYS[1], 'state', 'pages'))
if not state then
  return false
end
if tonumber(pages) + 1 == tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], 'pages', ARGV[3], 'place', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'online', ARGV[5])
  redis.call('HINCRBY', KEYS[1], 'offline', ARGV[6])
  redis.call('HINCRBY', KEYS[1], 'failed', ARGV[7])
end
if state ~= 'running' then
  return state
end
if ARGV[8] ~= '' then
  redis.call('HSET', KEYS[1], 'state', ARGV[8], 'ended', ARGV[9])
  redis.call('HDEL', KEYS[1], 'msg')
  redis.call('PEXPIRE', KEYS[1], ARGV[10])
  redis.call('SREM', KEYS[2], ARGV[2])
  redis.call('DEL', KEYS[4])
  return ARGV[8]
end
if ARGV[11] == '1' then
  redis.call('DEL', KEYS[4])
end
for i = 12, #ARGV do
  redis.call('SADD', KEYS[4], ARGV[i])
end
if #ARGV > 11 then
  redis.call('PEXPIRE', KEYS[4], redis.call('PTTL', KEYS[1]))
end
return state
