-- Delete the send lock, but only where it still is what was looked at.
--
-- KEYS  1 lock  2 lock_seen  3 daemons
-- ARGV  1 the value  2 its TTL then, ms; -1: it had none; '': whatever it was
--       3 its holder's last heartbeat then, ms; -1: there was none; '': whatever it was
-- Returns 1 released | 0 it is another one, it was prolonged, its holder lives, or it is free
local lock, lock_seen, daemons = KEYS[1], KEYS[2], KEYS[3]
local value, ttl_was, beat_was = ARGV[1], ARGV[2], ARGV[3]

if redis.call('GET', lock) ~= value then return 0 end
if ttl_was ~= '' then
  local ttl, before = redis.call('PTTL', lock), tonumber(ttl_was)
  -- Time only makes a TTL shorter: a longer one was set by somebody who lives.
  if (ttl < 0) ~= (before < 0) or ttl > before then return 0 end
end
if beat_was ~= '' and tonumber(redis.call('ZSCORE', daemons, value) or -1) ~= tonumber(beat_was) then return 0 end
redis.call('DEL', lock_seen)
return redis.call('DEL', lock)
