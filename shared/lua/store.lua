-- Store, then read the route: for each target put the message into its inbox, then say where its sessions are.
-- Both in one script, so that a session registering meanwhile either is in the route or finds the message.
--
-- KEYS  per target: inbox, route
-- ARGV  most messages and most bytes of an inbox; the number of messages; per message: id, expiry (epoch ms, 0: do
--       not store), template; per target: which message (from 1)
-- Gives per target a list: the order of the stored message, 0 not to be stored, -1 the inbox is full; then
-- sessionId, epoch, ...
--
-- An inbox is a hash: messageId -> order (16 digits, epoch us) .. expiry (13 digits, epoch ms) .. template, and
-- `#` -> the bytes of its values.
--
-- A full inbox is searched for what has expired, which takes milliseconds, and a client that writes to it again and again
-- would have Redis do nothing else. So one that was searched has a mark, `<inbox>!` (of the same slot: the name has its
-- tag), until the first of what it holds expires, a minute at most; while it is there nothing can have expired.
local most, most_bytes, messages = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local first_target = 3 + 3 * messages
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)

local mark_ms = 60000

local function drop_expired(inbox, but)
  local all = redis.call('HGETALL', inbox)
  local freed, first = 0, now_ms + mark_ms
  for i = 1, #all, 2 do
    if all[i] ~= '#' and all[i] ~= but then
      local expires = tonumber(string.sub(all[i + 1], 17, 29))
      if expires <= now_ms then
        redis.call('HDEL', inbox, all[i])
        freed = freed + #all[i + 1]
      else
        first = math.min(first, expires)
      end
    end
  end
  redis.call('SET', inbox .. '!', '', 'PX', first - now_ms)
  return redis.call('HINCRBY', inbox, '#', -freed)
end

local function put(inbox, id, expires, order, template)
  local value = string.format('%016.0f%013.0f', order, expires) .. template
  if redis.call('HSETNX', inbox, id, value) == 0 then
    return tonumber(string.sub(redis.call('HGET', inbox, id), 1, 16)) -- a send that is tried again
  end
  local bytes = redis.call('HINCRBY', inbox, '#', #value)
  local over = bytes > most_bytes or (bytes > #value and redis.call('HLEN', inbox) - 1 > most)
  if over and redis.call('EXISTS', inbox .. '!') == 0 then
    bytes = drop_expired(inbox, id)
    over = bytes > most_bytes or redis.call('HLEN', inbox) - 1 > most
  end
  if over then
    redis.call('HDEL', inbox, id)
    if redis.call('HINCRBY', inbox, '#', -#value) == 0 then
      redis.call('DEL', inbox)
    end
    return -1
  end
  if expires < now_ms + mark_ms then
    redis.call('DEL', inbox .. '!')
  end
  if bytes == #value or redis.call('PEXPIRETIME', inbox) < expires then
    redis.call('PEXPIREAT', inbox, expires)
  end
  return order
end

local answers = {}
for i = 1, #KEYS / 2 do
  local message = 1 + 3 * tonumber(ARGV[first_target + i])
  local expires = tonumber(ARGV[message + 1])
  local stored = 0
  if expires > 0 then
    stored = put(KEYS[2 * i - 1], ARGV[message], expires, now_us + i, ARGV[message + 2])
  end
  local answer = redis.call('HGETALL', KEYS[2 * i])
  table.insert(answer, 1, stored)
  answers[i] = answer
end
return answers
