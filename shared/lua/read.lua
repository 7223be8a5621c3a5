-- The next slices of inboxes.
--
-- KEYS  per session: inbox
-- ARGV  most messages and most bytes of a slice
-- Gives per session its slice (slice.lua).
local now = now_ms()
local answers = {}
for i = 1, #KEYS do
  answers[i] = slice(KEYS[i], tonumber(ARGV[1]), tonumber(ARGV[2]), now)
end
return answers
