-- Note which layout this version writes, unless a newer one is noted.
--
-- KEYS  1 schema
-- ARGV  1 our layout's number
-- Returns what was found, which is not overwritten unless it is a smaller number; false: nothing
local schema, ours = KEYS[1], ARGV[1]

local found = redis.call('GET', schema)
local number = found and tonumber(found)
if not found or (number and number < tonumber(ours)) then
  redis.call('SET', schema, ours)
end
return found
