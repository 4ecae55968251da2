-- Look at the send lock, and remember since when it is as it is.
--
-- KEYS  1 lock  2 lock_seen  3 daemons
-- ARGV  1 how long what was seen is kept without another look, ms  2 1: forget what was seen before
-- Returns {value, TTL in ms or -1 where it has none, first seen ms, untouched since ms,
--          last heartbeat of its holder ms or -1, now ms}, or {} where the lock is free
--
-- A sighting belongs to the lock's value. A lock that is prolonged is touched: its holder lives. What was seen in the
-- future, because the clock was set back, was not seen.
local lock, lock_seen, daemons = KEYS[1], KEYS[2], KEYS[3]
local keep_ms, anew = ARGV[1], ARGV[2] == '1'
local tolerance = 1000 -- ms that an expiry may move without having been prolonged

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local value = redis.call('GET', lock)
if not value then
  redis.call('DEL', lock_seen)
  return {}
end
local ttl = redis.call('PTTL', lock)
local expires = ttl < 0 and -1 or now + ttl
local beat = tonumber(redis.call('ZSCORE', daemons, value) or -1)

local seen = redis.call('HMGET', lock_seen, 'value', 'first_ms', 'untouched_ms', 'expires_ms')
local first, untouched = now, now
if seen[1] == value and not anew and tonumber(seen[3]) <= now then
  local expired = tonumber(seen[4])
  first = tonumber(seen[2])
  if (expired < 0) == (expires < 0) and expires <= expired + tolerance then
    untouched = tonumber(seen[3])
    expires = expired
  end
end
-- First a write that adds nothing: after it, a full memory does not refuse the next.
redis.call('HDEL', lock_seen, '')
redis.call('HSET', lock_seen, 'value', value, 'first_ms', string.format('%d', first),
  'untouched_ms', string.format('%d', untouched), 'expires_ms', string.format('%d', expires),
  'beat_ms', string.format('%d', beat), 'seen_ms', string.format('%d', now))
redis.call('PEXPIRE', lock_seen, keep_ms)
return {value, ttl, first, untouched, beat, now}
