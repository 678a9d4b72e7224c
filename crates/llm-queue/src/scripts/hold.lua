-- KEYS[1]: stream. ARGV: group, worker, id, request. Who has the message, and if it is the
-- worker: renews its time.
-- Returns {'gone'} if there is no such message of that request, {'free'} if nobody has it,
-- {'taken', consumer}, or {'ours', {id, fields, deliveries}}.
local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
local request
if entry then
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'request_id' then
      request = entry[2][i + 1]
    end
  end
end
if request ~= ARGV[4] then
  return { 'gone' }
end
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)
if pending.err then
  if not string.find(pending.err, 'NOGROUP', 1, true) then
    return pending
  end
  return { 'free' }
end
if not pending[1] then
  return { 'free' }
end
if pending[1][2] ~= ARGV[2] then
  return { 'taken', pending[1][2] }
end
-- Without JUSTID this would count as another delivery.
redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
return { 'ours', { entry[1], entry[2], pending[1][4] } }
