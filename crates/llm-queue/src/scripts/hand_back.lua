-- KEYS[1]: stream. ARGV: group, consumer to give to, idle ms to pretend, then pairs of id and
-- deliveries. An entry that was delivered again since belongs to somebody else and stays.
for i = 4, #ARGV, 2 do
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  if pending.err then
    if string.find(pending.err, 'NOGROUP', 1, true) then
      return 0
    end
    return pending
  end
  if pending[1] and pending[1][4] == tonumber(ARGV[i + 1]) then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3], 'JUSTID')
  end
end
return 1
