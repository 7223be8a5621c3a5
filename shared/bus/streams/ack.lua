-- Acknowledge records and delete them: at once when their group is the only one of the queue, else when every
-- group is past them.
--
-- KEYS[1]  the topic's marker
-- ARGV[1]  group; then queue, id of each record
-- Returns how many were still pending.
local base = KEYS[1]
local group = ARGV[1]
local acked = 0
local seen = {}
local alone = {}

local function groups_of(stream)
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    if groups.err then
        return {}
    end
    return groups
end

-- Records below this id are done with: the lowest of each group's first pending or last delivered one.
local function floor_of(stream, groups)
    local floor_ms, floor_n
    for _, info in ipairs(groups) do
        local name, last
        for i = 1, #info, 2 do
            if info[i] == 'name' then name = info[i + 1] end
            if info[i] == 'last-delivered-id' then last = info[i + 1] end
        end
        local pending = redis.call('XPENDING', stream, name)
        local id = pending[2] or last
        local ms, n = string.match(id, '(%d+)-(%d+)')
        ms, n = tonumber(ms), tonumber(n)
        if not floor_ms or ms < floor_ms or (ms == floor_ms and n < floor_n) then
            floor_ms, floor_n = ms, n
        end
    end
    return string.format('%.0f-%.0f', floor_ms, floor_n)
end

for i = 2, #ARGV, 2 do
    local stream = base .. ':' .. ARGV[i]
    if not seen[stream] then
        seen[stream] = groups_of(stream)
        alone[stream] = #seen[stream] == 1
    end
    if #seen[stream] > 0 then
        acked = acked + redis.call('XACK', stream, group, ARGV[i + 1])
        if alone[stream] then
            redis.call('XDEL', stream, ARGV[i + 1])
        end
    end
end
for stream, groups in pairs(seen) do
    if #groups > 1 then
        redis.call('XTRIM', stream, 'MINID', '=', floor_of(stream, groups))
    end
end
return acked
