-- Store messages in the timelines of their audiences, then say which nodes host members. In one script: a node that
-- enters an audience either is among them or finds the message (audience_enter.lua).
--
-- KEYS  per message: what is known of the audience, its timeline, where
-- ARGV  most messages and most bytes of a timeline, how long it keeps a message (ms); per message: messageId, expiry
--       (epoch ms; 0: do not store), template, the session that does not get it, group (0, 1), again (0, 1)
-- Gives per message a list: its order (0: not stored, -1: there is no such group), the order of the message before it,
-- and for a group: nodeId, epoch, ...
--
-- An order is the time in us, and always higher than the last one, so cursors only ever move forward.
local most, most_bytes, keep_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]

local function order_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end

-- Where a message stands that an earlier try has stored: its order and that of the one before it.
local function find(timeline, id, last)
  local minted_us = tonumber(string.sub(id, 1, 12), 16) * 1000
  local from = string.format('%.0f', math.max(0, minted_us - 60000000))
  while true do
    local entries = redis.call('XRANGE', timeline, from, '+', 'COUNT', 64)
    for _, entry in ipairs(entries) do
      if entry[2][2] == id then
        local order = order_of(entry)
        local before = redis.call('XREVRANGE', timeline, '(' .. entry[1], '-', 'COUNT', 1)[1]
        return order, before and order_of(before) or order - 1
      end
    end
    if #entries < 64 then
      return nil
    end
    from = '(' .. entries[#entries][1]
  end
end

-- Let go of the oldest: `cut` says up to where.
local function trim(about, timeline, bytes)
  local oldest_us = now_us - keep_ms * 1000
  local cut
  while true do
    local entry = redis.call('XRANGE', timeline, '-', '+', 'COUNT', 1)[1]
    local length = redis.call('XLEN', timeline)
    if length <= 1 or order_of(entry) >= oldest_us and length <= most and bytes <= most_bytes then
      break
    end
    redis.call('XDEL', timeline, entry[1])
    bytes = bytes - #entry[2][8]
    cut = order_of(entry)
  end
  if cut then
    redis.call('HSET', about, 'cut', string.format('%016.0f', cut), 'bytes', bytes)
  end
end

local function add(about, timeline, id, expires, template, but, again)
  local last = tonumber(redis.call('HGET', about, 'last') or '0')
  if again then
    local order, before = find(timeline, id, last)
    if order then
      return order, before
    end
  end
  if last > 0 and redis.call('EXISTS', timeline) == 0 then -- all that was in it is older than is kept
    redis.call('HSET', about, 'cut', string.format('%016.0f', last), 'bytes', 0)
  end
  local order = math.max(now_us, last + 1)
  redis.call('XADD', timeline, string.format('%.0f-0', order), 'i', id, 'e', expires, 'b', but, 't', template)
  redis.call('PEXPIRE', timeline, keep_ms)
  redis.call('HSET', about, 'last', string.format('%016.0f', order))
  trim(about, timeline, redis.call('HINCRBY', about, 'bytes', #template))
  return order, last
end

local answers = {}
for i = 1, #KEYS / 3 do
  local about, timeline, where = KEYS[3 * i - 2], KEYS[3 * i - 1], KEYS[3 * i]
  local a = 6 * i - 2
  local id, expires, template, but, group, again = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4], ARGV[a + 5]
  if group == '1' and redis.call('HEXISTS', about, 'created') == 0 then
    answers[i] = { -1, 0 }
  else
    local order, before = 0, 0
    if expires ~= '0' then
      order, before = add(about, timeline, id, expires, template, but, again == '1')
    end
    local answer = group == '1' and redis.call('HGETALL', where) or {}
    table.insert(answer, 1, before)
    table.insert(answer, 1, order)
    answers[i] = answer
  end
end
return answers
