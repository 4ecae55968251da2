-- Delete dead letters for good.
--
-- KEYS  1 dead  2 records  3 payloads
-- ARGV  the ids
-- Returns how many were deleted
local dead, records, payloads = KEYS[1], KEYS[2], KEYS[3]

local purged = 0
for _, id in ipairs(ARGV) do
  if redis.call('ZREM', dead, id) == 1 then
    redis.call('HDEL', payloads, id)
    redis.call('HDEL', records, id)
    purged = purged + 1
  end
end
return purged
