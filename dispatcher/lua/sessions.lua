-- The sessions of clients, with the devices that they named.
--
-- KEYS  per client: route, device-of
-- Gives per client a list: sessionId, epoch, device ('': none), ...
local answers = {}
for i = 1, #KEYS / 2 do
  local route = redis.call('HGETALL', KEYS[2 * i - 1])
  local devices = {}
  if #route > 0 then
    local named = redis.call('HGETALL', KEYS[2 * i])
    for j = 1, #named, 2 do
      devices[named[j]] = named[j + 1]
    end
  end
  local answer = {}
  for j = 1, #route, 2 do
    local n = #answer
    answer[n + 1], answer[n + 2], answer[n + 3] = route[j], route[j + 1], devices[route[j]] or ''
  end
  answers[i] = answer
end
return answers
