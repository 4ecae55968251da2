-- Take due retries, then pending callbacks, into processing, each under a lease of its own.
--
-- KEYS  1 lock  2 pending  3 processing  4 leases  5 retry  6 records  7 payloads  8 returned
--       9 fence  10 last_send_time
-- ARGV  1 our lock value  2 lock TTL, ms  3 most callbacks  4 most bytes (one callback may exceed it)
--       5 lease, ms  6 most of `count` that may come from pending  7 TTL of last_send_time, s
--       8 a first guess of how many callbacks of pending to read at once
-- Returns {1, now_ms, pending left, due time of the next retry or -1, from retry, lease, payload, lease, ...}
--         or {0} where the lock is not ours (any more).
--
-- New places are written before old ones are cleared: an error in between (a foreign type, a missing
-- permission) can leave a copy too many, never one too few.
local lock, pending, processing, leases = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local retry, records, payloads, returned = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local fence, last_send = KEYS[9], KEYS[10]
local value, lock_ttl = ARGV[1], ARGV[2]
local count, budget, lease_ms = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local from_pending, last_send_ttl = tonumber(ARGV[6]), ARGV[7]

if redis.call('GET', lock) ~= value then
  return {0}
end
redis.call('PEXPIRE', lock, lock_ttl)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local token = redis.call('INCR', fence)
local remembered = redis.call('HLEN', returned) > 0

local out, items, scores = {1, now, 0, -1, 0}, {}, {}
local bytes = 0

local function take(payload, attempts, recoveries, first, fp)
  local n = #items + 1
  local lease = string.format('%013d-%d-%d|%s|%d|%d|%013d', now, token, n,
    fp or redis.sha1hex(payload), attempts, recoveries, first)
  bytes = bytes + #payload
  items[n] = payload
  scores[2 * n - 1] = now + lease_ms
  scores[2 * n] = lease
  out[4 + 2 * n] = lease
  out[5 + 2 * n] = payload
end

-- Lua's stack bounds how many arguments one call may carry.
local function in_chunks(command, key, values)
  for first = 1, #values, 1000 do
    redis.call(command, key, unpack(values, first, math.min(first + 999, #values)))
  end
end

local gone = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', retry, '-inf', now, 'LIMIT', 0, count)) do
  local size = redis.call('HSTRLEN', payloads, id)
  if #items > 0 and bytes + size > budget then break end
  local payload = redis.call('HGET', payloads, id)
  local record = redis.call('HGET', records, id)
  if payload and record then
    local r = cjson.decode(record)
    take(payload, r.attempts, r.recoveries, r.first_ms)
  end
  gone[#gone + 1] = id
end
out[5] = #items

local taken, chunk = 0, tonumber(ARGV[8])
local want = math.min(count - #items, from_pending)
while taken < want do
  if #items > 0 then
    local fit = math.floor((budget - bytes) / math.max(1, bytes / #items)) + 1
    chunk = math.max(1, math.min(chunk, fit))
  end
  local n = math.min(chunk, want - taken)
  local page = redis.call('LRANGE', pending, taken, taken + n - 1)
  local full = false
  for _, payload in ipairs(page) do
    if #items > 0 and bytes + #payload > budget then full = true break end
    local attempts, recoveries, first, fp = 0, 0, now, nil
    if remembered then
      fp = redis.sha1hex(payload)
      local memory = redis.call('HGET', returned, fp)
      if memory then
        local a, r, f = string.match(memory, '^(%d+)|(%d+)|(%d+)')
        attempts, recoveries, first = tonumber(a), tonumber(r), tonumber(f)
        redis.call('HDEL', returned, fp)
      end
    end
    take(payload, attempts, recoveries, first, fp)
    taken = taken + 1
  end
  if full or #page < n then break end
  chunk = n * 4
end

if #items > 0 then
  in_chunks('RPUSH', processing, items)
  in_chunks('ZADD', leases, scores)
  if taken > 0 then redis.call('LTRIM', pending, taken, -1) end
  redis.call('SET', last_send, string.format('%d.%06d', time[1], time[2]), 'EX', last_send_ttl)
end
if #gone > 0 then
  in_chunks('ZREM', retry, gone)
  in_chunks('HDEL', records, gone)
  in_chunks('HDEL', payloads, gone)
end
out[3] = redis.call('LLEN', pending)
local next_due = redis.call('ZRANGE', retry, 0, 0, 'WITHSCORES')[2]
if next_due then out[4] = tonumber(next_due) end
return out
