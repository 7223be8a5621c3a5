-- Take clients into a group's members: the first step of joining.
--
-- KEYS  about, members
-- ARGV  most members; clientIds
-- Gives the order of the newest message (16 digits), then per client 1: a member from now on, 0: it was one, -1: the
-- group is full; nil when there is no group.
local about, members, most = KEYS[1], KEYS[2], tonumber(ARGV[1])
if redis.call('HEXISTS', about, 'created') == 0 then
  return false
end
local answers = { redis.call('HGET', about, 'last') or '0000000000000000' }
local held = redis.call('SCARD', members)
for i = 2, #ARGV do
  if redis.call('SISMEMBER', members, ARGV[i]) == 1 then
    answers[i] = 0
  elseif held >= most then
    answers[i] = -1
  else
    answers[i] = redis.call('SADD', members, ARGV[i])
    held = held + 1
  end
end
return answers
