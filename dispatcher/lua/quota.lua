-- Count sends against a day's quota.
--
-- KEYS  per send: the day's counter
-- ARGV  life of a counter in s; per send: the quota
-- Gives per send 1 when there was room, else 0 (and it is not counted).
local answers = {}
for i = 1, #KEYS do
  if tonumber(redis.call('GET', KEYS[i]) or '0') < tonumber(ARGV[i + 1]) then
    redis.call('INCR', KEYS[i])
    redis.call('EXPIRE', KEYS[i], ARGV[1])
    answers[i] = 1
  else
    answers[i] = 0
  end
end
return answers
