-- Move the deadlines of leases that are still held.
--
-- KEYS  1 leases
-- ARGV  1 lease, ms; then the leases
-- Returns for each lease 1 extended | 0 not held any more
local leases, lease_ms = KEYS[1], tonumber(ARGV[1])

local time = redis.call('TIME')
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + lease_ms

local result = {}
for first = 2, #ARGV, 1000 do
  local last = math.min(first + 999, #ARGV)
  local pairs_ = {}
  for i, score in ipairs(redis.call('ZMSCORE', leases, unpack(ARGV, first, last))) do
    local at = first + i - 1
    result[at - 1] = score and 1 or 0
    if score then
      pairs_[#pairs_ + 1] = deadline
      pairs_[#pairs_ + 1] = ARGV[at]
    end
  end
  if #pairs_ > 0 then redis.call('ZADD', leases, unpack(pairs_)) end
end
return result
