-- Whom a broadcast has not reached so far.
--
-- KEYS  reached
-- ARGV  clientIds
-- Gives those of them.
local fresh = {}
for i = 1, #ARGV do
  if redis.call('SISMEMBER', KEYS[1], ARGV[i]) == 0 then
    fresh[#fresh + 1] = ARGV[i]
  end
end
return fresh
