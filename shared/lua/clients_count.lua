-- How many clients are known.
--
-- KEYS  clients, of some partitions
local count = 0
for i = 1, #KEYS do
  count = count + redis.call('SCARD', KEYS[i])
end
return count
