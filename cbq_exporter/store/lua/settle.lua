-- End claims: delivered, to be retried, dead, or put back. Only a lease that is still held counts.
--
-- KEYS  1 leases  2 processing  3 pending  4 retry  5 dead  6 records  7 payloads  8 returned
--       9 stats:sent  10 stats:failed  11 order; only where a lease has a turn (claim.lua)
-- ARGV  1 TTL of the stats, s  2 most elements of processing to walk over
--       3 kinds, one letter for each callback, in their order:
--             d delivered | r retry, an attempt failed | w retry, no attempt made
--             h retry, until its turn comes
--             x dead, an attempt failed | z dead, no attempt made | b back to the head of pending,
--             each in front of the one before
--       then the lease of each, then the payload of each,
--       then delay in ms and record of each that is not delivered or put back
-- Returns for each callback 1 settled | 0 the lease is not held: nothing was done
--         | 2 the lease was held, but somebody else took the callback out of processing: only the lease went.
--         The answer is shorter where the walks get too long: the rest was not looked at.
--
-- Ending the lease is the fence. It comes first, and adds nothing: a full memory does not stop what frees it.
-- Then the new place is written, then the old one cleared: never one too few. A callback that ends passes the turn on:
-- those of its key that wait in retry for nothing else are due now.
local leases, processing, pending, retry = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local dead, records, payloads, returned = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local stats_sent, stats_failed, order = KEYS[9], KEYS[10], KEYS[11]
local stats_ttl, most_steps = ARGV[1], tonumber(ARGV[2])
local kinds = ARGV[3]
local n = #kinds
local all_delivered = not string.find(kinds, '[^d]')
local LEASES, PAYLOADS = 3, 3 + n -- how many arguments stand in front of them

local LARGE = 4096 -- bytes
local any_large = false
for i = PAYLOADS + 1, PAYLOADS + n do
  if #ARGV[i] > LARGE then any_large = true break end
end

-- A foreign type at one of the keys ends the script here, before anything is written.
local length, held = redis.call('LLEN', processing), redis.call('ZCARD', leases)
local now = 0
if order or not all_delivered then
  redis.call('LLEN', pending)
  redis.call('ZCARD', retry)
  redis.call('ZCARD', dead)
  redis.call('HLEN', records)
  redis.call('HLEN', payloads)
  redis.call('HLEN', returned)
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
if order then redis.call('ZCARD', order) end

-- Our own claims are at the tail; what others left behind gathers at the head. Search from the nearer end.
local ours = 2 * held + 64
local from = length > ours and '-1' or '1' -- text: turning a number into it costs as much as looking up the key
local depth = math.max(1, math.min(length, ours))
-- As many at a time as cannot walk too far, wherever they stand; where all are, no walk needs to be measured.
-- What is small and delivered is walked to once, to be taken out; all else is found first.
local walks = (all_delivered and not any_large) and 1 or 2
local at_once = math.max(1, math.min(1000, math.floor(most_steps / (walks * depth))))
local walked = 0
local function find(payload)
  local place = redis.call('LPOS', processing, payload, 'RANK', from)
  -- To here and, to take it out, once more.
  walked = walked + (not place and length or 2 * (from == '1' and place + 1 or length - place))
  return place
end

-- A large one by its place, with its lease for a mark: as a value it would go to the append-only file and to replicas.
local function take_out(lease, payload, place)
  if #payload > LARGE then
    redis.call('LSET', processing, place, lease)
    payload = lease
  end
  redis.call('LREM', processing, from, payload)
end

local MOST_WOKEN = 16 -- as many as one claim takes of a key

