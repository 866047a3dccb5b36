-- One budget for many hosts: every change of the counts is one call of this script, which Redis runs alone.
--
-- ARGV: the operation, and its arguments as a JSON object. The reply is JSON, too; times are milliseconds since 1970 by
-- Redis' own clock. Change VERSION whenever older and newer scripts must not share the same keys.
--
-- KEYS of all: 1 meta (a hash: version, generation, run, months), 2 processes (a sorted set by last contact),
-- 3 awaited (a set). Of an endpoint: 4 its hash, 5 its records by time, 6 the same records by number.
-- Of an address: 4 its processes by last contact, 5 its connections by number.
local VERSION = '1'
local RECORD_MS = 100
local EDGE_SECONDS = 5
local DAY_SECONDS = 86400
local KEPT_SECONDS = 62 * 86400

local op, A = ARGV[1], cjson.decode(ARGV[2])
local META, PROCESSES, AWAITED = KEYS[1], KEYS[2], KEYS[3]

local now = A.now -- only tests set it
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + time[2] / 1000
end

local function exact(number) -- as text: Lua's own has too few digits
  return string.format('%.3f', number)
end

local function field(key, name)
  return tonumber(redis.call('HGET', key, name) or 0)
end

-- --- months ----------------------------------------------------------------------------------------------------

local function month_of(seconds) -- days to a civil date: howardhinnant.github.io/date_algorithms.html
  local z = math.floor(seconds / 86400) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return string.format('%04d-%02d', yoe + era * 400 + (month <= 2 and 1 or 0), month)
end

-- By how many seconds Bitly's dates are ahead of Redis' clock. Within a day they correct the calendar; what is further
-- off may be Bitly's mistake, so attempts then count in the months of both.
local ahead = A.server and field(META, 'ahead:' .. A.server) or 0
local corrects = math.abs(ahead) <= DAY_SECONDS
local utc = now / 1000 + (corrects and ahead or 0)

