-- A burial was broken off: let the node take its lease again.
--
-- KEYS  burial
-- ARGV  the token that the mark was set with
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
