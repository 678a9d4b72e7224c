-- KEYS[1]: stream. ARGV: group, worker, least idle ms, cursor, count, ms after which a
-- consumer that has nothing in hand is forgotten.
-- Returns {next cursor, {{id, fields, deliveries}, ...}}.
local reply = redis.call('XAUTOCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], 'COUNT', ARGV[5])
local taken = {}
for _, entry in ipairs(reply[2]) do
  -- Redis 6 answers nil for an entry that was deleted.
  if entry then
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1], entry[1], entry[1], 1)
    taken[#taken + 1] = { entry[1], entry[2], pending[1] and pending[1][4] or 2 }
  end
end
-- Workers get a new name at each start, and Redis keeps every name it has heard.
if ARGV[4] == '0-0' then
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local is = {}
    for i = 1, #consumer, 2 do
      is[consumer[i]] = consumer[i + 1]
    end
    if is.pending == 0 and is.idle > tonumber(ARGV[6]) and is.name ~= ARGV[2] then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], is.name)
    end
  end
end
return { reply[1], taken }
