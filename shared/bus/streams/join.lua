-- Make a consumer group on every queue of a topic, from its beginning.
--
-- KEYS[1]  the topic's marker
-- ARGV[1]  group
-- Returns the number of queues, or nil when there is no such topic.
local base = KEYS[1]
local queues = tonumber(redis.call('GET', base))
if not queues then
    return nil
end
for queue = 0, queues - 1 do
    local made = redis.pcall('XGROUP', 'CREATE', base .. ':' .. queue, ARGV[1], '0', 'MKSTREAM')
    if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
        return made
    end
end
return queues
