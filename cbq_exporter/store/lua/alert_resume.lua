-- Let alerts cause their actions again.
--
-- KEYS  1 alerts_paused
-- Returns 1 | 0 it was not paused
local paused = KEYS[1]

return redis.call('DEL', paused)