local function months_now() -- in order; two near an edge
  local found, seen = {}, {}
  local moments = corrects and { utc } or { utc, utc + ahead }
  for _, moment in ipairs(moments) do
    local block = math.floor(moment / EDGE_SECONDS)
    for _, name in ipairs({ month_of((block - 1) * EDGE_SECONDS), month_of((block + 2) * EDGE_SECONDS) }) do
      if not seen[name] then
        seen[name] = true
        found[#found + 1] = name
      end
    end
  end
  table.sort(found)
  return found
end

local function month_field(kind, name, month)
  return kind .. ':' .. A.server .. '|' .. name .. '|' .. month
end

local function spent_in(month)
  local most = 0
  for _, name in ipairs(A.names) do
    most = math.max(most, field(META, month_field('spent', name, month)))
  end
  return most
end

local function spend(months, attempts)
  for _, month in ipairs(months) do
    for _, name in ipairs(A.names) do
      local key = month_field('spent', name, month)
      if redis.call('HINCRBY', META, key, attempts) < 0 then
        redis.call('HSET', META, key, 0)
      end
    end
  end
end

local function reported_in(month) -- when Bitly said that it is spent, in seconds; nil if it did not
  local latest = nil
  for _, name in ipairs(A.names) do
    local at = tonumber(redis.call('HGET', META, month_field('reported', name, month)) or nil)
    latest = at and math.max(at, latest or at) or latest
  end
  return latest
end

local function report_month(month, at) -- at: nil forgets it
  for _, name in ipairs(A.names) do
    local key = month_field('reported', name, month)
    if at then
      redis.call('HSET', META, key, string.format('%.3f', at))
    else
      redis.call('HDEL', META, key)
    end
  end
end

-- --- what is known of Redis itself ---------------------------------------------------------------------------------

local closed_at, settle_until = field(META, 'closed_at'), field(META, 'settle_until')

local function close_windows(at)
  closed_at = math.max(closed_at, at)
  redis.call('HSET', META, 'closed_at', exact(closed_at))
end

local function settle() -- a process that has not reported in time may have made attempts that Redis has forgotten
  if settle_until > 0 and now >= settle_until then
    if redis.call('SCARD', AWAITED) > 0 then
      close_windows(settle_until)
      redis.call('DEL', AWAITED)
    end
    redis.call('HDEL', META, 'settle_until', 'settle_for')
    settle_until = 0
  end
end

local function wait_for_reports(why)
  settle_until = now + A.settle
  redis.call('HSET', META, 'settle_until', exact(settle_until), 'settle_for', why)
end

local function await_the_living() -- those that were in contact shortly before Redis ended, if windows still hold it
  redis.call('DEL', AWAITED)
  local newest = redis.call('ZRANGE', PROCESSES, -1, -1, 'WITHSCORES')
  if newest[1] and tonumber(newest[2]) > now - A.kept then
    for _, process in ipairs(redis.call('ZRANGEBYSCORE', PROCESSES, newest[2] - A.alive, '+inf')) do
      redis.call('SADD', AWAITED, process)
    end
  end
end

local function raise_months()
  for name, spent in pairs(A.months) do
    if spent > field(META, name) then
      redis.call('HSET', META, name, spent)
    end
  end
end

local operations = {}

function operations.learn()
  raise_months()
  return {}
end

function operations.open()
  local generation = redis.call('HGET', META, 'generation')
  if not generation then
    generation = A.candidate
    redis.call('HSET', META, 'version', VERSION, 'generation', generation, 'run', A.run)
    wait_for_reports('new')
  elseif redis.call('HGET', META, 'run') ~= A.run then
    redis.call('HSET', META, 'run', A.run)
    await_the_living()
    wait_for_reports('run')
  end
  if A.recent and A.known ~= generation then
    close_windows(now)
  end
  raise_months()
  redis.call('ZADD', PROCESSES, now, A.process)
  return { generation = generation, closed_at = closed_at }
end

function operations.reported()
  redis.call('SREM', AWAITED, A.process)
  if redis.call('HGET', META, 'settle_for') == 'run' and redis.call('SCARD', AWAITED) == 0 then
    redis.call('HDEL', META, 'settle_until', 'settle_for')
    settle_until = 0
  end
  return { closed_at = closed_at, settling = math.max(settle_until - now, 0) }
end

-- --- an endpoint -----------------------------------------------------------------------------------------------------

local SCOPE, AT, FIRST = KEYS[4], KEYS[5], KEYS[6]
local total, last_at, seq, version = 0, 0, 0, 0

local function load_scope()
  local found = redis.call('HMGET', SCOPE, 'total', 'last_at', 'seq', 'version')
  total, last_at = tonumber(found[1] or 0), tonumber(found[2] or 0)
  seq, version = tonumber(found[3] or 0), tonumber(found[4] or 0)
end

local function save_scope()
  seq = seq + 1
  redis.call('HSET', SCOPE, 'total', total, 'last_at', last_at, 'seq', seq)
end

-- Attempts are numbered. A record holds the number of its first one, and the end of the tenth of a second in which its
-- attempts were made: AT has numbers by time, FIRST times by number.
local function add(attempts)
  local at = math.ceil(now / RECORD_MS) * RECORD_MS
  if last_at < at then
    redis.call('ZADD', AT, at, total)
    redis.call('ZADD', FIRST, total, at)
    redis.call('ZREMRANGEBYSCORE', AT, '-inf', now - A.kept)
    local oldest = redis.call('ZRANGE', AT, 0, 0)
    redis.call('ZREMRANGEBYSCORE', FIRST, '-inf', '(' .. oldest[1])
    for _, key in ipairs({ SCOPE, AT, FIRST }) do
      redis.call('EXPIRE', key, KEPT_SECONDS)
    end
    last_at = at
  end
  total = total + attempts
  save_scope()
end

local function remove(attempts, at) -- a record that has left the hour stays forgotten
  local first = tonumber(redis.call('ZRANGEBYSCORE', AT, at, at)[1])
  if not first then
    return
  end
  local later = redis.call('ZRANGEBYSCORE', FIRST, '(' .. exact(first), '+inf', 'WITHSCORES')
  local held = tonumber(later[2] or total) - first
  attempts = math.min(attempts, held)
  if attempts == held then
    redis.call('ZREM', AT, first)
    redis.call('ZREM', FIRST, at)
  end
  for index = 1, #later, 2 do -- the later ones move down, so that no gap is left
    local number = tonumber(later[index + 1])
    redis.call('ZREM', AT, number)
    redis.call('ZADD', AT, later[index], number - attempts)
    redis.call('ZADD', FIRST, number - attempts, later[index])
  end
  last_at = tonumber(redis.call('ZRANGE', AT, -1, -1, 'WITHSCORES')[2] or 0)
  total = total - attempts
  save_scope()
end

local function take_back(attempts, at, months)
  remove(attempts, at)
  spend(months, -attempts)
end

local function used_in(span)
  local found = redis.call('ZRANGEBYSCORE', AT, '(' .. exact(now - span), '+inf', 'LIMIT', 0, 1)
  return found[1] and total - found[1] or 0
end

local function wait_for(span, limit) -- milliseconds until the window has room; 0 if it has
  local closed = closed_at > 0 and closed_at + span - now or 0
  if used_in(span) < limit then
    return math.max(closed, 0)
  end
  -- There is room once the attempt that is now the limit-th from the end has left.
  local found = redis.call('ZREVRANGEBYSCORE', FIRST, total - limit, '-inf', 'LIMIT', 0, 1)
  return math.max(found[1] + span - now, closed, 0)
end

local function with_state(reply)
  reply.now, reply.ahead, reply.corrects = math.floor(now), ahead, corrects
  reply.total, reply.seq, reply.version = total, seq, version
  if A.version ~= version then
    reply.state = redis.call('HGET', SCOPE, 'state') or ''
  end
  return reply
end

local function with_months(reply, months)
  reply.spent = {}
  for _, month in ipairs(months) do
    for _, name in ipairs(A.names) do
      local key = month_field('spent', name, month)
      reply.spent[key] = field(META, key)
    end
  end
  return reply
end

local function begin() -- undo what was leased and not sent; notice what Redis has forgotten
  load_scope()
  if A.seq and A.seq > seq then
    if seq == 0 then -- evicted, or lost with all the rest
      redis.call('DEL', AT, FIRST)
    end
    if A.total > total then
      add(A.total - total)
    end
    seq = A.seq
    redis.call('HSET', SCOPE, 'seq', seq)
    close_windows(now)
  end
  if last_at > now - A.kept and redis.call('EXISTS', AT, FIRST) < 2 then -- evicted
    redis.call('DEL', AT, FIRST)
    last_at = 0
    redis.call('HSET', SCOPE, 'last_at', 0)
    close_windows(now)
  end
  if A.back then
    take_back(A.back.attempts, A.back.at, A.back.months)
  end
end

local function lease_size(months)
  local size = A.want
  for _, window in ipairs(A.windows) do
    size = math.min(size, math.floor((window.limit - used_in(window.span)) / A.share))
  end
  if A.month_limit > 0 then
    for _, month in ipairs(months) do
      size = math.min(size, math.floor((A.month_limit - spent_in(month)) / A.share))
    end
  end
  return math.max(size, 1)
end

local function refusal(months)
  local reported = reported_in(month_of(utc))
  if reported and utc - reported < DAY_SECONDS then
    return { reported = true }
  end
  if A.month_limit > 0 then
    local full = nil
    for _, month in ipairs(months) do
      full = spent_in(month) >= A.month_limit and month or full
    end
    if full then
      return { full = full }
    end
  end
  if A.not_before and now < A.not_before then
    return { throttled = true }
  end
  local longest = nil
  for index, window in ipairs(A.windows) do
    local wait = wait_for(window.span, window.limit)
    if wait > (longest and longest.wait or 0) then
      longest = { wait = wait, window = index - 1 }
    end
  end
  return longest
end

function operations.acquire()
  begin()
  if version ~= A.version then
    return with_state({ stale = true })
  end
  if settle_until > now then
    return with_state({ settling = settle_until - now })
  end
  local months = months_now()
  local refused = refusal(months)
  if refused then
    return with_state(refused)
  end
  local asks = reported_in(month_of(utc)) ~= nil -- a day has passed since that report
  local attempts = asks and 1 or lease_size(months)
  if A.state then
    redis.call('HSET', SCOPE, 'state', A.state, 'version', version + 1)
    version = version + 1
  end
  add(attempts)
  spend(months, attempts)
  if asks then
    report_month(month_of(utc), utc)
  end
  redis.call('ZADD', PROCESSES, now, A.process)
  return with_state(with_months({ attempts = attempts, at = last_at, months = months, asks = asks }, months))
end

function operations.read()
  begin()
  local reply = { used = {}, waits = {} }
  for index, window in ipairs(A.windows) do
    local closed = closed_at > 0 and now < closed_at + window.span
    reply.used[index] = closed and math.max(used_in(window.span), window.limit) or used_in(window.span)
    reply.waits[index] = window.limit > 0 and wait_for(window.span, window.limit) or 0
  end
  if A.records then -- attempts by the minute in which they leave the last window
    reply.records = {}
    local horizon = now - A.kept
    local records = redis.call('ZRANGEBYSCORE', AT, '(' .. exact(horizon), '+inf', 'WITHSCORES')
    for index = 1, #records, 2 do
      local minute = math.ceil((records[index + 1] - horizon) / A.minute)
      local attempts = (records[index + 2] or total) - records[index]
      reply.records[tostring(minute)] = (reply.records[tostring(minute)] or 0) + attempts
    end
  end
  local months = months_now()
  reply.near = 0
  for _, month in ipairs(months) do
    reply.near = math.max(reply.near, spent_in(month))
  end
  reply.month, reply.reported = spent_in(month_of(utc)), reported_in(month_of(utc))
  return with_state(with_months(reply, months))
end

function operations.write()
  begin()
  if version ~= A.version then
    return with_state({ stale = true })
  end
  if A.add and A.add > 0 then
    add(A.add)
  end
  version = version + 1
  redis.call('HSET', SCOPE, 'state', A.state, 'version', version)
  return with_state({})
end

function operations.give_back()
  load_scope()
  take_back(1, A.at, A.months)
  local reported = reported_in(month_of(utc))
  if A.asks and reported and utc - reported < DAY_SECONDS then
    report_month(month_of(utc), utc - DAY_SECONDS)
  end
  return with_state({})
end

function operations.move() -- count an attempt now that was counted before and not sent
  load_scope()
  local months, counted = months_now(), {}
  for _, month in ipairs(A.months) do
    counted[month] = true
  end
  for _, month in ipairs(months) do
    if A.month_limit > 0 and not counted[month] and spent_in(month) >= A.month_limit then
      return with_state({ refused = true })
    end
  end
  if now - A.at > A.latest then
    return with_state({ refused = true })
  end
  take_back(1, A.at, A.months)
  add(1)
  spend(months, 1)
  return with_state({ at = last_at, months = months })
end

function operations.report() -- what this process has seen of an endpoint before Redis restarted
  load_scope()
  if A.total > total then
    add(A.total - total)
  end
  if A.seq > seq then
    seq = A.seq
    redis.call('HSET', SCOPE, 'seq', seq)
  end
  return {}
end

-- --- what Bitly said of a month ----------------------------------------------------------------------------------------

function operations.month()
  local reply = {}
  if A.spent ~= nil then
    local month = month_of(utc - (A.spent and A.latest / 1000 or 0))
    report_month(month, A.spent and utc or nil)
  end
  if A.ahead then
    redis.call('HSET', META, 'ahead:' .. A.server, string.format('%.3f', A.ahead))
    ahead = A.ahead
    corrects = math.abs(ahead) <= DAY_SECONDS
  end
  if A.plan then
    redis.call('HSET', META, 'plan:' .. A.server .. '|' .. A.names[1], A.plan, 'plan_at:' .. A.server .. '|' .. A.names[1], now)
  end
  local plan = redis.call('HGET', META, 'plan:' .. A.server .. '|' .. A.names[1])
  if plan then
    reply.plan, reply.plan_at = plan, field(META, 'plan_at:' .. A.server .. '|' .. A.names[1])
  end
  reply.now, reply.ahead, reply.corrects = math.floor(now), ahead, corrects
  return reply
end

-- --- the connections of an address -----------------------------------------------------------------------------------

local EGRESS, SLOTS = KEYS[4], KEYS[5]

local function connections()
  local held = {}
  local slots = redis.call('HGETALL', SLOTS)
  for index = 1, #slots, 2 do
    if slots[index + 1] == A.process then -- the fields of `joined` have times
      held[#held + 1] = tonumber(slots[index])
    end
  end
  return held
end

local function contact()
  redis.call('ZADD', PROCESSES, now, A.process)
  redis.call('ZREMRANGEBYSCORE', PROCESSES, '-inf', now - A.kept)
  if EGRESS then
    for _, process in ipairs(redis.call('ZRANGEBYSCORE', EGRESS, '-inf', now - A.lease)) do
      redis.call('ZREM', EGRESS, process)
      redis.call('HDEL', SLOTS, 'joined:' .. process)
    end
    redis.call('ZADD', EGRESS, now, A.process)
    redis.call('HSETNX', SLOTS, 'joined:' .. A.process, exact(now))
  end
end

function operations.beat()
  contact()
  if not EGRESS then
    return { now = math.floor(now) }
  end
  local live, joined = redis.call('ZRANGE', EGRESS, 0, -1), {}
  for _, process in ipairs(live) do
    joined[process] = field(SLOTS, 'joined:' .. process)
  end
  table.sort(live, function(one, other)
    return joined[one] < joined[other] or (joined[one] == joined[other] and one < other)
  end)
  return { now = math.floor(now), live = live, held = connections() }
end

function operations.lease() -- the first connection that no live process holds
  contact()
  for number = 0, A.most - 1 do
    local holder = redis.call('HGET', SLOTS, number)
    if not holder or not redis.call('ZSCORE', EGRESS, holder) then
      redis.call('HSET', SLOTS, number, A.process)
      return { now = math.floor(now), number = number }
    end
  end
  return { now = math.floor(now) }
end

function operations.release()
  if redis.call('HGET', SLOTS, A.number) == A.process then
    redis.call('HDEL', SLOTS, A.number)
  end
  return { now = math.floor(now) }
end

function operations.leave()
  redis.call('ZREM', PROCESSES, A.process)
  redis.call('SREM', AWAITED, A.process)
  if EGRESS then
    for _, number in ipairs(connections()) do
      redis.call('HDEL', SLOTS, number)
    end
    redis.call('ZREM', EGRESS, A.process)
    redis.call('HDEL', SLOTS, 'joined:' .. A.process)
  end
  return { now = math.floor(now) }
end

-- -----------------------------------------------------------------------------------------------------------------------

local present = redis.call('HGET', META, 'version')
if present and present ~= VERSION then
  return cjson.encode({ other_version = present, version = VERSION })
end
if op ~= 'open' then
  local known = redis.call('HMGET', META, 'generation', 'run')
  if known[1] ~= A.generation or known[2] ~= A.run then
    return cjson.encode({ reopen = true })
  end
end
settle()
return cjson.encode(operations[op]())
