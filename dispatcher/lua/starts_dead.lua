-- The starts of nodes that hold no lease: it ended, was given back, or is another start's.
--
-- KEYS  starts
-- ARGV  what stands before a nodeId in the key of its lease (the same partition tag as the starts'), most starts
-- Gives per start: nodeId, epoch, how long ago its lease was to end (ms; negative: it would still run).
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answer = {}
local starts = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #starts, 2 do
  local node_id, epoch = string.match(starts[i], '^(.*) ([^ ]*)$')
  local held = node_id and redis.call('GET', ARGV[1] .. node_id)
  if node_id and not (held and cjson.decode(held).epoch == epoch) then
    answer[#answer + 1] = node_id
    answer[#answer + 1] = epoch
    answer[#answer + 1] = now - tonumber(starts[i + 1])
    if #answer >= 3 * tonumber(ARGV[2]) then
      break
    end
  end
end
return answer
