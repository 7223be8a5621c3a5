-- Begin a broadcast.
--
-- KEYS  broadcast, all, running, the broadcast of the requestId, the fence of its lock
-- ARGV  broadcastId, fingerprint, whether it has a requestId (0, 1), ms to keep it, most that run, field, value, ...
-- Gives 1 and its id; 0 and the id of the one that this requestId has begun before; -1: that is another one; -2: too
-- many run.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return { 1, ARGV[1] }
end
local other = ARGV[3] == '1' and redis.call('GET', KEYS[4])
local held = other and redis.call('HGET', string.match(KEYS[1], '^(.*:)') .. other, 'fingerprint')
if held then
  return held == ARGV[2] and { 0, other } or { -1 }
end
if redis.call('SCARD', KEYS[3]) >= tonumber(ARGV[5]) then
  return { -2 }
end
redis.call('HSET', KEYS[1], 'fingerprint', ARGV[2], unpack(ARGV, 6))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
if ARGV[3] == '1' then
  redis.call('SET', KEYS[4], ARGV[1], 'PX', ARGV[4])
end
redis.call('SET', KEYS[5], 0, 'PX', ARGV[4])
return { 1, ARGV[1] }
