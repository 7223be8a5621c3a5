-- What changes in routes, with a stamp each.
--
-- note() appends to `changes`: online (1, 0), sessionId, device, stamp, sessions the client has now. The stamps of a
-- client rise strictly, whichever node asks and also when the clock steps back: the last one is kept for an hour,
-- which is longer than any step. `device_of` is kept for who asks where a client is; the route itself holds no device.
local STAMP_S = 3600
local stamp_now

local function stamp_of(tag, client_id)
  if not stamp_now then
    local time = redis.call('TIME')
    stamp_now = time[1] * 1000000 + time[2]
  end
  local key = tag .. 'stamp:' .. client_id
  local last = redis.call('GET', key)
  local stamp = last and math.max(stamp_now, tonumber(last) + 1) or stamp_now
  redis.call('SET', key, string.format('%.0f', stamp), 'EX', STAMP_S)
  return stamp
end

local function note(changes, route, online, session_id, device)
  local tag, client_id = string.match(route, '^([^}]*}:)route:(.*)$')
  local devices = tag .. 'device-of:' .. client_id
  if online == 0 then
    device = redis.call('HGET', devices, session_id) or ''
    if device ~= '' then
      redis.call('HDEL', devices, session_id)
    end
  elseif device ~= '' then
    redis.call('HSET', devices, session_id, device)
  end
  local n = #changes
  changes[n + 1], changes[n + 2], changes[n + 3] = online, session_id, device
  changes[n + 4], changes[n + 5] = stamp_of(tag, client_id), redis.call('HLEN', route)
end
