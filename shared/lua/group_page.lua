-- A page of a group's members. page.lua stands before it.
--
-- KEYS  about, members
-- ARGV  where the scan goes on (0: at the beginning), how many, the clientId behind which it goes on ('': none)
-- Gives where the next page begins ('': this is the last), behind which clientId, then the members; nil when there is
-- no group.
if redis.call('HEXISTS', KEYS[1], 'created') == 0 then
  return false
end
local cursor, last, page = page_of(KEYS[2], ARGV[1], tonumber(ARGV[2]), ARGV[3])
table.insert(page, 1, last)
table.insert(page, 1, cursor)
return page
