-- A node hosts members of audiences from now on; then the order of the newest message of each. In one script: see
-- timeline_add.lua.
--
-- KEYS  per audience: what is known of it, where
-- ARGV  nodeId, epoch; per audience: group (0, 1)
-- Gives per audience the order of its newest message (0: there was none), -1 when there is no such group.
local answers = {}
for i = 1, #KEYS / 2 do
  local about, where = KEYS[2 * i - 1], KEYS[2 * i]
  if ARGV[2 + i] == '0' then
    answers[i] = tonumber(redis.call('HGET', about, 'last') or '0')
  elseif redis.call('HEXISTS', about, 'created') == 0 then
    answers[i] = -1
  else
    redis.call('HSET', where, ARGV[1], ARGV[2])
    answers[i] = tonumber(redis.call('HGET', about, 'last') or '0')
  end
end
return answers
