-- Make callbacks due that wait in retry: for their destination, or for their next attempt.
--
-- KEYS  1 retry
-- ARGV  the ids, in the order in which they are to come
-- Returns for each id 1 made due | 0 it does not wait there, or is due already
--
-- They keep their order: each is due a little after the one before, and after what is due already, which may be of
-- a call within the same millisecond. None is later than it was.
local retry = KEYS[1]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local latest = redis.call('ZREVRANGEBYSCORE', retry, now, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
local from = math.max(now - 1, tonumber(latest or 0))

local result, made = {}, {}
for i, due in ipairs(redis.call('ZMSCORE', retry, unpack(ARGV))) do
  result[i] = due and tonumber(due) > now and 1 or 0
  if result[i] == 1 then
    made[#made + 1] = string.format('%.3f', from + (#made + 2) / 2000)
    made[#made + 1] = ARGV[i]
  end
end
if #made > 0 then redis.call('ZADD', retry, 'XX', unpack(made)) end
return result
