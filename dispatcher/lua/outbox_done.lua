-- Take entries out of the outbox that were published, under the lock.
--
-- KEYS  the outbox, its bytes, the lock
-- ARGV  the lock's token, ids
-- Gives the number of entries and of bytes that are left; -1, 0 when the lock is another's.
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return { -1, 0 }
end
local freed = 0
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if entry then
    freed = freed + #entry[2][4]
    redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
local left = redis.call('XLEN', KEYS[1])
if left == 0 then
  redis.call('DEL', KEYS[1], KEYS[2])
  return { 0, 0 }
end
return { left, redis.call('DECRBY', KEYS[2], freed) }
