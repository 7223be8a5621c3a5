-- Begin to delete a group: from now on nobody joins it or sends to it. Its members stay until they have left.
--
-- KEYS  about, members
-- Gives 1, also when it is being deleted already; 0 when there is nothing of it.
if redis.call('HDEL', KEYS[1], 'created') == 1 then
  return 1
end
return redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 and 1 or 0
