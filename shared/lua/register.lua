-- Register sessions, then read their inboxes. In one script: see store.lua.
-- slice.lua and presence.lua stand before it.
--
-- KEYS  per session: route, inbox, last, device, audiences
-- ARGV  nodeId, epoch, most messages and most bytes of a slice, policy (multi, device, client), again (0, 1), most
--       sessions of a client; per session: sessionId, device, where the client's cursor for everyone begins if it has
--       none (16 digits), when its token was issued (s, 0: not said; '': it has none)
-- Gives per session a list: its slice (slice.lua); the sessions it replaced: sessionId, epoch, ...; its client's audiences:
-- audience, cursor, ...; how many it replaced since the client had too many; or instead of the slice -1 when it was to be
-- registered again and a newer session has taken its place, -2 when its token was revoked. Last in the list: what changed
-- in the route (presence.lua). A session registered again that is in the route still is no change.
--
-- A session that comes anew replaces what the policy has it replace, and the oldest ones of a client that has too many. One
-- that is registered again (its node was cut off from Redis) yields to newer ones: the stamp at the end of a sessionId
-- tells which is newer.
local node_id, epoch, most, most_bytes = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local policy, again, most_sessions = ARGV[5], ARGV[6] == '1', tonumber(ARGV[7])
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

-- The oldest others, as many as have to go so that `session_id` has room: sessionId, epoch, ... `leaving` goes anyway.
local function crowd(route, session_id, leaving)
  if redis.call('HLEN', route) - #leaving / 2 < most_sessions then
    return {}
  end
  local left = { [session_id] = true }
  for i = 1, #leaving, 2 do
    left[leaving[i]] = true
  end
  local all, others = redis.call('HGETALL', route), {}
  for i = 1, #all, 2 do
    if not left[all[i]] then
      others[#others + 1] = { stamp(all[i]) .. all[i], all[i], all[i + 1] }
    end
  end
  table.sort(others, function(one, other)
    return one[1] < other[1]
  end)
  local oldest = {}
  for i = 1, #others + 1 - most_sessions do
    oldest[#oldest + 1] = others[i][2]
    oldest[#oldest + 1] = others[i][3]
  end
  return oldest
end

-- Whether its client's tokens were revoked after this one was issued.
local function revoked(tag, client_id, issued)
  local before = issued ~= '' and redis.call('GET', tag .. 'revoked:' .. client_id)
  return before and tonumber(issued) < tonumber(before)
end

-- The session is not to be there.
local function refuse(route, session_id, why, changes)
  if redis.call('HDEL', route, session_id) == 1 then
    note(changes, route, 0, session_id)
  end
  return { why, {}, {}, 0, changes }
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

local function register(route, inbox, last, device_key, audiences, session_id, device, start, issued)
  local changes = {}
  local tag, client_id = string.match(route, '^([^}]*}:)route:(.*)$')
  if revoked(tag, client_id, issued) then
    return refuse(route, session_id, -2, changes)
  end
  local replaced = rivals(route, device_key, session_id, device)
  local crowded = crowd(route, session_id, replaced)
  if again and (yields(session_id, replaced) or yields(session_id, crowded)) then
    return refuse(route, session_id, -1, changes)
  end
  for i = 1, #crowded do
    replaced[#replaced + 1] = crowded[i]
  end
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
  local memberships = audiences_of(audiences, start)
  return { slice(inbox, most, most_bytes, now), replaced, memberships, #crowded / 2, changes }
end

local answers = {}
for i = 1, #KEYS / 5 do
  local k, a = 5 * i, 7 + 4 * i
  answers[i] = register(
    KEYS[k - 4], KEYS[k - 3], KEYS[k - 2], KEYS[k - 1], KEYS[k], ARGV[a - 3], ARGV[a - 2], ARGV[a - 1], ARGV[a]
  )
end
return answers
