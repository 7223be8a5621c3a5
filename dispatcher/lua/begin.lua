-- Begin sends that carry a requestId.
--
-- KEYS  per send: sent
-- ARGV  life of the record and of a claim in ms; per send: messageId, activeTime, fingerprint, claim
-- Gives per send: state, messageId, activeTime, answer ('' without one); the first's, where there was a first; and 1 when
-- there was, else 0.
--   0 yours to send   1 done   2 another is at it   3 the first had another fingerprint
--
-- The record is a hash: id, at, fp; claim and until (epoch ms) while somebody is at it; answer when it is done. A claim
-- that ran out is anybody's: its holder died, and who takes it sends under the same messageId.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {}
for i = 1, #KEYS do
  local id, at, fp, claim = ARGV[4 * i - 1], ARGV[4 * i], ARGV[4 * i + 1], ARGV[4 * i + 2]
  local held = redis.call('HMGET', KEYS[i], 'id', 'at', 'fp', 'claim', 'until', 'answer')
  if not held[1] then
    redis.call('HSET', KEYS[i], 'id', id, 'at', at, 'fp', fp, 'claim', claim, 'until', now + ARGV[2])
    redis.call('PEXPIRE', KEYS[i], ARGV[1])
    answers[i] = { 0, id, at, '', 0 }
  elseif held[3] ~= fp then
    answers[i] = { 3, held[1], held[2], '', 1 }
  elseif held[6] then
    answers[i] = { 1, held[1], held[2], held[6], 1 }
  elseif held[4] and held[4] ~= claim and tonumber(held[5]) > now then
    answers[i] = { 2, held[1], held[2], '', 1 }
  else
    redis.call('HSET', KEYS[i], 'claim', claim, 'until', now + ARGV[2])
    answers[i] = { 0, held[1], held[2], '', 1 }
  end
end
return answers
