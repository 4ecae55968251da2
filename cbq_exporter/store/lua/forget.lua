-- Forget what was remembered of callbacks that went back to pending and were claimed by somebody else.
--
-- KEYS  1 returned  2 order
-- ARGV  pairs: SHA-1, the memory as it was seen
-- Returns how many were forgotten: one that has changed since is kept
local returned, order = KEYS[1], KEYS[2]

local forgotten = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', returned, ARGV[i]) == ARGV[i + 1] then
    local turn = string.match(ARGV[i + 1], '|(%x+:%d+)|')
    if turn then redis.call('ZREMRANGEBYLEX', order, '[' .. turn .. '|', '(' .. turn .. '}') end
    forgotten = forgotten + redis.call('HDEL', returned, ARGV[i])
  end
end
return forgotten
