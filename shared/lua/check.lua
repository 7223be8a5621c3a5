-- Look whether sessions are registered, and what lies in their inboxes for longer than a moment.
--
-- KEYS  per session: route, inbox, audiences
-- ARGV  epoch, grace in ms; per session: sessionId
-- Gives per session -1 when it is not in the route with this epoch, else a list: how often its client's memberships have
-- changed, and the messageIds stored longer ago than the grace.
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local until_us = now_us - tonumber(ARGV[2]) * 1000
local answers = {}
for i = 1, #KEYS / 3 do
  if redis.call('HGET', KEYS[3 * i - 2], ARGV[2 + i]) ~= ARGV[1] then
    answers[i] = -1
  else
    local old = { tonumber(redis.call('HGET', KEYS[3 * i], '#') or '0') }
    local all = redis.call('HGETALL', KEYS[3 * i - 1])
    for j = 1, #all, 2 do
      local value = all[j + 1]
      if all[j] ~= '#' and tonumber(string.sub(value, 17, 29)) > now_ms then
        local order_us = tonumber(string.sub(value, 1, 16))
        if order_us <= until_us or order_us > now_us + 1000000 then -- or the clock has stepped back since
          old[#old + 1] = all[j]
        end
      end
    end
    answers[i] = old
  end
end
return answers
