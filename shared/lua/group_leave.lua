-- Take clients out of a group's members: the first step of leaving.
--
-- KEYS  about, members
-- ARGV  clientIds
-- Gives per client 1: it was a member, else 0; nil when there is no group.
if redis.call('HEXISTS', KEYS[1], 'created') == 0 then
  return false
end
local answers = {}
for i = 1, #ARGV do
  answers[i] = redis.call('SREM', KEYS[2], ARGV[i])
end
return answers
