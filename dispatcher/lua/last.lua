-- The nodes that clients were on last.
--
-- KEYS  per client: last
-- Gives per client a nodeId or false.
local answer = {}
for i = 1, #KEYS do
  answer[i] = redis.call('GET', KEYS[i])
end
return answer
