-- Register sessions, then read their inboxes. In one script: see store.lua.
--
-- KEYS  per session: route, inbox, last
-- ARGV  nodeId, epoch, most messages and most bytes of a slice; per session: sessionId
-- Gives per session its slice (slice.lua).
local now = now_ms()
local answers = {}
for i = 1, #KEYS / 3 do
  redis.call('HSET', KEYS[3 * i - 2], ARGV[4 + i], ARGV[2])
  redis.call('SET', KEYS[3 * i], ARGV[1], 'EX', 604800)
  answers[i] = slice(KEYS[3 * i - 1], tonumber(ARGV[3]), tonumber(ARGV[4]), now)
end
return answers
