-- The oldest messages of an inbox: how many it holds, then id, value, id, value, ... up to `most` and `most_bytes`
-- (at least one). Expired ones are removed on the way.
local function slice(inbox, most, most_bytes, now_ms)
  local all = redis.call('HGETALL', inbox)
  if #all == 0 then
    return { 0 }
  end
  local live = {}
  local freed = 0
  for i = 1, #all, 2 do
    local id, value = all[i], all[i + 1]
    if id ~= '#' then
      if tonumber(string.sub(value, 17, 29)) <= now_ms then
        redis.call('HDEL', inbox, id)
        freed = freed + #value
      else
        live[#live + 1] = { string.sub(value, 1, 16) .. id, id, value }
      end
    end
  end
  if freed > 0 and redis.call('HINCRBY', inbox, '#', -freed) == 0 then
    redis.call('DEL', inbox)
  end
  table.sort(live, function(a, b)
    return a[1] < b[1]
  end)
  local answer, bytes = { #live }, 0
  for i = 1, math.min(#live, most) do
    bytes = bytes + #live[i][3]
    if i > 1 and bytes > most_bytes then
      break
    end
    answer[#answer + 1] = live[i][2]
    answer[#answer + 1] = live[i][3]
  end
  return answer
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
