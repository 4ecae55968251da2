#!lua flags=no-writes
-- Which commands, and on which keys, the user who asks may not run. It changes nothing and touches no key.
--
-- ARGV  1 number of keys; the keys; then the commands, each of which takes a key first
-- Returns the commands that are allowed on no key, and the keys that allow none of the commands
local n = tonumber(ARGV[1])
local allowed_command, allowed_key = {}, {}
for k = 2, n + 1 do
  local key = ARGV[k]
  for c = n + 2, #ARGV do
    -- Enough arguments for any of them: only names and keys are judged, never run.
    if redis.acl_check_cmd(ARGV[c], key, key, key) then
      allowed_command[c] = true
      allowed_key[k] = true
    end
  end
end

local commands, keys = {}, {}
for c = n + 2, #ARGV do
  if not allowed_command[c] then commands[#commands + 1] = ARGV[c] end
end
for k = 2, n + 1 do
  if not allowed_key[k] then keys[#keys + 1] = ARGV[k] end
end
return {commands, keys}
