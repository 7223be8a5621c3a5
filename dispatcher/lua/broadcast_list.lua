-- The newest broadcasts. One that is kept no more is forgotten on the way.
--
-- KEYS  all
-- ARGV  what stands before a broadcastId in its key (the same partition tag), how many, behind which broadcastId
--       ('': from the newest), fields
-- Gives per broadcast its id and its fields.
local answer = {}
local from = ARGV[3] == '' and '+' or '(' .. ARGV[3]
repeat
  local most = tonumber(ARGV[2]) - #answer
  local ids = redis.call('ZREVRANGEBYLEX', KEYS[1], from, '-', 'LIMIT', 0, most)
  for i = 1, #ids do
    if redis.call('EXISTS', ARGV[1] .. ids[i]) == 1 then
      answer[#answer + 1] = { ids[i], redis.call('HMGET', ARGV[1] .. ids[i], unpack(ARGV, 4)) }
    else
      redis.call('ZREM', KEYS[1], ids[i])
    end
    from = '(' .. ids[i]
  end
until #ids < most or #answer == tonumber(ARGV[2])
return answer
