-- Remove sessions from routes. A sessionId is never used again, so this can only ever hit that session. Who removes
-- the session of another names the epoch he knows it with: its node may have come back and registered it anew.
--
-- KEYS  per session: route, device
-- ARGV  per session: sessionId, epoch ('': whichever)
-- Gives per session 1 when it was removed, else 0.
local answers = {}
for i = 1, #KEYS / 2 do
  local route, device_key, session_id, epoch = KEYS[2 * i - 1], KEYS[2 * i], ARGV[2 * i - 1], ARGV[2 * i]
  local held = redis.call('HGET', route, session_id)
  answers[i] = 0
  if held and (epoch == '' or held == epoch) then
    redis.call('HDEL', route, session_id)
    answers[i] = 1
  end
  if not held or answers[i] == 1 then
    local node_id = string.match(session_id, '^[^_]*')
    redis.call('SREM', string.match(route, '^[^}]*}:') .. 'at:' .. node_id, session_id)
    local devices = redis.call('HGETALL', device_key)
    for j = 1, #devices, 2 do
      if devices[j + 1] == session_id then
        redis.call('HDEL', device_key, devices[j])
      end
    end
  end
end
return answers
