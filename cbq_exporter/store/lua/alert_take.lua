-- Take the turn of acting on the alert that has waited for longest: one at a time, whoever asks.
--
-- KEYS  1 alerts  2 alerts_open  3 alerts_turn  4 alerts_paused
-- ARGV  1 token, different for each try  2 how long the turn lasts without a sign of life, ms
-- Returns {id, when it was admitted (ms), how often it was taken, what is to be done, the store's clock (ms)}
-- | {} nothing waits, somebody else's turn lasts, or a person has paused it
local alerts, open, turn, paused = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local token, lasts_ms = ARGV[1], ARGV[2]

if redis.call('EXISTS', turn, paused) > 0 then return {} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

while true do
  local first = redis.call('ZRANGE', open, 0, 0, 'WITHSCORES')
  local id, admitted = first[1], first[2]
  if not id then return {} end
  local taken, intent = string.match(redis.call('HGET', alerts, id) or '', '^open (%d+) (.*)$')
  if taken then
    redis.call('SET', turn, token, 'PX', lasts_ms)
    redis.call('HSET', alerts, id, 'open ' .. taken + 1 .. ' ' .. intent)
    return {id, admitted, taken + 1, intent, now}
  end
  redis.call('ZREM', open, id) -- nobody knows any more what was to be done
end
