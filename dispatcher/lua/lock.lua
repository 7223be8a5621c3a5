-- Take a lock, or keep it.
--
-- KEYS  lock, fence
-- ARGV  the token it is held with (0: not held), life in ms
-- Gives the token, 0 when another holds it. The token counts up with each holder, so that a script which compares it
-- with the lock's value does nothing for one whose time has run out.
local held = redis.call('GET', KEYS[1])
if held then
  if held ~= ARGV[1] then
    return 0
  end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return tonumber(held)
end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token, 'PX', ARGV[2])
return token
