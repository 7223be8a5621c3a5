-- Go on deleting a group: take out members that have left, and name the next. When none is left all of it goes.
--
-- KEYS  about, timeline, members, where
-- ARGV  how many to name; clientIds that have left
-- Gives clientIds; none: it is gone; nil: a group of this id was created since.
local members = KEYS[3]
if redis.call('HEXISTS', KEYS[1], 'created') == 1 then
  return false
end
for i = 2, #ARGV do
  redis.call('SREM', members, ARGV[i])
end
local others = redis.call('SRANDMEMBER', members, ARGV[1])
if #others == 0 then
  redis.call('UNLINK', unpack(KEYS))
end
return others