local function pass_on(lease)
  local rest, turn, key = string.match(lease, '^(.+)|((%x+):%d+)$')
  if not turn then return end
  redis.call('ZREM', order, turn .. '|' .. rest)
  local next_ones = redis.call('ZRANGEBYLEX', order, '[' .. key .. ':', '(' .. key .. ';', 'LIMIT', 0, MOST_WOKEN)
  for _, next_one in ipairs(next_ones) do
    local its_turn, id, its_rest = string.match(next_one, '^([^|]+)|([^|]+)|(.+)$')
    local due = id and redis.call('ZSCORE', retry, id)
    if due then
      if tonumber(due) > now then redis.call('ZADD', retry, now, id) end
    elseif id then
      -- Under way, or in pending: those behind it wait for its end. Else nobody is there (claim.lua clears it away).
      if redis.call('ZSCORE', leases, id .. '|' .. its_rest .. '|' .. its_turn) then return end
      local memory = redis.call('HGET', returned, string.sub(its_rest, 1, 40))
      if memory and string.find(memory, '|' .. its_turn .. '|', 1, true) and redis.call('EXISTS', pending) == 1 then
        return
      end
    end
  end
end

local function due_behind_others(lease, delay)
  local rest, turn, key = string.match(lease, '^(.+)|((%x+):%d+)$')
  if not turn then return now end
  local first = redis.call('ZRANGEBYLEX', order, '[' .. key .. ':', '(' .. turn, 'LIMIT', 0, 1)[1]
  if not first then return now end
  local id = string.match(first, '^[^|]+|([^|]+)')
  return math.max(now, tonumber(id and redis.call('ZSCORE', retry, id) or 0)) + delay
end

local result, sent, failed = {}, 0, 0

local function settle(lease, payload, kind, delay, record)
  if kind == 'd' then sent = sent + 1 end
  if kind == 'r' or kind == 'x' then failed = failed + 1 end
  if kind == 'd' and n <= at_once and #payload <= LARGE then
    return redis.call('LREM', processing, from, payload) == 1 and 1 or 2
  end
  local place = find(payload)
  if not place then return 2 end
  local id, fp, memory = string.match(lease, '^([^|]+)|(%x+)|(.+)$')
  if kind == 'b' then
    redis.call('LPUSH', pending, payload)
    redis.call('HSET', returned, fp, string.format('%s|%d', memory, now))
  elseif kind ~= 'd' then
    redis.call('HSET', records, id, record)
    redis.call('HSET', payloads, id, payload)
    if kind == 'x' or kind == 'z' then
      redis.call('ZADD', dead, now, id)
    else
      redis.call('ZADD', retry, kind == 'h' and due_behind_others(lease, delay) or now + delay, id)
    end
  end
  take_out(lease, payload, place)
  return 1
end

local seen = {}
local extra = PAYLOADS + n -- delays and records up to here belong to those before
for first = 1, n, at_once do
  if walked > most_steps then break end
  local last = math.min(first + at_once - 1, n)
  local is_held = redis.call('ZMSCORE', leases, unpack(ARGV, LEASES + first, LEASES + last))
  redis.call('ZREM', leases, unpack(ARGV, LEASES + first, LEASES + last))
  for i = first, last do
    local lease, kind, delay, record = ARGV[LEASES + i], string.sub(kinds, i, i), nil, nil
    if kind ~= 'd' and kind ~= 'b' then
      delay, record = tonumber(ARGV[extra + 1]), ARGV[extra + 2]
      extra = extra + 2
    end
    result[i] = 0
    if is_held[i - first + 1] and not seen[lease] then -- one that is given twice counts the first time
      seen[lease] = true
      result[i] = settle(lease, ARGV[PAYLOADS + i], kind, delay, record)
      if order and (result[i] == 2 or string.find('dxz', kind, 1, true)) then pass_on(lease) end
    end
  end
end

-- What is wrong with a statistic does not stop deliveries.
local function count(key, by)
  if by > 0 and type(redis.pcall('INCRBY', key, by)) == 'number' then
    redis.call('EXPIRE', key, stats_ttl)
  end
end
count(stats_sent, sent)
count(stats_failed, failed)
return result
