-- Delete what a reset has moved, once the end of its keeping has come.
--
-- KEYS  1 trash  2 trash_notes  then the keys in the trash
-- ARGV  1 id of the reset
-- Returns 1 deleted | 0 it is kept for longer now, or is gone
local trash, notes, id = KEYS[1], KEYS[2], ARGV[1]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept_until = redis.call('ZSCORE', trash, id)
if not kept_until or tonumber(kept_until) > now then return 0 end

redis.call('ZREM', trash, id)
redis.call('HDEL', notes, id)
for i = 3, #KEYS do redis.call('UNLINK', KEYS[i]) end
return 1
