-- Write one entry of the audit.
--
-- KEYS  1 audit
-- ARGV  1 about how many entries to keep; then fields and values
-- Returns the entry's id: the store's clock in ms, and a number
local audit, most = KEYS[1], ARGV[1]

-- First a write that adds nothing: after one, a full memory does not refuse the entry that what empties it needs.
redis.call('XTRIM', audit, 'MAXLEN', '~', most)
return redis.call('XADD', audit, '*', unpack(ARGV, 2))
