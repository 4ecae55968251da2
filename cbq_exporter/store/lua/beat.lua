-- Say that this daemon lives, and forget those that have not said so for long.
--
-- KEYS  1 daemons
-- ARGV  1 our lock value  2 how long the others are kept, ms  3 most of them
local daemons, value, keep_ms, most = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- First what frees: after it, a full memory does not refuse the rest.
redis.call('ZREMRANGEBYSCORE', daemons, '-inf', now - keep_ms)
if redis.call('ZADD', daemons, now, value) == 1 then
  redis.call('ZREMRANGEBYRANK', daemons, 0, -most - 1)
end
redis.call('PEXPIRE', daemons, keep_ms)
return now
