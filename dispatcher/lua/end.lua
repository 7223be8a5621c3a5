-- End sends that carry a requestId: keep the answer, or give the claim back.
--
-- KEYS  per send: sent
-- ARGV  life of the record in ms; per send: claim, answer ('': it failed, and may be tried again)
-- Gives the number of sends. An answer is kept whoever holds the claim: the message went out under the record's id.
for i = 1, #KEYS do
  local claim, answer = ARGV[2 * i], ARGV[2 * i + 1]
  if redis.call('EXISTS', KEYS[i]) == 1 then
    if answer ~= '' then
      redis.call('HSETNX', KEYS[i], 'answer', answer)
      redis.call('HDEL', KEYS[i], 'claim', 'until')
      redis.call('PEXPIRE', KEYS[i], ARGV[1])
    elseif redis.call('HGET', KEYS[i], 'claim') == claim then
      redis.call('HDEL', KEYS[i], 'claim', 'until')
    end
  end
end
return #KEYS
