-- Take due retries and pending callbacks into processing, each under a lease of its own.
--
-- KEYS  1 lock  2 pending  3 processing  4 leases  5 retry  6 records  7 payloads  8 returned
--       9 fence  10 last_send_time  11 order; only where callbacks of one key go one after the other
-- ARGV  1 our lock value  2 lock TTL, ms  3 most callbacks  4 most bytes (one callback may exceed it)
--       5 lease, ms  6 most of `count` that may come from pending  7 TTL of last_send_time, s
--       8 our time, ms, past which nobody waits for the answer any more; 0 where it is not known
--       9 with `order`: the field of an item that is its key
-- Returns {1, now_ms, pending left, due time of the next retry or -1, from retry, left pending for the first time
--         (those set aside too), lease, payload, lease, ...}
--         or {0} where the lock is not ours (any more), or where this comes too late: a server that hung
--         may find many claims when it goes on.
--
-- Whatever could end the script is tried before anything is moved: an error never leaves a callback without a lease.
-- Then leases are written first, except those of callbacks that are moved to be read.
--
-- Order. A callback that leaves pending for the first time is given its turn, "<key>:<place>", and keeps it until it
-- has ended: `order` has "<turn>|<lease, without the turn>" for each, so that those of one key stand together, in
-- their order. One is taken where every other in front of it is taken by this very claim; else it goes to retry, to
-- be woken when its turn comes (settle.lua) or to ask again. What stands in front and is nowhere any more, because
-- somebody has deleted our keys, is cleared away when it is in the way.
local lock, pending, processing, leases = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local retry, records, payloads, returned = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local fence, last_send, order = KEYS[9], KEYS[10], KEYS[11]
local value, lock_ttl = ARGV[1], ARGV[2]
local count, budget, lease_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local from_pending, last_send_ttl, order_by = tonumber(ARGV[6]), ARGV[7], ARGV[9]

if redis.call('GET', lock) ~= value then
  return {0}
end
-- A foreign type at one of the keys ends the script here or while reading, before anything is moved.
redis.call('LLEN', processing)
redis.call('ZCARD', leases)
redis.call('HLEN', records)
redis.call('HLEN', payloads)
if order then redis.call('ZCARD', order) end
local remembered = redis.call('HLEN', returned) > 0

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local latest = tonumber(ARGV[8])
if latest > 0 and now > latest then
  return {0}
end
redis.call('PEXPIRE', lock, lock_ttl)
redis.call('ZADD', leases, 'XX', 0, '-') -- changes nothing; whoever may not write leases shall not move either
local token = redis.call('INCR', fence)

local KEY_LENGTH, TURN = 20, '%x+:%d+'
local MOST_OF_A_KEY = 16 -- in one claim: they go one after the other and take room from others
local ASKS_AGAIN_MS = 60000 -- should nobody wake it

local out, scores, n, bytes = {1, now, 0, -1, 0, 0}, {}, 0, 0

local moved, taken, is_aside = 0, {}, {} -- those from pending: in processing by now, to be moved there, elsewhere
local aside = 0 -- callbacks moved from pending to retry
local new = 0 -- callbacks that were never taken from pending before

local function fits(size)
  return n + aside < count and (n + aside == 0 or bytes + size <= budget)
end

-- Texts made once: for each callback they would cost as much as its SHA-1.
local deadline = string.format('%d', now + lease_ms)
local claim_id, new_history = string.format('%013d-%d', now, token), string.format('0|0|%013d', now)

-- Without `first` it is claimed for the first time.
local function rest_of_lease(fp, attempts, recoveries, first)
  local history = first and string.format('%d|%d|%013d', attempts, recoveries, first) or new_history
  return string.format('%s-%d|%s|%s', claim_id, n + aside, fp, history)
end

local function enter(turn, lease, is_new)
  if not is_new then redis.call('ZREMRANGEBYLEX', order, '[' .. turn .. '|', '(' .. turn .. '}') end
  redis.call('ZADD', order, 0, turn .. '|' .. lease)
end

local taken_of = {} -- by key, how many
local function take(payload, fp, attempts, recoveries, first, turn, is_new)
  n = n + 1
  bytes = bytes + #payload
  local lease = rest_of_lease(fp, attempts, recoveries, first)
  if turn then
    enter(turn, lease, is_new)
    local key = string.sub(turn, 1, KEY_LENGTH)
    taken_of[key] = (taken_of[key] or 0) + 1
    lease = lease .. '|' .. turn
  end
  scores[2 * n - 1], scores[2 * n] = deadline, lease
  out[5 + 2 * n], out[6 + 2 * n] = lease, payload
end

