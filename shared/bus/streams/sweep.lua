-- Remove the names of members that are gone and hold nothing (a crash leaves its name behind).
--
-- KEYS[1]  the topic's marker
-- ARGV[1]  group, ARGV[2] number of queues, ARGV[3] how long a member must have been silent, ms
-- Returns how many were removed.
local base = KEYS[1]
local removed = 0
for queue = 0, tonumber(ARGV[2]) - 1 do
    local stream = base .. ':' .. queue
    local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, ARGV[1])
    if not consumers.err then
        for _, info in ipairs(consumers) do
            local of = {}
            for i = 1, #info, 2 do
                of[info[i]] = info[i + 1]
            end
            if of['pending'] == 0 and of['idle'] > tonumber(ARGV[3]) then
                redis.call('XGROUP', 'DELCONSUMER', stream, ARGV[1], of['name'])
                removed = removed + 1
            end
        end
    end
end
return removed
