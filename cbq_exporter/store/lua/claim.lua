-- Take due retries and pending callbacks into processing, each under a lease of its own.
--
-- KEYS  1 lock  2 pending  3 processing  4 leases  5 retry  6 records  7 payloads  8 returned
--       9 fence  10 last_send_time
-- ARGV  1 our lock value  2 lock TTL, ms  3 most callbacks  4 most bytes (one callback may exceed it)
--       5 lease, ms  6 most of `count` that may come from pending  7 TTL of last_send_time, s
--       8 our time, ms, past which nobody waits for the answer any more; 0 where it is not known
-- Returns {1, now_ms, pending left, due time of the next retry or -1, from retry, lease, payload, lease, ...}
--         or {0} where the lock is not ours (any more), or where this comes too late: a server that hung
--         may find many claims when it goes on.
--
-- Leases are written before anything is moved: an error in between leaves a lease without a callback, which
-- is swept, and never a callback without a lease.
local lock, pending, processing, leases = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local retry, records, payloads, returned = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local fence, last_send = KEYS[9], KEYS[10]
local value, lock_ttl = ARGV[1], ARGV[2]
local count, budget, lease_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local from_pending, last_send_ttl = tonumber(ARGV[6]), ARGV[7]

if redis.call('GET', lock) ~= value then
  return {0}
end
-- A foreign type at one of the keys ends the script here or while reading, before anything is moved.
redis.call('LLEN', processing)
redis.call('ZCARD', leases)
local remembered = redis.call('HLEN', returned) > 0

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local latest = tonumber(ARGV[8])
if latest > 0 and now > latest then
  return {0}
end
redis.call('PEXPIRE', lock, lock_ttl)
local token = redis.call('INCR', fence)

local out, scores, n, bytes = {1, now, 0, -1, 0}, {}, 0, 0

local function fits(size)
  return n < count and (n == 0 or bytes + size <= budget)
end

local function take(payload, fp, attempts, recoveries, first)
  n = n + 1
  bytes = bytes + #payload
  local lease = string.format('%013d-%d-%d|%s|%d|%d|%013d', now, token, n, fp, attempts, recoveries, first)
  scores[2 * n - 1], scores[2 * n] = now + lease_ms, lease
  out[4 + 2 * n], out[5 + 2 * n] = lease, payload
end

local function next_due()
  return tonumber(redis.call('ZRANGE', retry, 0, 0, 'WITHSCORES')[2] or -1)
end

local due, ended, first_due = {}, {}, next_due()
local function take_retries()
  if first_due < 0 or first_due > now then return end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', retry, '-inf', now, 'LIMIT', 0, count - n)) do
    if not fits(redis.call('HSTRLEN', payloads, id)) then break end
    local payload = redis.call('HGET', payloads, id)
    if payload then
      -- A record that is missing or broken must not stop the queue: the callback starts anew.
      local _, record = pcall(cjson.decode, redis.call('HGET', records, id) or '')
      if type(record) ~= 'table' then record = {} end
      local function number(field, default)
        local known = record[field]
        return type(known) == 'number' and known >= 0 and known < 1e13 and math.floor(known) or default
      end
      take(payload, redis.sha1hex(payload), number('attempts', 0), number('recoveries', 0), number('first_ms', now))
      due[#due + 1] = payload
    end
    ended[#ended + 1] = id
  end
end

local taken = {}
local function take_pending()
  -- The first tells how large they are. In small pages, because sizes differ: after small ones may come images of
  -- a megabyte, and all of a page is read.
  local page_size = 1
  while #taken < from_pending and n < count do
    local want = math.min(page_size, from_pending - #taken, count - n)
    local page = redis.call('LRANGE', pending, #taken, #taken + want - 1)
    for _, payload in ipairs(page) do
      if not fits(#payload) then return end
      local fp = redis.sha1hex(payload)
      local attempts, recoveries, first
      local memory = remembered and redis.call('HGET', returned, fp)
      if memory then
        attempts, recoveries, first = string.match(memory, '^(%d+)|(%d+)|(%d+)')
        redis.call('HDEL', returned, fp)
      end
      take(payload, fp, attempts or 0, recoveries or 0, first or now)
      taken[#taken + 1] = payload
    end
    if #page < want then return end
    page_size = math.max(1, math.min(64, math.floor((budget - bytes) * n / bytes)))
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
  if bytes > 4096 * n then
    -- Large ones are moved by name: as values they would go to the append-only file and to replicas once more.
    for _ = 1, #taken do redis.call('LMOVE', pending, processing, 'LEFT', 'RIGHT') end
  elseif #taken > 0 then
    in_chunks('RPUSH', processing, taken)
    redis.call('LTRIM', pending, #taken, -1)
  end
  redis.call('SET', last_send, string.format('%d.%06d', time[1], time[2]), 'EX', last_send_ttl)
end
in_chunks('ZREM', retry, ended)
in_chunks('HDEL', payloads, ended)
in_chunks('HDEL', records, ended)

out[3] = redis.call('LLEN', pending)
out[4] = #ended > 0 and next_due() or first_due
out[5] = #due
return out
