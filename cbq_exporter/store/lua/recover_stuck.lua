-- Bring callbacks that no lease of ours holds out of processing, back to pending; those that were brought back too
-- often to the dead letters.
--
-- KEYS  1 leases  2 processing  3 pending  4 dead  5 records  6 payloads  7 returned  8 sightings  9 fence
--       10 lock
-- ARGV  1 the least age of a sighting, ms; -1: sightings are not needed
--       2 the store's time, ms, when the caller looked  3 most recoveries; -1: they are not counted
--       4 the fence when the caller read the leases: it names no callback that was leased then
--       5 a mark that is no payload  6, 7 first and last place in processing of those that follow
--       then four for each, the last of processing first:
--       its place, its SHA-1, its sighting ('' where there is none), record for a dead letter ('' where it is not
--       to become one)
-- Returns for each callback 0 left alone: not there any more, ours now, seen too lately, or dead without a record
--         | 1 back in pending | 2 dead
--
-- Of equal callbacks, as long as one is ours the others wait. The new place is written first, then the old one
-- cleared: never one too few. Places are cleared by marking them, and taking out all marks in one walk. They go to the
-- head of pending, but behind the rest while a worker has the lock: see recover.lua.
local leases, processing, pending, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local records, payloads, returned = KEYS[5], KEYS[6], KEYS[7]
local sightings, fence, lock = KEYS[8], KEYS[9], KEYS[10]
local least_age, looked, max_recoveries = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local fence_was, mark, first, last = ARGV[4], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local n = (#ARGV - 7) / 4

-- A foreign type at one of the keys ends the script here, before anything is written.
local length = redis.call('LLEN', processing)
redis.call('LLEN', pending)
redis.call('ZCARD', leases)
redis.call('ZCARD', dead)
redis.call('HLEN', records)
redis.call('HLEN', payloads)
local remembered = redis.call('HLEN', returned) > 0
redis.call('ZCARD', sightings)

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local newest = math.min(now, looked) - least_age

local held = {}
if (redis.call('GET', fence) or '') ~= fence_was then
  for _, lease in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
    local bar = string.find(lease, '|', 1, true)
    if bar then held[string.sub(lease, bar + 1, bar + 40)] = true end
  end
end

local fps, names = {}, {}
for i = 1, n do fps[i], names[i] = ARGV[4 * i + 5], ARGV[4 * i + 6] end
local seen = least_age >= 0 and redis.call('ZMSCORE', sightings, unpack(names)) or {}
local known = remembered and max_recoveries >= 0 and redis.call('HMGET', returned, unpack(fps)) or {}

local page = redis.call('LRANGE', processing, first, last)
local result, places, back, memories, letters, ended = {}, {}, {}, {}, {}, {}
for i = 1, n do
  local place, fp, record = tonumber(ARGV[4 * i + 4]), fps[i], ARGV[4 * i + 7]
  local payload = page[place - first + 1]
  local for_long = least_age < 0 or (seen[i] and tonumber(seen[i]) <= newest)
  result[i] = 0
  if payload and for_long and not held[fp] and redis.sha1hex(payload) == fp then
    local attempts, recoveries, since, turn = 0, 0, now, nil
    if known[i] then
      attempts, recoveries, since = string.match(known[i], '^(%d+)|(%d+)|(%d+)')
      turn = string.match(known[i], '|(%x+:%d+|)')
    end
    recoveries = tonumber(recoveries or 0) + 1
    if max_recoveries < 0 or recoveries <= max_recoveries then
      back[#back + 1] = payload
      memories[#memories + 1] = fp
      memories[#memories + 1] = string.format(
        '%d|%d|%013d|%s%d', attempts or 0, recoveries, since or now, turn or '', now)
      result[i] = 1
    elseif record ~= '' then
      letters[#letters + 1] = {record, payload, fp}
      result[i] = 2
    end
    if result[i] > 0 then
      places[#places + 1] = place
      ended[#ended + 1] = names[i]
    end
  end
end
if #places == 0 then return result end

-- A write that adds nothing comes first: after it, a full memory does not refuse the others.
redis.call('ZREM', sightings, unpack(ended))
if #letters > 0 then
  local token = redis.call('INCR', fence)
  for i, letter in ipairs(letters) do
    local id = string.format('%013d-%d-%d', now, token, i)
    redis.call('HSET', records, id, letter[1])
    redis.call('HSET', payloads, id, letter[2])
    redis.call('ZADD', dead, now, id)
    redis.call('HDEL', returned, letter[3])
  end
end
if #back > 0 then
  local holder = redis.pcall('GET', lock)
  if type(holder) == 'string' and string.sub(holder, 1, 13) ~= 'cbq-exporter_' then
    for i = #back, 1, -1 do redis.call('RPUSH', pending, back[i]) end
  else
    redis.call('LPUSH', pending, unpack(back))
  end
  if max_recoveries >= 0 then redis.call('HSET', returned, unpack(memories)) end
end
for _, place in ipairs(places) do redis.call('LSET', processing, place, mark) end
redis.call('LREM', processing, first > length / 2 and -#places or #places, mark)
return result
