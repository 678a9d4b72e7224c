-- KEYS: stream, then the mark of each message.
-- ARGV: group, most entries, life of a mark in ms, then per message its request, project,
-- job and headers; the last two may be empty.
-- Returns per message {1, id} added, {0, id} known, {-1, ''} full.
ensure_group()
local most = tonumber(ARGV[2])
local length = redis.call('XLEN', KEYS[1])
local sent = {}
for i = 2, #KEYS do
  local at = 4 + (i - 2) * 4
  local known = redis.call('GET', KEYS[i])
  if known then
    sent[#sent + 1] = { 0, known }
  elseif length >= most then
    sent[#sent + 1] = { -1, '' }
  else
    local entry = { 'request_id', ARGV[at], 'project_id', ARGV[at + 1] }
    if ARGV[at + 2] ~= '' then
      entry[#entry + 1] = 'job_id'
      entry[#entry + 1] = ARGV[at + 2]
    end
    if ARGV[at + 3] ~= '' then
      entry[#entry + 1] = 'headers'
      entry[#entry + 1] = ARGV[at + 3]
    end
    local id = redis.call('XADD', KEYS[1], '*', unpack(entry))
    redis.call('SET', KEYS[i], id, 'PX', ARGV[3])
    length = length + 1
    sent[#sent + 1] = { 1, id }
  end
end
return sent
