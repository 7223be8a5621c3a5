-- Remove sessions from routes. A sessionId is never used again, so this can only ever hit that session. Who removes
-- the session of another names the epoch he knows it with: its node may have come back and registered it anew.
-- presence.lua stands before it.
--
-- KEYS  per session: route, device
-- ARGV  per session: sessionId, epoch ('': whichever)
-- Gives per session a list: 1 when it was removed, else 0; and the change (presence.lua). One that its own node
-- removes is told as a change also when it was not there: an earlier answer may have been lost.
local function unregister(route, device_key, session_id, epoch)
  local changes = {}
  local held = redis.call('HGET', route, session_id)
  if held and epoch ~= '' and held ~= epoch then
    return { 0, changes }
  end
  redis.call('HDEL', route, session_id)
  redis.call('SREM', string.match(route, '^[^}]*}:') .. 'at:' .. string.match(session_id, '^[^_]*'), session_id)
  local devices = redis.call('HGETALL', device_key)
  for j = 1, #devices, 2 do
    if devices[j + 1] == session_id then
      redis.call('HDEL', device_key, devices[j])
    end
  end
  if held or epoch == '' then
    note(changes, route, 0, session_id)
  end
  return { held and 1 or 0, changes }
end

local answers = {}
for i = 1, #KEYS / 2 do
  answers[i] = unregister(KEYS[2 * i - 1], KEYS[2 * i], ARGV[2 * i - 1], ARGV[2 * i])
end
return answers
