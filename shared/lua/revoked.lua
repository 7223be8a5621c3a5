-- Which tokens are revoked.
--
-- KEYS  per token: revoked
-- ARGV  per token: when it was issued (s, 0: not said)
-- Gives per token 1 when it is, else 0.
local answers = {}
for i = 1, #KEYS do
  local before = redis.call('GET', KEYS[i])
  answers[i] = before and tonumber(ARGV[i]) < tonumber(before) and 1 or 0
end
return answers
