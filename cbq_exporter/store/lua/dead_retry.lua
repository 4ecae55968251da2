-- Send dead letters again: to the tail of pending, with a clean record.
--
-- KEYS  1 dead  2 records  3 payloads  4 pending  5 returned
-- ARGV  1 most bytes (one letter may exceed it); then the ids
-- Returns {ids looked at, letters moved}: the rest of the ids waits for another call
local dead, records, payloads, pending, returned = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local budget = tonumber(ARGV[1])

-- A foreign type at one of the keys ends the script here, before anything is written.
redis.call('LLEN', pending)
redis.call('HLEN', records)
local remembered = redis.call('HLEN', returned) > 0

local looked, moved, bytes = 0, 0, 0
for i = 2, #ARGV do
  local id = ARGV[i]
  if redis.call('ZSCORE', dead, id) then
    local size = redis.call('HSTRLEN', payloads, id)
    if bytes > 0 and bytes + size > budget then break end
    local payload = redis.call('HGET', payloads, id)
    if payload then
      redis.call('RPUSH', pending, payload)
      if remembered then redis.call('HDEL', returned, redis.sha1hex(payload)) end
      redis.call('ZREM', dead, id)
      redis.call('HDEL', payloads, id)
      redis.call('HDEL', records, id)
      bytes = bytes + size
      moved = moved + 1
    end
  end
  looked = looked + 1
end
return {looked, moved}
