-- Decide whether an alert may cause its action now, and write down that it will, before it does.
--
-- KEYS  1 alerts  2 alert_times  3 alerts_open  4 alerts_paused  5 actions of the route  6 cooldown of its target
-- ARGV  1 id of the alert  2 what is to be done, JSON  3 cooldown, ms  4 most actions in an hour
--       5 after so many ms the same alert may act again; '' never  6 how long alerts are kept, ms  7 most of them
--       8 '1': only say what would be
-- Returns {'accepted', 0}, or why not, and for how many ms yet (-1: it is not known):
-- {'paused', ms} | {'duplicate', ms} | {'cooldown', ms} | {'capped', ms}
--
-- Limits hold as they are configured now: a shorter cooldown holds at once. What was done in the future, because the
-- clock was set back since, limits nothing.
local alerts, times, open, paused, actions, cooldown = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id, intent, cooldown_ms, most_an_hour = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local again_ms, keep_ms, most, only_look = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8] == '1'
local hour = 3600000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local pause_left = redis.call('PTTL', paused)
if pause_left ~= -2 then return {'paused', pause_left} end

-- What ended without being done may be tried again when Alertmanager repeats it.
local known = redis.call('HGET', alerts, id)
local state = known and string.match(known, '^%S+')
if state == 'open' or (not again_ms and (state == 'done' or state == 'dry_run')) then return {'duplicate', -1} end
if state == 'done' or state == 'dry_run' then
  local at = tonumber(redis.call('ZSCORE', times, id) or 0)
  if at <= now and at + again_ms > now then return {'duplicate', at + again_ms - now} end
end

local since = tonumber(string.match(redis.call('GET', cooldown) or '', ':(%d+)$'))
if since and since <= now and since + cooldown_ms > now then return {'cooldown', since + cooldown_ms - now} end
local nth = redis.call('ZREVRANGEBYSCORE', actions, now, '-inf', 'WITHSCORES', 'LIMIT', most_an_hour - 1, 1)
if nth[2] and nth[2] + hour > now then return {'capped', nth[2] + hour - now} end
if only_look then return {'accepted', 0} end

-- First what frees: after it, a full memory does not refuse the rest.
redis.call('ZREMRANGEBYSCORE', actions, '-inf', now - hour)
local old = redis.call('ZRANGEBYSCORE', times, '-inf', now - keep_ms, 'LIMIT', 0, 100)
local surplus = redis.call('ZCARD', times) - most
if surplus >= 0 then
  for _, oldest in ipairs(redis.call('ZRANGE', times, 0, math.min(surplus, 100))) do old[#old + 1] = oldest end
end
for _, gone in ipairs(old) do
  redis.call('HDEL', alerts, gone)
  redis.call('ZREM', times, gone)
  redis.call('ZREM', open, gone)
end
redis.call('HSET', alerts, id, 'open 0 ' .. intent)
redis.call('ZADD', times, now, id)
redis.call('ZADD', actions, now, id .. ':' .. now)
redis.call('PEXPIRE', actions, hour)
if cooldown_ms > 0 then redis.call('SET', cooldown, id .. ':' .. now, 'PX', cooldown_ms) end
redis.call('ZADD', open, now, id)
return {'accepted', 0}
