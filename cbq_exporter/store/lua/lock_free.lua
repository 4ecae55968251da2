-- Compare and delete: free the send lock only where it still holds this value.
--
-- KEYS  1 lock
-- ARGV  1 the value
-- Returns 1 freed | 0 it held something else, or nothing
local lock, value = KEYS[1], ARGV[1]

if redis.call('GET', lock) == value then
  return redis.call('DEL', lock)
end
return 0
