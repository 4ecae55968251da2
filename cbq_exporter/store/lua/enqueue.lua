-- Append callbacks to pending, counted as the existing producers count.
--
-- KEYS  1 pending  2 stats:queued
-- ARGV  1 TTL of the stats, s; then the payloads
-- Returns the length of pending
local pending, stats_queued = KEYS[1], KEYS[2]
local stats_ttl = ARGV[1]

local length = 0
for from = 2, #ARGV, 1000 do
  length = redis.call('RPUSH', pending, unpack(ARGV, from, math.min(from + 999, #ARGV)))
end
-- What is wrong with a statistic does not undo what was accepted: an error would have it sent again.
if type(redis.pcall('INCRBY', stats_queued, #ARGV - 1)) == 'number' then
  redis.call('EXPIRE', stats_queued, stats_ttl)
end
return length
