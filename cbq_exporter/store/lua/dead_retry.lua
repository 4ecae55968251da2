-- Send dead letters again: to the tail of pending, with a clean record.
--
-- KEYS  1 dead  2 records  3 payloads  4 pending  5 returned
-- ARGV  the ids
-- Returns how many were moved
local dead, records, payloads, pending, returned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]

local moved = 0
for _, id in ipairs(ARGV) do
  local payload = redis.call('HGET', payloads, id)
  if payload and redis.call('ZSCORE', dead, id) then
    redis.call('RPUSH', pending, payload)
    redis.call('HDEL', returned, redis.sha1hex(payload))
    redis.call('ZREM', dead, id)
    redis.call('HDEL', records, id)
    redis.call('HDEL', payloads, id)
    moved = moved + 1
  end
end
return moved
