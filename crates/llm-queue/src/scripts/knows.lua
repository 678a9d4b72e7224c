-- KEYS: stream, then the mark of each request. Returns per request 1 or 0.
local known = {}
for i = 2, #KEYS do
  local id = redis.call('GET', KEYS[i])
  if id and #redis.call('XRANGE', KEYS[1], id, id) > 0 then
    known[#known + 1] = 1
  else
    known[#known + 1] = 0
  end
end
return known
