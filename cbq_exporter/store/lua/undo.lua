-- Put a part of what a reset has moved back in front of what arrived since: called again and again until all is.
--
-- KEYS  the same of the queue and of the trash:
--       1 pending  2 processing  3 leases  4 retry  5 dead  6 records  7 payloads  8 returned
--       9 stats:queued  10 stats:sent  11 stats:failed
--       12 to 22 these keys in the trash
--       23 trash  24 trash_notes  25 order  26 that of the trash
--       27 and more: keys of the trash that are not put back
-- ARGV  1 id of the reset  2 most callbacks  3 most bytes  4 TTL of the stats, s
-- Returns {1 there is more | 0 all is back | -1 it is not in the trash (any more), callbacks put back}
--
-- Each callback is in the trash or in the queue whenever this ends: it may be stopped, repeated, and run twice at
-- once. What is new is written before what is old is cleared. Where the queue has no such key, the whole is renamed;
-- not where callbacks have turns (claim.lua): each has its place in the order again when it is back itself.
local pending, processing, leases, retry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local dead, records, payloads, returned = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local t_pending, t_processing, t_leases, t_retry = KEYS[12], KEYS[13], KEYS[14], KEYS[15]
local t_dead, t_records, t_payloads, t_returned = KEYS[16], KEYS[17], KEYS[18], KEYS[19]
local trash, notes, order, t_order = KEYS[23], KEYS[24], KEYS[25], KEYS[26]
local id, most, budget, stats_ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

-- A foreign type at one of the keys ends the script here, before anything is written.
for i = 1, 2 do redis.call('LLEN', KEYS[i]) end
for i = 3, 5 do redis.call('ZCARD', KEYS[i]) end
for i = 6, 8 do redis.call('HLEN', KEYS[i]) end
redis.call('HLEN', notes)
redis.call('ZCARD', order)
local in_order = redis.call('EXISTS', order, t_order) > 0

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local kept_until = redis.call('ZSCORE', trash, id)
if not kept_until or tonumber(kept_until) <= now then return {-1, 0} end

-- From now on it does not expire: what is half back is never lost. (These add nothing: after one of them, a full
-- memory does not refuse the rest.)
for i = 12, 22 do redis.call('PERSIST', KEYS[i]) end
redis.call('PERSIST', t_order)
redis.call('ZADD', trash, 'inf', id)

local n, bytes = 0, 0
local function is_full() return n >= most or bytes >= budget end

-- It costs as much as all the rest of a callback: with turns, half as many go at once.
local function enter(turn, rest)
  bytes = bytes + 2 * budget / most
  redis.call('ZREMRANGEBYLEX', order, '[' .. turn .. '|', '(' .. turn .. '}')
  redis.call('ZADD', order, 0, turn .. '|' .. rest)
end

local function all_of(from, to)
  if redis.call('EXISTS', from) == 1 and redis.call('EXISTS', to) == 0 then
    redis.call('RENAME', from, to)
  end
end

-- Retries and dead letters: ids are never used twice.
local turns_wait = in_order and redis.call('EXISTS', t_retry) == 1
if not turns_wait and redis.call('EXISTS', retry, dead, records, payloads) == 0 then
  n = n + redis.call('ZCARD', t_retry) + redis.call('ZCARD', t_dead)
  all_of(t_records, records)
  all_of(t_payloads, payloads)
  all_of(t_retry, retry)
  all_of(t_dead, dead)
else
  for _, pair in ipairs({{t_retry, retry}, {t_dead, dead}}) do
    local from, to = pair[1], pair[2]
    while not is_full() do
      local first = redis.call('ZRANGE', from, 0, 0, 'WITHSCORES')
      if #first == 0 then break end
      local one = first[1]
      local record, payload = redis.call('HGET', t_records, one), redis.call('HGET', t_payloads, one)
      if record then redis.call('HSET', records, one, record) end
      if payload then redis.call('HSET', payloads, one, payload) end
      local turn = turns_wait and to == retry and string.match(record or '', '"turn":"(%x+:%d+)"')
      if turn then enter(turn, one .. '|-') end
      redis.call('ZADD', to, first[2], one)
      redis.call('ZREM', from, one)
      redis.call('HDEL', t_records, one)
      redis.call('HDEL', t_payloads, one)
      n, bytes = n + 1, bytes + (payload and #payload or 0)
    end
  end
end
if is_full() then return {1, n} end

-- What is known of callbacks in pending, before they are there.
if not in_order then all_of(t_returned, returned) end
while redis.call('EXISTS', t_returned) == 1 do
  local page = redis.call('HRANDFIELD', t_returned, 100, 'WITHVALUES')
  for i = 1, #page, 2 do
    local turn = in_order and string.match(page[i + 1], '|(%x+:%d+)|')
    if redis.call('HSETNX', returned, page[i], page[i + 1]) == 1 and turn then
      enter(turn, '-|' .. page[i])
    end
    redis.call('HDEL', t_returned, page[i])
  end
  bytes = bytes + budget / 10
  if is_full() then return {1, n} end
end

-- Behind those being sent now: a walk from the tail that is under way would miss what is put in front of it.
if redis.call('EXISTS', processing) == 0 then
  n = n + redis.call('LLEN', t_processing)
  all_of(t_processing, processing)
end
while not is_full() do
  local payload = redis.call('LMOVE', t_processing, processing, 'LEFT', 'RIGHT')
  if not payload then break end
  n, bytes = n + 1, bytes + #payload
end
if is_full() then return {1, n} end
if not in_order then all_of(t_leases, leases) end
while true do
  local page = redis.call('ZRANGE', t_leases, 0, 99, 'WITHSCORES')
  if #page == 0 then break end
  for i = 1, #page, 2 do
    local rest, turn = string.match(page[i], '^(.+)|(%x+:%d+)$')
    if turn then enter(turn, rest) end
    redis.call('ZADD', leases, page[i + 1], page[i])
    redis.call('ZREM', t_leases, page[i])
  end
  bytes = bytes + budget / 10
  if is_full() then return {1, n} end
end

-- Where little has arrived since, it goes behind what is put back, and the whole is renamed.
local waiting = redis.call('LLEN', t_pending)
if waiting > 0 and redis.call('LLEN', pending) <= most then
  local moved = 0
  while not is_full() do
    local payload = redis.call('LMOVE', pending, t_pending, 'LEFT', 'RIGHT')
    if not payload then break end
    moved, bytes = moved + 1, bytes + #payload
  end
  if redis.call('EXISTS', pending) == 0 then
    redis.call('RENAME', t_pending, pending)
    n = n + waiting
  else
    for _ = 1, moved do redis.call('LMOVE', t_pending, pending, 'RIGHT', 'LEFT') end
    bytes = 0
  end
end
while not is_full() do
  local payload = redis.call('LMOVE', t_pending, pending, 'RIGHT', 'LEFT')
  if not payload then break end
  n, bytes = n + 1, bytes + #payload
end
if redis.call('EXISTS', t_pending) == 1 then return {1, n} end

-- What is wrong with a statistic stops nothing.
for i = 9, 11 do
  local count = redis.pcall('GET', KEYS[i + 11])
  if type(count) == 'string' and type(redis.pcall('INCRBY', KEYS[i], count)) == 'number' then
    redis.call('EXPIRE', KEYS[i], stats_ttl)
  end
end

redis.call('ZREM', trash, id)
redis.call('HDEL', notes, id)
-- What is left: the lock, marks of a time that is over, and what belongs to no callback.
for i = 12, #KEYS do
  if i < 23 or i > 25 then redis.call('UNLINK', KEYS[i]) end
end
return {0, n}
