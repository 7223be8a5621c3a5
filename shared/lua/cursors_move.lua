-- Move cursors forward. One that is not there (the client has left the group) is not made again.
--
-- KEYS  per cursor: the client's audiences
-- ARGV  per cursor: audience, order (16 digits)
-- Gives how many have moved.
local moved = 0
for i = 1, #KEYS do
  local audience, order = ARGV[2 * i - 1], ARGV[2 * i]
  local held = redis.call('HGET', KEYS[i], audience)
  if held and held < order then
    redis.call('HSET', KEYS[i], audience, order)
    moved = moved + 1
  end
end
return moved
