-- Note that the circuit of a destination is not closed; only for the holder of the send lock.
--
-- KEYS  1 lock  2 breakers
-- ARGV  1 our lock value  2 destination  3 phase  4 for how much longer, ms  5 how often it opened in a row
--       6 most destinations
-- Returns 1 noted | 0 the lock is not ours | -1 there are too many
local lock, breakers = KEYS[1], KEYS[2]
local value, name, phase = ARGV[1], ARGV[2], ARGV[3]
local left_ms, openings, most = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])

if redis.call('GET', lock) ~= value then return 0 end
local known = redis.call('HGET', breakers, name)
if not known and redis.call('HLEN', breakers) >= most then return -1 end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local since = known and string.match(known, ' (%d+)$') or string.format('%d', now)
redis.call('HSET', breakers, name, string.format('%s %d %s %s', phase, now + left_ms, openings, since))
return 1
