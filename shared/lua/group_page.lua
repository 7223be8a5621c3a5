-- A page of a group's members.
--
-- KEYS  about, members
-- ARGV  where the scan goes on (0: at the beginning), how many, the clientId behind which it goes on ('': none)
-- Gives where the next page begins ('': this is the last), behind which clientId, then the members; nil when there is
-- no group.
--
-- SSCAN gives a few more or less than it is asked for, and a small set always whole. So it is asked for half of what is
-- missing, and a step that would be too much is not taken; of a small set a page is what follows in the alphabet.
-- Whoever is a member all the while is on a page.
local members, most, behind = KEYS[2], tonumber(ARGV[2]), ARGV[3]
if redis.call('HEXISTS', KEYS[1], 'created') == 0 then
  return false
end

local function part_of(all)
  table.sort(all)
  local answer = {}
  for i = 1, #all do
    if all[i] > behind then
      if #answer == most then
        return '0', answer[most], answer
      end
      answer[#answer + 1] = all[i]
    end
  end
  return '', '', answer
end

local function scan(cursor)
  local page = {}
  local count = math.max(1, math.floor(most / 2))
  while true do
    local step = redis.call('SSCAN', members, cursor, 'COUNT', count)
    local following, found = step[1], step[2]
    if cursor == '0' and following == '0' and (#found > most or behind ~= '') then
      return part_of(found)
    end
    if #page + #found <= most or (#page == 0 and count == 1) then
      for i = 1, #found do
        page[#page + 1] = found[i]
      end
      if following == '0' then
        return '', '', page
      end
      cursor = following
      if #page >= most then
        return cursor, '', page
      end
      count = math.max(1, math.floor((most - #page) / 2))
    elseif count == 1 then
      return cursor, '', page
    else
      count = 1
    end
  end
end

local cursor, last, page = scan(ARGV[1])
table.insert(page, 1, last)
table.insert(page, 1, cursor)
return page
