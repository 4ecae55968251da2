-- End claims: delivered, to be retried, dead, or put back. Only a lease that is still held counts.
--
-- KEYS  1 leases  2 processing  3 pending  4 retry  5 dead  6 records  7 payloads  8 returned
--       9 stats:sent  10 stats:failed
-- ARGV  1 TTL of the stats, s; then five for each callback, in the order they were claimed:
--       lease, payload, kind, delay in ms (retries), record (retries and dead letters)
--       kind  d delivered | r retry, an attempt failed | w retry, no attempt made
--             x dead, an attempt failed | z dead, no attempt made | b back to the head of pending
-- Returns for each callback 1 settled | 0 the lease is not held: nothing was done
--         | 2 the lease was held, but somebody else took the callback out of processing: only the lease went
local leases, processing, pending, retry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local dead, records, payloads, returned = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local stats_sent, stats_failed = KEYS[9], KEYS[10]
local stats_ttl = ARGV[1]
local n = (#ARGV - 1) / 5

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local names = {}
for i = 1, n do names[i] = ARGV[5 * i - 3] end
local held = {}
for first = 1, n, 1000 do
  local last = math.min(first + 999, n)
  for i, score in ipairs(redis.call('ZMSCORE', leases, unpack(names, first, last))) do
    held[first + i - 1] = score
  end
end

-- Our own claims are at the tail; what others left behind gathers at the head. Search from the nearer end.
local from = 1
if redis.call('LLEN', processing) > 2 * redis.call('ZCARD', leases) + 64 then from = -1 end

local result, ended, sent, failed = {}, {}, 0, 0
for i = n, 1, -1 do
  local at = 5 * i - 4
  local lease, payload, kind = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if not held[i] then
    result[i] = 0
  elseif kind == 'd' then
    result[i] = redis.call('LREM', processing, from, payload) == 1 and 1 or 2
    ended[#ended + 1] = lease
    sent = sent + 1
  else
    -- Written to the new place first, then taken from the old one.
    if redis.call('LPOS', processing, payload, 'RANK', from) then
      local id = string.match(lease, '^[^|]+')
      if kind == 'b' then
        redis.call('LPUSH', pending, payload)
        local fp, memory = string.match(lease, '^[^|]+|(%x+)|(.+)$')
        redis.call('HSET', returned, fp, memory .. '|' .. now)
      else
        redis.call('HSET', payloads, id, payload)
        redis.call('HSET', records, id, ARGV[at + 5])
        if kind == 'r' or kind == 'w' then
          redis.call('ZADD', retry, now + tonumber(ARGV[at + 4]), id)
        else
          redis.call('ZADD', dead, now, id)
        end
      end
      redis.call('LREM', processing, from, payload)
      result[i] = 1
    else
      result[i] = 2
    end
    ended[#ended + 1] = lease
    if kind == 'r' or kind == 'x' then failed = failed + 1 end
  end
end
for first = 1, #ended, 1000 do
  redis.call('ZREM', leases, unpack(ended, first, math.min(first + 999, #ended)))
end
if sent > 0 then
  redis.call('INCRBY', stats_sent, sent)
  redis.call('EXPIRE', stats_sent, stats_ttl)
end
if failed > 0 then
  redis.call('INCRBY', stats_failed, failed)
  redis.call('EXPIRE', stats_failed, stats_ttl)
end
return result
