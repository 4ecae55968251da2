-- Forget all sightings: the clock has leapt, and nobody can say any more how old they are.
--
-- KEYS  1 sightings
-- Returns how many there were
local count = redis.call('ZCARD', KEYS[1])
redis.call('UNLINK', KEYS[1])
return count
