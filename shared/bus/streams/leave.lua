-- A member of a group goes: what it holds can be claimed at once, and its name is removed when it holds nothing.
--
-- KEYS[1]  the topic's marker
-- ARGV[1]  group, ARGV[2] consumer, ARGV[3] number of queues, ARGV[4] the idle time to give, ms
local base = KEYS[1]
for queue = 0, tonumber(ARGV[3]) - 1 do
    local stream = base .. ':' .. queue
    local held = redis.pcall('XPENDING', stream, ARGV[1], '-', '+', 10000, ARGV[2])
    if not held.err then
        for _, entry in ipairs(held) do
            redis.call('XCLAIM', stream, ARGV[1], ARGV[2], 0, entry[1], 'IDLE', ARGV[4], 'JUSTID')
        end
        if #held == 0 then
            redis.call('XGROUP', 'DELCONSUMER', stream, ARGV[1], ARGV[2])
        end
    end
end
return 1
