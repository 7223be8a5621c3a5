-- Note how far the lone reader came, and delete what it has behind it.
--
-- KEYS[1]  the topic's marker
-- ARGV     queue, id of the last record dealt with; for each queue that moved
-- Returns 0 when the topic is gone: a late commit leaves nothing behind.
local base = KEYS[1]
if redis.call('EXISTS', base) == 0 then
    return 0
end
for i = 1, #ARGV, 2 do
    local stream = base .. ':' .. ARGV[i]
    redis.call('HSET', base .. ':position', ARGV[i], ARGV[i + 1])
    redis.call('XTRIM', stream, 'MINID', '=', ARGV[i + 1])
    redis.call('XDEL', stream, ARGV[i + 1])
end
return 1
