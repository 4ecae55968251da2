-- Take the send lock where it is free, or prolong it where it is ours.
--
-- KEYS  1 lock
-- ARGV  1 our value  2 TTL, ms
-- Returns 1 ours now | 0 somebody else's
local lock, value, ttl = KEYS[1], ARGV[1], ARGV[2]

local current = redis.call('GET', lock)
if current == value then
  redis.call('PEXPIRE', lock, ttl)
  return 1
end
if not current then
  redis.call('SET', lock, value, 'PX', ttl)
  return 1
end
return 0
