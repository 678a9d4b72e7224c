-- KEYS[1]: stream. ARGV: group, worker, then ids. Returns per id 1 if it is still the
-- worker's, else 0.
local ours = {}
for i = 3, #ARGV do
  local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if pending.err then
    if not string.find(pending.err, 'NOGROUP', 1, true) then
      return pending
    end
    ours[#ours + 1] = 0
  elseif pending[1] then
    -- Without JUSTID this would count as another delivery.
    ours[#ours + 1] = #redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  else
    ours[#ours + 1] = 0
  end
end
return ours
