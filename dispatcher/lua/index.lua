-- A slice of the index of a node's sessions.
--
-- KEYS  the index
-- ARGV  cursor ('0': the first slice), about how many
-- Gives the next cursor ('0': this was the last slice) and the sessionIds; one may come twice.
return redis.call('SSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
