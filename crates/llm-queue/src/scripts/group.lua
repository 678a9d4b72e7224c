-- KEYS[1]: stream. ARGV[1]: group.
-- Looks before it creates: an error per call, if a harmless one, would drown the others in
-- the server's statistics.
local function ensure_group()
  if redis.call('EXISTS', KEYS[1]) == 1 then
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
      if group[2] == ARGV[1] then
        return
      end
    end
  end
  -- From the start of the stream: a worker that comes later sees what is there.
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
end
