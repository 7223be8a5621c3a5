-- Register sessions, then read their inboxes. In one script: see store.lua.
-- slice.lua and presence.lua stand before it.
--
-- KEYS  per session: route, inbox, last, device, audiences
-- ARGV  nodeId, epoch, most messages and most bytes of a slice, policy (multi, device, client), again (0, 1); per
--       session: sessionId, device, where the client's cursor for everyone begins if it has none (16 digits)
-- Gives per session a list: its slice (slice.lua); the sessions it replaced: sessionId, epoch, ...; its client's audiences:
-- audience, cursor, ...; or instead of the slice -1 when it was to be registered again and a newer session has taken its
-- place. Last in the list: what changed in the route (presence.lua). A session registered again that is in the route
-- still is no change.
--
-- A session that comes anew replaces what the policy has it replace. One that is registered again (its node was cut off
-- from Redis) yields to a newer one: the stamp at the end of a sessionId tells which is newer.
local node_id, epoch, most, most_bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local policy, again = ARGV[5], ARGV[6] == '1'
local now = now_ms()

local function stamp(session_id)
  return string.sub(session_id, -17)
end

-- The sessions that stand where `session_id` wants to: sessionId, epoch, ...
local function rivals(route, device_key, session_id, device)
  local all = {}
  if policy == 'client' then
    all = redis.call('HGETALL', route)
  elseif policy == 'device' then
    local other = redis.call('HGET', device_key, device)
    local held = other and redis.call('HGET', route, other)
    if held then
      all = { other, held }
    end
  end
  local others = {}
  for i = 1, #all, 2 do
    if all[i] ~= session_id then
      others[#others + 1] = all[i]
      others[#others + 1] = all[i + 1]
    end
  end
  return others
end

local function yields(session_id, others)
  for i = 1, #others, 2 do
    if stamp(others[i]) > stamp(session_id) then
      return true
    end
  end
  return false
end

-- Who is in no group and stays away for longer than anything is kept for him is forgotten.
local function audiences_of(audiences, start)
  redis.call('HSETNX', audiences, '*', start)
  local all = redis.call('HGETALL', audiences)
  if #all <= 4 then
    redis.call('EXPIRE', audiences, 5184000)
  end
  return all
end

local function register(route, inbox, last, device_key, audiences, session_id, device, start)
  local changes = {}
  local replaced = rivals(route, device_key, session_id, device)
  if again and yields(session_id, replaced) then
    if redis.call('HDEL', route, session_id) == 1 then
      note(changes, route, 0, session_id)
    end
    return { -1, {}, {}, changes }
  end
  local tag, client_id = string.match(route, '^([^}]*}:)route:(.*)$')
  local index = tag .. 'at:'
  for i = 1, #replaced, 2 do
    redis.call('HDEL', route, replaced[i])
    redis.call('SREM', index .. string.match(replaced[i], '^[^_]*'), replaced[i])
    note(changes, route, 0, replaced[i])
  end
  if redis.call('HSET', route, session_id, epoch) == 1 then
    note(changes, route, 1, session_id, device)
  end
  redis.call('SADD', index .. node_id, session_id)
  redis.call('SADD', tag .. 'clients', client_id)
  redis.call('SET', last, node_id, 'EX', 604800)
  if policy == 'device' then
    redis.call('HSET', device_key, device, session_id)
  end
  return { slice(inbox, most, most_bytes, now), replaced, audiences_of(audiences, start), changes }
end

local answers = {}
for i = 1, #KEYS / 5 do
  local k, a = 5 * i, 6 + 3 * i
  answers[i] = register(
    KEYS[k - 4], KEYS[k - 3], KEYS[k - 2], KEYS[k - 1], KEYS[k], ARGV[a - 2], ARGV[a - 1], ARGV[a]
  )
end
return answers
