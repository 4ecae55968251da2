-- Delete what is kept for callbacks that are neither in retry nor dead.
--
-- KEYS  1 retry  2 dead  3 records  4 payloads
-- ARGV  the ids to look at
-- Returns how many were deleted
local retry, dead, records, payloads = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local swept = 0
for _, id in ipairs(ARGV) do
  if not redis.call('ZSCORE', retry, id) and not redis.call('ZSCORE', dead, id) then
    local payload, record = redis.call('HDEL', payloads, id), redis.call('HDEL', records, id)
    if payload + record > 0 then swept = swept + 1 end
  end
end
return swept
