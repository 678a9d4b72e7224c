-- KEYS[1]: stream. ARGV[1]: group. Returns {length, pending, age of the oldest in ms or -1}.
local length = redis.call('XLEN', KEYS[1])
local summary = redis.pcall('XPENDING', KEYS[1], ARGV[1])
local pending = summary.err and 0 or summary[1]
local age = -1
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if first then
  local now = redis.call('TIME')
  age = now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(string.match(first[1], '^%d+'))
  age = math.max(age, 0)
end
return { length, pending, age }
