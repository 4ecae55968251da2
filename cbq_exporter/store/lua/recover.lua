-- Bring callbacks whose lease has run out back to pending, or to the dead letters after too many.
--
-- KEYS  1 leases  2 processing  3 pending  4 dead  5 records  6 payloads  7 returned  8 order  9 lock
-- ARGV  1 most recoveries; then three for each callback, the last of processing first:
--       lease, payload, record for a dead letter ('' where all of processing holds no such callback)
-- Returns for each callback 0 left alone: the lease is gone, extended or not yet over | 1 back in pending
--         | 2 dead | 3 only the lease went: there was no such callback
--
-- The lease ends first, then the new place is written, then the old one cleared, as in settle. The search
-- begins at the tail, where the caller's walk began: of equal callbacks the one that it saw is taken. One that goes
-- back to pending keeps its turn (claim.lua). It goes to the head, but behind the rest while a worker has the lock:
-- one that reads the head and cuts it off in two steps (LRANGE, LTRIM) would cut off what came there in between.
local leases, processing, pending, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local records, payloads, returned, order, lock = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local max_recoveries = tonumber(ARGV[1])
local n = (#ARGV - 1) / 3

-- A foreign type at one of the keys ends the script here, before anything is written.
redis.call('LLEN', processing)
redis.call('LLEN', pending)
redis.call('ZCARD', dead)
redis.call('HLEN', records)
redis.call('HLEN', payloads)
redis.call('HLEN', returned)
redis.call('ZCARD', order)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local holder = redis.pcall('GET', lock)
local behind = type(holder) == 'string' and string.sub(holder, 1, 13) ~= 'cbq-exporter_'
local function put_back(payload)
  if behind then return redis.call('RPUSH', pending, payload) end
  return redis.call('LPUSH', pending, payload)
end

local result = {}
for nth = 1, n do
  local i = behind and n + 1 - nth or nth
  local at = 3 * i - 2
  local lease, payload, record = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local deadline = redis.call('ZSCORE', leases, lease)
  if not deadline or tonumber(deadline) > now then
    result[i] = 0
  else
    redis.call('ZREM', leases, lease)
    local rest, turn = string.match(lease, '^(.+)|(%x+:%d+)$')
    if record == '' or not redis.call('LPOS', processing, payload, 'RANK', -1) then
      result[i] = 3
    else
      local id, fp, attempts, recoveries, first = string.match(rest or lease, '^([^|]+)|(%x+)|(%d+)|(%d+)|(%d+)$')
      recoveries = tonumber(recoveries) + 1
      if recoveries > max_recoveries then
        redis.call('HSET', records, id, record)
        redis.call('HSET', payloads, id, payload)
        redis.call('ZADD', dead, now, id)
        result[i] = 2
      else
        put_back(payload)
        local memory = string.format('%d|%d|%s|', attempts, recoveries, first) .. (turn and turn .. '|' or '')
        redis.call('HSET', returned, fp, memory .. string.format('%d', now))
        result[i] = 1
      end
      redis.call('LREM', processing, -1, payload)
    end
    if turn and result[i] > 1 then redis.call('ZREM', order, turn .. '|' .. rest) end
  end
end
return result
