-- Keep a place for the answer of a request that is about to be carried out, unless there is one already.
--
-- KEYS  1 answers  2 the answer's own key
-- ARGV  1 the answer's id  2 what to keep until the answer is known  3 time to keep it, ms  4 most answers to keep
-- Returns {1} kept | {0, what is there already} | {-1} too many are kept
local answers, answer = KEYS[1], KEYS[2]
local id, started, keep_ms, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local there = redis.call('GET', answer)
if there then return {0, there} end
redis.call('ZREMRANGEBYSCORE', answers, '-inf', now)
if redis.call('ZCARD', answers) >= most then return {-1} end
redis.call('ZADD', answers, now + keep_ms, id)
redis.call('PEXPIRE', answers, keep_ms)
redis.call('SET', answer, started, 'PX', keep_ms)
return {1}
