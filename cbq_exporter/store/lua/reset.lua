-- Move a queue to the trash, whatever its size.
--
-- KEYS  1 trash  2 trash_notes  then pairs: a key of the queue, where it goes
-- ARGV  1 id of the reset  2 until when it is kept, ms  3 how much longer the keys live, ms  4 note, JSON
-- Returns how many keys were moved; 0: there was nothing, and nothing was written
--
-- The keys outlive the end of their keeping a little: upkeep takes them away piece by piece in the background,
-- which Redis, where it expires a list of a million, may not do.
local trash, notes = KEYS[1], KEYS[2]
local id, kept_until, longer, note = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]

-- A foreign type at one of the keys ends the script here, before anything is written.
redis.call('ZCARD', trash)
redis.call('HLEN', notes)

local expire_at = string.format('%d', tonumber(kept_until) + longer)

local moved = 0
for i = 3, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('RENAME', KEYS[i], KEYS[i + 1])
    redis.call('PEXPIREAT', KEYS[i + 1], expire_at)
    moved = moved + 1
  end
end
if moved > 0 then
  redis.call('ZADD', trash, kept_until, id)
  redis.call('HSET', notes, id, note)
end
return moved
