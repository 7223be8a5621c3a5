-- The nodes that clients were on last.
--
-- KEYS  per client: last
-- ARGV  per client: when the token that it asks with was issued (s, 0: not said; '': a business system asks)
-- Gives per client a nodeId or false; -1 when the token was revoked.
local answer = {}
for i = 1, #KEYS do
  local before = ARGV[i] ~= '' and redis.call('GET', (string.gsub(KEYS[i], '}:last:', '}:revoked:', 1)))
  if before and tonumber(ARGV[i]) < tonumber(before) then
    answer[i] = -1
  else
    answer[i] = redis.call('GET', KEYS[i])
  end
end
return answer