-- The text or the number at the head of the item, where producers put it; nil: it takes reading all of it.
local order_name = order and cjson.encode(order_by)
local function key_at_head(payload)
  local from, to = string.find(payload, order_name, 1, true)
  if not from or from < 2 or string.sub(payload, from - 1, from - 1) == '\\' then return nil end
  if string.find(string.sub(payload, 2, from - 1), '[{%[]') then return nil end -- it may be one within another
  local at = string.match(payload, '^%s*:%s*()', to + 1)
  if not at then return nil end
  local text = string.match(payload, '^"([^"\\]*)"', at)
  return text or tonumber(string.match(payload, '^(%-?%d+)[%s,}]', at))
end

local function key_of(payload)
  local readable, item = pcall(cjson.decode, payload)
  if not readable then -- halves of surrogate pairs, which an item may have
    readable, item = pcall(cjson.decode, (string.gsub(payload, '\\u[dD][89a-fA-F]%x%x', '?')))
  end
  return readable and type(item) == 'table' and item[order_by]
end

local given = 0
local function new_turn(payload)
  local key = key_at_head(payload)
  if key == nil then key = key_of(payload) end
  if type(key) == 'number' then
    key = string.format('n%.17g', key)
  elseif type(key) == 'string' then
    key = 's' .. key
  else
    return nil
  end
  given = given + 1
  return string.format('%s:%013d%06d', string.sub(redis.sha1hex(key), 1, KEY_LENGTH), token, given)
end

-- Whether `its_turn` is that of a callback in pending. One that went back there and was taken by somebody else leaves
-- its memory: it counts until nothing is in pending.
local function is_in_pending(its_turn, fp)
  local memory = redis.call('HGET', returned, fp)
  return memory and string.find(memory, '|' .. its_turn .. '|', 1, true)
    and redis.call('LLEN', pending) > #taken + aside
end

-- When what stands in front of `turn` will be tried, ms; nil: nothing does.
local function in_front_of(turn)
  local key = string.sub(turn, 1, KEY_LENGTH)
  local taken = taken_of[key] or 0
  if taken >= MOST_OF_A_KEY then return now end
  while true do
    local first = redis.call('ZRANGEBYLEX', order, '[' .. key .. ':', '(' .. turn, 'LIMIT', taken, 1)[1]
    if not first then return nil end
    local its_turn, id, rest = string.match(first, '^([^|]+)|([^|]+)|(.+)$')
    if its_turn then
      if redis.call('ZSCORE', leases, id .. '|' .. rest .. '|' .. its_turn) then return now end
      local due = redis.call('ZSCORE', retry, id)
      if due then return math.max(now, tonumber(due)) end
      if is_in_pending(its_turn, string.sub(rest, 1, 40)) then return now end
    end
    redis.call('ZREM', order, first)
  end
end

