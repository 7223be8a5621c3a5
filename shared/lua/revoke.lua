-- Revoke the tokens of a client that were issued before now. May be run again: then `now` is later.
--
-- KEYS  route, revoked
-- ARGV  seconds for which it is remembered
-- Gives the second before which tokens are refused from now on, and the route as it is: sessionId, epoch, ... Whoever
-- registers later is refused by register.lua.
local before = math.max(tonumber(redis.call('TIME')[1]), tonumber(redis.call('GET', KEYS[2]) or '0'))
redis.call('SET', KEYS[2], string.format('%.0f', before), 'EX', ARGV[1])
return { before, redis.call('HGETALL', KEYS[1]) }
