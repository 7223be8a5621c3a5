-- What is known of people: their names, and who sent a message. Requests are carried out in their order.
--
-- KEYS  per request two: profile and route; or the sender key of a message, twice
-- ARGV  the life of a profile and of a sender, in seconds; per request: its kind, and a value ("" for those that read)
-- Gives per request: for `profile` a list: the name ("" unknown), how many sessions the route holds; for `sender of`
-- the clientId, "" unknown; for `name` and `sender`, which write, 1.
local profile_life, sender_life = ARGV[1], ARGV[2]

local function carry_out(key, other, kind, value)
  if kind == 'profile' then
    return { redis.call('GET', key) or '', redis.call('HLEN', other) }
  elseif kind == 'name' then
    redis.call('SET', key, value, 'EX', profile_life)
  elseif kind == 'sender' then
    redis.call('SET', key, value, 'EX', sender_life)
  else
    return redis.call('GET', key) or ''
  end
  return 1
end

local answers = {}
for i = 1, #KEYS / 2 do
  answers[i] = carry_out(KEYS[2 * i - 1], KEYS[2 * i], ARGV[1 + 2 * i], ARGV[2 + 2 * i])
end
return answers
