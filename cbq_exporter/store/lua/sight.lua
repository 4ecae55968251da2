-- Remember since when callbacks are in processing that no lease of ours holds.
--
-- KEYS  1 sightings
-- ARGV  1 how long all of them are kept without another look, ms  2 how many have ended; then those, then the new ones
-- Returns how many began; one that is there already keeps its time
local sightings, keep_ms, ended = KEYS[1], ARGV[1], tonumber(ARGV[2])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- First what frees, or nothing: after a write, a full memory does not refuse the next.
redis.call('ZREM', sightings, '', unpack(ARGV, 3, 2 + ended))
local began = {}
for i = 3 + ended, #ARGV do
  began[#began + 1] = now
  began[#began + 1] = ARGV[i]
end
local count = #began > 0 and redis.call('ZADD', sightings, 'NX', unpack(began)) or 0
redis.call('PEXPIRE', sightings, keep_ms)
return count