local function set_aside(payload, fp, attempts, recoveries, first, turn, is_new, due)
  aside = aside + 1
  bytes = bytes + #payload
  local lease = rest_of_lease(fp, attempts, recoveries, first)
  local id = string.match(lease, '^[^|]+')
  enter(turn, lease, is_new)
  redis.call('HSET', records, id, string.format(
    '{"attempts":%d,"recoveries":%d,"first_ms":%d,"turn":"%s","size":%d,"kind":"waiting"}',
    attempts or 0, recoveries or 0, first or now, turn, #payload))
  redis.call('HSET', payloads, id, payload)
  redis.call('ZADD', retry, due + ASKS_AGAIN_MS, id)
end

local function next_due()
  return tonumber(redis.call('ZRANGE', retry, 0, 0, 'WITHSCORES')[2] or -1)
end

local function wait_in_order(id, turn)
  local record = redis.call('HGET', records, id)
  local _, fields = string.find(record or '', '^%s*{%s*"')
  redis.call('HSET', records, id, string.format(
    fields and '{"turn":"%s","%s' or '{"turn":"%s"}', turn, fields and string.sub(record, fields + 1)))
  redis.call('ZADD', order, 0, turn .. '|' .. id .. '|-')
end

local due, ended, first_due = {}, {}, next_due()
local function take_retries()
  if first_due < 0 or first_due > now then return end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', retry, '-inf', now, 'LIMIT', 0, count - n)) do
    if not fits(redis.call('HSTRLEN', payloads, id)) then break end
    -- A record that is missing or broken must not stop the queue: the callback starts anew.
    local _, record = pcall(cjson.decode, redis.call('HGET', records, id) or '')
    if type(record) ~= 'table' then record = {} end
    local turn = order and type(record.turn) == 'string' and string.match(record.turn, TURN) or nil
    local waits = turn and in_front_of(turn)
    local payload = not waits and redis.call('HGET', payloads, id)
    if payload and order and not turn then -- it waited here before there was an order
      turn = new_turn(payload)
      waits = turn and in_front_of(turn)
      if waits then wait_in_order(id, turn) end
    end
    if waits then
      redis.call('ZADD', retry, waits + ASKS_AGAIN_MS, id)
    else
      if payload then
        local function number(field, default)
          local known = record[field]
          return type(known) == 'number' and known >= 0 and known < 1e13 and math.floor(known) or default
        end
        local first = number('first_ms', now)
        take(payload, redis.sha1hex(payload), number('attempts', 0), number('recoveries', 0), first, turn)
        due[#due + 1] = payload
      end
      ended[#ended + 1] = id
    end
  end
end

local function take_one_pending(payload, is_moved)
  local fp = redis.sha1hex(payload)
  local attempts, recoveries, first, turn, is_new
  local memory = remembered and redis.call('HGET', returned, fp)
  if memory then
    attempts, recoveries, first = string.match(memory, '^(%d+)|(%d+)|(%d+)')
    turn = order and string.match(memory, '^%d+|%d+|%d+|(' .. TURN .. ')|')
    redis.call('HDEL', returned, fp)
  else
    new = new + 1
  end
  if order and not turn then
    turn, is_new = new_turn(payload), true
  end
  local waits = turn and in_front_of(turn)
  if waits then
    is_aside[#taken + aside + 1] = true
    set_aside(payload, fp, attempts, recoveries, first, turn, is_new, waits)
  else
    take(payload, fp, attempts, recoveries, first, turn, is_new)
    if is_moved then
      moved = moved + 1
    else
      taken[#taken + 1] = payload
    end
  end
end

-- By name: as values, large ones would go to the append-only file and to replicas once more.
local function move_next()
  return redis.call('LMOVE', pending, processing, 'LEFT', 'RIGHT')
end

local function are_large(most)
  return bytes > most * (n + aside)
end

local BY_NAME, ALONE = 4096, 262144 -- bytes of a payload, on average
local function take_pending()
  -- The first tells how large they are. In small pages, because sizes differ: after small ones may come images of
  -- a megabyte, and all of a page is read.
  local page_size = 1
  while moved + #taken + aside < from_pending and n + aside < count do
    if not order and #taken == 0 and (n == 0 or are_large(BY_NAME)) then
      -- Moving brings it here too. What a script is given costs a millisecond for a megabyte, so: not twice.
      local payload = move_next()
      if not payload then return end
      if not fits(#payload) then
        redis.call('LMOVE', processing, pending, 'RIGHT', 'LEFT')
        return
      end
      take_one_pending(payload, true)
    else
      local looked_at = #taken + aside
      local want = math.min(page_size, from_pending - moved - looked_at, count - n - aside)
      local page = redis.call('LRANGE', pending, looked_at, looked_at + want - 1)
      for _, payload in ipairs(page) do
        if not fits(#payload) then return end
        take_one_pending(payload)
      end
      if #page < want then return end
    end
    local more = math.floor((budget - bytes) * (n + aside) / bytes)
    -- What does not fit would be read in vain: what stands behind is for the next claim.
    if more < 1 and are_large(ALONE) then return end
    page_size = math.max(1, math.min(64, more))
  end
end

-- Retries go first at every other claim and pending at the others: neither can starve the other.
if token % 2 == 0 then
  take_retries()
  take_pending()
else
  take_pending()
  take_retries()
end

-- Lua's stack bounds how many arguments one call may carry.
local function in_chunks(command, key, values)
  for from = 1, #values, 1000 do
    redis.call(command, key, unpack(values, from, math.min(from + 999, #values)))
  end
end

if n > 0 then
  in_chunks('ZADD', leases, scores)
  in_chunks('RPUSH', processing, due)
  if are_large(BY_NAME) then
    for place = 1, #taken + aside do
      if is_aside[place] then
        redis.call('LPOP', pending)
      else
        move_next()
      end
    end
  elseif #taken + aside > 0 then
    in_chunks('RPUSH', processing, taken)
    redis.call('LTRIM', pending, #taken + aside, -1)
  end
  redis.call('SET', last_send, string.format('%d.%06d', time[1], time[2]), 'EX', last_send_ttl)
elseif aside > 0 then
  redis.call('LTRIM', pending, aside, -1)
end
in_chunks('ZREM', retry, ended)
in_chunks('HDEL', payloads, ended)
in_chunks('HDEL', records, ended)

out[3] = redis.call('LLEN', pending)
out[4] = (order or #ended > 0) and next_due() or first_due
out[5], out[6] = #due, new
return out
