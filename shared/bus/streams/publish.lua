-- Append records to a topic, or set them aside until they are due.
--
-- KEYS[1]  the topic's marker; its value is the number of queues
-- ARGV     queue, key, deliver_at_ms, body of each record
-- Returns the number of records, or nil when there is no such topic.
--
-- The marker is read in the same step that writes, so a publish that comes after a drop does not bring the topic
-- back. A queue beyond the count (the topic was made again with fewer) falls on one that exists.
local base = KEYS[1]
local queues = tonumber(redis.call('GET', base))
if not queues then
    return nil
end
local most = redis.call('GET', base .. ':most')
local now
for i = 1, #ARGV, 4 do
    local queue = tonumber(ARGV[i]) % queues
    local due = tonumber(ARGV[i + 2])
    if due > 0 and not now then
        local time = redis.call('TIME')
        now = time[1] * 1000 + math.floor(time[2] / 1000)
    end
    if due > 0 and due > now then
        -- The sequence makes members differ and keeps the order of records that are due together.
        local sequence = redis.call('INCR', base .. ':sequence')
        local key = ARGV[i + 1]
        local member = struct.pack('>I8I4I4', sequence, queue, #key) .. key .. ARGV[i + 3]
        redis.call('ZADD', base .. ':delayed', due, member)
    elseif most then
        redis.call('XADD', base .. ':' .. queue, 'MAXLEN', '~', most, '*', 'k', ARGV[i + 1], 'b', ARGV[i + 3])
    else
        redis.call('XADD', base .. ':' .. queue, '*', 'k', ARGV[i + 1], 'b', ARGV[i + 3])
    end
end
return #ARGV / 4
