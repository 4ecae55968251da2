-- Forget what was remembered of callbacks that went back to pending and were claimed by somebody else.
--
-- KEYS  1 returned
-- ARGV  pairs: SHA-1, the memory as it was seen
-- Returns how many were forgotten: one that has changed since is kept
local returned = KEYS[1]

local forgotten = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', returned, ARGV[i]) == ARGV[i + 1] then
    forgotten = forgotten + redis.call('HDEL', returned, ARGV[i])
  end
end
return forgotten
