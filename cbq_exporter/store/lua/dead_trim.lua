-- Delete the oldest dead letters, where there are too many or they are too old.
--
-- KEYS  1 dead  2 records  3 payloads
-- ARGV  1 most letters to keep  2 greatest age, ms  3 most to delete now
-- Returns how many were deleted
local dead, records, payloads = KEYS[1], KEYS[2], KEYS[3]
local most, max_age, batch = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local too_many = redis.call('ZCARD', dead) - most
local too_old = redis.call('ZCOUNT', dead, '-inf', now - max_age)
local surplus = math.min(batch, math.max(too_many, too_old))
if surplus <= 0 then return 0 end
local ids = redis.call('ZRANGE', dead, 0, surplus - 1)
for _, id in ipairs(ids) do
  redis.call('HDEL', payloads, id)
  redis.call('HDEL', records, id)
  redis.call('ZREM', dead, id)
end
return #ids
