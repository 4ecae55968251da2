-- Say that whoever has the turn is still at it.
--
-- KEYS  1 alerts_turn
-- ARGV  1 token  2 how long the turn lasts from now, ms
-- Returns 1 | 0 it is not ours any more
local turn, token, lasts_ms = KEYS[1], ARGV[1], ARGV[2]

if redis.call('GET', turn) ~= token then return 0 end
return redis.call('PEXPIRE', turn, lasts_ms)
