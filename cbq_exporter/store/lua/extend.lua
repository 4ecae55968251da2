-- Move the deadlines of leases that are still held.
--
-- KEYS  1 leases
-- ARGV  1 lease, ms; then the leases
-- Returns for each lease 1 extended | 0 not held any more
local leases, lease_ms = KEYS[1], tonumber(ARGV[1])

local time = redis.call('TIME')
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + lease_ms

-- First a write that does nothing: after one, a full memory does not refuse those that add nothing either.
redis.call('ZREM', leases, '')

local result = {}
for i = 2, #ARGV do
  local held = redis.call('ZSCORE', leases, ARGV[i])
  if held then redis.call('ZADD', leases, 'XX', deadline, ARGV[i]) end
  result[i - 1] = held and 1 or 0
end
return result
