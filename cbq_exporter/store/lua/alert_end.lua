-- Write down what came of an alert's action, and end the turn.
--
-- KEYS  1 alerts  2 alert_times  3 alerts_open  4 alerts_turn  5 actions of the route  6 cooldown of its target
-- ARGV  1 token  2 id of the alert  3 state, a space, times taken, a space, JSON  4 '1': it counts for no limit
-- Returns 1 | 0 the turn is not ours any more: nothing is changed
local alerts, times, open, turn, actions, cooldown = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local token, id, ended, is_free = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'

if redis.call('GET', turn) ~= token then return 0 end
-- First what frees: after it, a full memory does not refuse the rest.
redis.call('DEL', turn)
if redis.call('HEXISTS', alerts, id) == 1 then
  if is_free then
    local action = id .. ':' .. (redis.call('ZSCORE', times, id) or '')
    redis.call('ZREM', actions, action)
    if redis.call('GET', cooldown) == action then redis.call('DEL', cooldown) end
  end
  redis.call('HSET', alerts, id, ended)
end
redis.call('ZREM', open, id)
return 1
