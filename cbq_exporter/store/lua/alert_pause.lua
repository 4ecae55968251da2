-- Let alerts cause nothing, until it is ended or for a time.
--
-- KEYS  1 alerts_paused
-- ARGV  1 note, JSON  2 for how long, ms; '' without an end
-- Returns 1
local paused, note, for_ms = KEYS[1], ARGV[1], ARGV[2]

if for_ms == '' then
  redis.call('SET', paused, note)
else
  redis.call('SET', paused, note, 'PX', for_ms)
end
return 1
