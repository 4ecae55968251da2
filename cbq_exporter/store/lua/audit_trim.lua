-- Delete entries of the audit that are too old.
--
-- KEYS  1 audit
-- ARGV  1 greatest age, ms
-- Returns how many were deleted; some that share a node with younger ones stay for now
local audit, max_age = KEYS[1], tonumber(ARGV[1])

local time = redis.call('TIME')
local oldest = time[1] * 1000 + math.floor(time[2] / 1000) - max_age
return redis.call('XTRIM', audit, 'MINID', '~', string.format('%d', oldest))
