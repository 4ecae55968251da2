-- Take the send lock where it is free, or prolong it where it is ours.
--
-- KEYS  1 lock
-- ARGV  1 our value  2 TTL, ms
-- Returns {1 ours now | 0 somebody else's, its TTL in ms or -1 where it has none}
local lock, value, ttl = KEYS[1], ARGV[1], ARGV[2]

local current = redis.call('GET', lock)
if current and current ~= value then
  return {0, redis.call('PTTL', lock)}
end
-- First a write that adds nothing: after one, a full memory does not refuse the next, and who has the lock empties it.
if redis.call('PEXPIRE', lock, ttl) == 0 then
  redis.call('SET', lock, value, 'PX', ttl)
end
return {1, tonumber(ttl)}
