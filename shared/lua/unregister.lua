-- Remove sessions from routes. A sessionId is never used again, so removing by it can only ever hit that session.
--
-- KEYS  per session: route
-- ARGV  per session: sessionId
for i = 1, #KEYS do
  redis.call('HDEL', KEYS[i], ARGV[i])
end
return #KEYS
