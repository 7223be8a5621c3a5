-- A page of a set.
--
-- SSCAN gives a few more or less than it is asked for, and a small set always whole. So it is asked for half of what is
-- missing, and a step that would be too much is not taken; of a small set a page is what follows in the alphabet.
-- Whoever is in the set all the while is on a page.
--
-- Where a scan goes on means nothing to another server, nor to the same one after a restart: each places members by a
-- secret of its own. So a cursor has a mark of the server behind a dot, and one of another begins anew.
local function mark()
  local known, info = pcall(redis.call, 'INFO', 'server')
  return known and type(info) == 'string' and string.match(info, 'run_id:(%x%x%x%x%x%x%x%x)') or '00000000'
end

local function part_of(all, most, behind)
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

-- From `from` on ('0': from the beginning), about `most`, behind the member `behind` ('': none). Gives where the next
-- page begins ('': this is the last), behind which member, and the page.
local function page_of(set, from, most, behind)
  local cursor, of = string.match(from, '^(%d+)%.?(%x*)$')
  local here = mark()
  if of ~= here then
    cursor = '0'
  end
  local page, begun = {}, false
  local count = math.max(1, math.floor(most / 2))
  repeat
    local step = redis.call('SSCAN', set, cursor, 'COUNT', count)
    local found = step[2]
    if cursor == '0' and step[1] == '0' and (#found > most or behind ~= '') then
      return part_of(found, most, behind)
    end
    if #page + #found <= most or (#page == 0 and count == 1) then
      for i = 1, #found do
        page[#page + 1] = found[i]
      end
      cursor, begun = step[1], true
      count = math.max(1, math.floor((most - #page) / 2))
    elseif count == 1 then
      return cursor .. '.' .. here, '', page
    else
      count = 1
    end
  until begun and cursor == '0' or #page >= most
  return cursor == '0' and '' or cursor .. '.' .. here, '', page
end
