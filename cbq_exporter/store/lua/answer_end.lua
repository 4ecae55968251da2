-- Put the answer in its place, for as long as the place is kept.
--
-- KEYS  1 the answer's own key
-- ARGV  1 what was kept there at the begin  2 the answer
-- Returns 1 kept | 0 the place is gone, or is somebody else's
local answer, started, ended = KEYS[1], ARGV[1], ARGV[2]

if redis.call('GET', answer) ~= started then return 0 end
redis.call('SET', answer, ended, 'KEEPTTL')
return 1
