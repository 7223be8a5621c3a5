-- Ask a node to drain, under the epoch that holds its lease now: its next start on the same address is not meant.
--
-- KEYS  the lease, drain
-- ARGV  the request as JSON, for no epoch yet; how long it is kept, in s
-- Gives nil when the node has no lease, else the lease and 1, or 0 when it drains or was asked to already.
--
-- A node that was told to stop by a signal drains whatever is asked for. One whose request was taken back a moment ago
-- may still say in its lease that it drains: then there is no request, and it is asked anew.
local held = redis.call('GET', KEYS[1])
if not held then
  return nil
end
local lease = cjson.decode(held)
local by = type(lease.drain) == 'table' and lease.drain.by
local asked = redis.call('GET', KEYS[2])
if by == 'signal' or asked and (by == 'request' or cjson.decode(asked).epoch == lease.epoch) then
  return { held, 0 }
end
local request = cjson.decode(ARGV[1])
request.epoch = lease.epoch
redis.call('SET', KEYS[2], cjson.encode(request), 'EX', ARGV[2])
return { held, 1 }
