-- Put a group among the audiences of clients: the second step of joining.
--
-- KEYS  per client: audiences, route
-- ARGV  groupId, most groups of a client; per client: start (16 digits), fresh (0, 1)
-- Gives per client 1: changed, 0: it was there, -1: in too many groups; after a 1 its sessions: sessionId, epoch, ...
--
-- Who becomes a member afresh begins no earlier than `start`: what a leave that broke half way left behind is older.
local group, most = ARGV[1], tonumber(ARGV[2])

local function enter(audiences, start, fresh)
  local cursor = redis.call('HGET', audiences, group)
  if cursor then
    if not fresh or cursor >= start then
      return 0
    end
  else
    local others = redis.call('HEXISTS', audiences, '#') + redis.call('HEXISTS', audiences, '*')
    if redis.call('HLEN', audiences) - others >= most then
      return -1
    end
  end
  redis.call('HSET', audiences, group, start)
  redis.call('HINCRBY', audiences, '#', 1)
  redis.call('PERSIST', audiences)
  return 1
end

local answers = {}
for i = 1, #KEYS / 2 do
  local done = enter(KEYS[2 * i - 1], ARGV[2 * i + 1], ARGV[2 * i + 2] == '1')
  local answer = done == 1 and redis.call('HGETALL', KEYS[2 * i]) or {}
  table.insert(answer, 1, done)
  answers[i] = answer
end
return answers
