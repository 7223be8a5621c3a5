-- Take entries out of the outbox that were published, under the lock.
--
-- KEYS  the outbox, its bytes, the lock
-- ARGV  the lock's token, ids
-- Gives how many were there, -1 when the lock is another's.
if redis.call('GET', KEYS[3]) ~= ARGV[1] then
  return -1
end
local removed, freed = 0, 0
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if entry then
    freed = freed + #entry[2][4]
    removed = removed + redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
if redis.call('XLEN', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[1], KEYS[2])
else
  redis.call('DECRBY', KEYS[2], freed)
end
return removed
