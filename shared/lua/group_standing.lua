-- Whether clients are members of groups.
--
-- KEYS  per question: about, members
-- ARGV  per question: clientId
-- Gives per question 0: there is no such group, 1: not a member, 2: a member.
local answers = {}
for i = 1, #ARGV do
  if redis.call('HEXISTS', KEYS[2 * i - 1], 'created') == 0 then
    answers[i] = 0
  else
    answers[i] = 1 + redis.call('SISMEMBER', KEYS[2 * i], ARGV[i])
  end
end
return answers
