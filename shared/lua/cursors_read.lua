-- The audiences of clients.
--
-- KEYS  per client: its audiences
-- Gives per client: audience, cursor, ...; among them `#`, how often its memberships have changed.
local answers = {}
for i = 1, #KEYS do
  answers[i] = redis.call('HGETALL', KEYS[i])
end
return answers
