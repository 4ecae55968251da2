-- Forget that the circuit of a destination is not closed.
--
-- KEYS  1 breakers
-- ARGV  1 destination
-- Returns 1 forgotten | 0 it was closed
return redis.call('HDEL', KEYS[1], ARGV[1])
