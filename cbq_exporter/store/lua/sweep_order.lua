-- Take those out of the order that stand there for nobody.
--
-- KEYS  1 order  2 leases  3 retry  4 returned
-- ARGV  the entries to look at
-- Returns how many went
--
-- An entry stands for a callback under its lease, in retry, or back in pending with its turn remembered. Each script
-- that gives one writes the entry and that place together: here either both are there or neither.
local order, leases, retry, returned = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local function stands_for_somebody(entry)
  local turn, id, rest = string.match(entry, '^([^|]+)|([^|]+)|(.+)$')
  if not turn then return false end
  if redis.call('ZSCORE', leases, id .. '|' .. rest .. '|' .. turn) or redis.call('ZSCORE', retry, id) then
    return true
  end
  local memory = redis.call('HGET', returned, string.sub(rest, 1, 40))
  return memory and string.find(memory, '|' .. turn .. '|', 1, true)
end

local nobodys = {}
for _, entry in ipairs(ARGV) do
  if not stands_for_somebody(entry) then nobodys[#nobodys + 1] = entry end
end
if #nobodys == 0 then return 0 end
return redis.call('ZREM', order, unpack(nobodys))
