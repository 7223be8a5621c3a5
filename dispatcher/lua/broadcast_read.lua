-- Some fields of a broadcast; nil when there is none.
--
-- KEYS  broadcast
-- ARGV  fields
return redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HMGET', KEYS[1], unpack(ARGV))
