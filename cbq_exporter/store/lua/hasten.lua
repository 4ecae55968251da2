-- Make callbacks of one destination due that wait in retry for nothing but their turn.
--
-- KEYS  1 retry  2 records
-- ARGV  1 what a record of theirs contains, up to the word that says why it waits
--       2 most to make due  3 how many to pass over  4 most to look at  then the words
-- Returns {made due, looked at}: those not yet due, in the order of their due times. Fewer looked at than asked
--         for: the end was reached.
--
-- They keep their order: each is due a little after the one before. None is later than it was.
local retry, records = KEYS[1], KEYS[2]
local mark, most = ARGV[1], tonumber(ARGV[2])
local passed, looks = tonumber(ARGV[3]), tonumber(ARGV[4])
local words = {}
for i = 5, #ARGV do words[ARGV[i]] = true end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local first = redis.call('ZCOUNT', retry, '-inf', now) + passed
local ids = redis.call('ZRANGE', retry, first, first + looks - 1)
if #ids == 0 then return {0, 0} end

local made, looked = {}, 0
for i, record in ipairs(redis.call('HMGET', records, unpack(ids))) do
  if #made >= 2 * most then break end
  looked = i
  local _, at = string.find(record or '', mark, 1, true)
  if at and words[string.match(record, '^[%l_]*', at + 1)] then
    made[#made + 1] = string.format('%.3f', now - 1 + #made / 2000)
    made[#made + 1] = ids[i]
  end
end
if #made > 0 then redis.call('ZADD', retry, 'XX', unpack(made)) end
return {#made / 2, looked}
