-- Append callbacks to pending, counted as the existing producers count.
--
-- KEYS  1 pending  2 stats:queued
-- ARGV  1 TTL of the stats, s; then the payloads
-- Returns the length of pending
local pending, stats_queued = KEYS[1], KEYS[2]
local stats_ttl = ARGV[1]

local length = 0
for first = 2, #ARGV, 1000 do
  length = redis.call('RPUSH', pending, unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
redis.call('INCRBY', stats_queued, #ARGV - 1)
redis.call('EXPIRE', stats_queued, stats_ttl)
return length
