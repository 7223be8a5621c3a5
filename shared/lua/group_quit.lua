-- Take a group out of the audiences of clients: the second step of leaving.
--
-- KEYS  per client: audiences, route
-- ARGV  groupId, seconds that the audiences of a client in no group are kept
-- Gives per client 1: changed, 0: it was not there; after a 1 its sessions: sessionId, epoch, ...
local group, kept_s = ARGV[1], ARGV[2]

local function quit(audiences)
  if redis.call('HDEL', audiences, group) == 0 then
    return 0
  end
  redis.call('HINCRBY', audiences, '#', 1)
  if redis.call('HLEN', audiences) == 1 + redis.call('HEXISTS', audiences, '*') then
    redis.call('EXPIRE', audiences, kept_s)
  end
  return 1
end

local answers = {}
for i = 1, #KEYS / 2 do
  local done = quit(KEYS[2 * i - 1])
  local answer = done == 1 and redis.call('HGETALL', KEYS[2 * i]) or {}
  table.insert(answer, 1, done)
  answers[i] = answer
end
return answers
