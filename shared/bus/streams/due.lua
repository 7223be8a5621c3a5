-- Move records whose time has come into their queues.
--
-- KEYS[1]  the topic's marker
-- ARGV[1]  the most records to move
-- Returns the milliseconds until the next one is due: 0 when more are due now, -1 when there is none.
local base = KEYS[1]
local delayed = base .. ':delayed'
local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
if #first == 0 or redis.call('EXISTS', base) == 0 then
    return -1
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local members = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, ARGV[1])
if #members > 0 then
    local queues = tonumber(redis.call('GET', base))
    for _, member in ipairs(members) do
        local _, queue, size, start = struct.unpack('>I8I4I4', member)
        local key = string.sub(member, start, start + size - 1)
        local body = string.sub(member, start + size)
        redis.call('XADD', base .. ':' .. (queue % queues), '*', 'k', key, 'b', body)
    end
    redis.call('ZREMRANGEBYRANK', delayed, 0, #members - 1)
    first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
    if #first == 0 then
        return -1
    end
end
return math.max(0, tonumber(first[2]) - now)
