-- Take a request to drain back, unless a signal has the node drain.
--
-- KEYS  the lease, drain
-- Gives nil when the node has no lease, else the lease and 1, or 0 when there was nothing to take back.
local held = redis.call('GET', KEYS[1])
if not held then
  return nil
end
local drain = cjson.decode(held).drain
if type(drain) == 'table' and drain.by == 'signal' then
  return { held, 0 }
end
return { held, redis.call('DEL', KEYS[2]) }
