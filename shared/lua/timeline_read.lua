-- Read timelines from where cursors stand.
--
-- KEYS  per cursor: what is known of the audience, its timeline
-- ARGV  most messages and most bytes to give of each (at least one message); per cursor: the order it has
-- Gives per cursor a list: the order of the newest message, up to which order messages were let go, and per message behind
-- the cursor: order, messageId, expiry, the session that does not get it, template.
local most, most_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local answers = {}
for i = 1, #KEYS / 2 do
  local about, timeline = KEYS[2 * i - 1], KEYS[2 * i]
  local known = redis.call('HMGET', about, 'last', 'cut')
  local last, cut = tonumber(known[1] or '0'), tonumber(known[2] or '0')
  local answer = { last, cut }
  local entries = redis.call('XRANGE', timeline, '(' .. ARGV[2 + i] .. '-0', '+', 'COUNT', most)
  local bytes = 0
  for _, entry in ipairs(entries) do
    local fields = entry[2]
    bytes = bytes + #fields[8]
    if #answer > 2 and bytes > most_bytes then
      break
    end
    answer[#answer + 1] = tonumber(string.match(entry[1], '^%d+'))
    answer[#answer + 1] = fields[2]
    answer[#answer + 1] = fields[4]
    answer[#answer + 1] = fields[6]
    answer[#answer + 1] = fields[8]
  end
  if #entries == 0 and redis.call('EXISTS', timeline) == 0 then
    answer[2] = last -- all of it is older than is kept
  end
  answers[i] = answer
end
return answers
