-- Put lines into the outbox.
--
-- KEYS  the outbox, its bytes
-- ARGV  force (0: only when something is in it), most entries, most bytes, topic, lines
-- Gives 1; 0 when it is empty and nothing was done; -1 when it is full.
local entries = redis.call('XLEN', KEYS[1])
if ARGV[1] == '0' and entries == 0 then
  return 0
end
local bytes = tonumber(redis.call('GET', KEYS[2]) or '0')
if entries >= tonumber(ARGV[2]) or (entries > 0 and bytes + #ARGV[5] > tonumber(ARGV[3])) then
  return -1
end
redis.call('XADD', KEYS[1], '*', 't', ARGV[4], 'l', ARGV[5])
redis.call('INCRBY', KEYS[2], #ARGV[5])
return 1
