-- Note that a queue or one of its destinations is paused.
--
-- KEYS  1 paused
-- ARGV  1 '' for the queue, or a destination  2 note, JSON  3 most pauses
-- Returns 1 paused now | 0 it was already | -1 there are too many
local paused, name, note, most = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])

if redis.call('HEXISTS', paused, name) == 1 then return 0 end
if redis.call('HLEN', paused) >= most then return -1 end
return redis.call('HSET', paused, name, note)
