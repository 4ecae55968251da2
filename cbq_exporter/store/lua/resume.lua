-- End a pause.
--
-- KEYS  1 paused
-- ARGV  1 '' for the queue, or a destination
-- Returns 1 ended | 0 there was none
return redis.call('HDEL', KEYS[1], ARGV[1])
