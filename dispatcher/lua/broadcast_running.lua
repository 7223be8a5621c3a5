-- The broadcasts that run. One whose time was over long ago, and that nobody ended, is forgotten.
--
-- KEYS  running
-- ARGV  what stands before a broadcastId in its key (the same partition tag)
local answer = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if redis.call('EXISTS', ARGV[1] .. id) == 1 then
    answer[#answer + 1] = id
  else
    redis.call('SREM', KEYS[1], id)
  end
end
return answer
