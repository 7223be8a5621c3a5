-- Delete a topic with all that belongs to it.
--
-- KEYS[1]  the topic's marker
local base = KEYS[1]
local queues = tonumber(redis.call('GET', base) or '0')
for queue = 0, queues - 1 do
    redis.call('UNLINK', base .. ':' .. queue)
end
redis.call('UNLINK', base, base .. ':position', base .. ':delayed', base .. ':sequence', base .. ':most')
return queues
