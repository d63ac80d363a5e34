//! What scripts share.

/// Shared by scripts that claim pending entries: these with how often they were handed out and their
/// attempts; and how many were deleted while they were pending, which are forgotten: nobody could
/// resolve them.
pub(super) const CLAIM: &str = "
local function claim(stream, attempts, group, me, ids)
  local claimed, gone = {}, 0
  for _, id in ipairs(ids) do
    local got = redis.call('XCLAIM', stream, group, me, 0, id)
    if got[1] then
      local pending = redis.call('XPENDING', stream, group, id, id, 1)
      local kept = redis.call('HGET', attempts, id)
      claimed[#claimed + 1] = {id, got[1][2], pending[1][4], kept or ''}
    else
      -- Before Redis 7 it is pending with who claimed it.
      redis.call('XACK', stream, group, id)
      redis.call('HDEL', attempts, id)
      gone = gone + 1
    end
  end
  return claimed, gone
end
";

/// Forgets a member that holds nothing, along with its alive key.
pub(super) const FORGET: &str = "
local function forget(stream, group, member, alive)
  redis.call('DEL', alive)
  local gone = redis.pcall('XGROUP', 'DELCONSUMER', stream, group, member)
  -- Before Redis 7 it is refused where there is no room: the member stays, and does no harm.
  if type(gone) == 'table' and gone.err and not string.find(gone.err, '^%-?OOM ') then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, member)
  end
end
";

/// What scripts check: whether a delivery still stands.
pub(super) const STANDS: &str = "
local function stands(stream, group, me, id, fence)
  local pending = redis.call('XPENDING', stream, group, id, id, 1)
  return pending[1] and pending[1][2] == me and pending[1][4] == tonumber(fence)
end
";

/// Makes an entry wait for its time, with the member `~delayed`; `count` may be what sets how often
/// it was handed out. Returns nothing if it was deleted, which servers before Redis 7 do not tell.
/// Needs [`MAY`](crate::output::MAY).
pub(super) const DELAY: &str = "
-- What would fail if the key had another type, or a right were missing, fails here.
local function may_delay(stream, delayed, group)
  redis.call('ZCARD', delayed)
  may({{'XCLAIM', stream, group, '~delayed', '0', '0-0', 'JUSTID'}, {'ZADD', delayed, '0', 'm'}})
end
-- The time first: an entry of `~delayed` without one nobody would claim.
local function delay(stream, delayed, group, id, due, count)
  redis.call('ZADD', delayed, due, id)
  return redis.call('XCLAIM', stream, group, '~delayed', 0, id, 'JUSTID', unpack(count or {}))[1]
end
";

/// The server's time in milliseconds.
pub(super) const NOW: &str = "
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
";

/// Which id comes first, and which entries a group still needs.
pub(super) const NEEDS: &str = "
-- As texts: a number here has 53 bits, of an id's 64.
local function less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end
local function before(a, b)
  local ams, an = string.match(a, '(%d+)-(%d+)')
  local bms, bn = string.match(b, '(%d+)-(%d+)')
  return less(ams, bms) or (ams == bms and less(an, bn))
end
local function groups_of(stream)
  local groups = {}
  if redis.call('TYPE', stream).ok == 'none' then return groups end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local kept = {}
    for i = 1, #group, 2 do kept[group[i]] = group[i + 1] end
    groups[#groups + 1] = kept
  end
  return groups
end
-- No entry before this one is pending or not delivered.
local function needs(stream, group)
  local first = group['last-delivered-id']
  if group['pending'] > 0 then
    -- A group that was set back has both.
    local pending = redis.call('XPENDING', stream, group['name'])[2]
    if before(pending, first) then first = pending end
  end
  return first
end
";

/// Removes entries that every group is past, a bounded number each time: all of them or, for a
/// stream with a retention, those that are too many or too old. `ARGV[from]` to `ARGV[to]` are
/// groups that must exist: one that is missing, for example because someone deleted the stream, has
/// received nothing yet, so nothing is removed and the result is 0; otherwise it is 1. Needs
/// [`NOW`] and [`NEEDS`].
pub(super) const PAST: &str = "
local function trim(stream, messages, age, from, to)
  local first, there = nil, {}
  for _, group in ipairs(groups_of(stream)) do
    there[group['name']] = true
    local needed = needs(stream, group)
    if not first or before(needed, first) then first = needed end
  end
  for i = from, to do
    if not there[ARGV[i]] then return 0 end
  end
  if messages < 0 and age < 0 then
    if first then redis.call('XTRIM', stream, 'MINID', '~', first) end
    return 1
  end
  first = first or '18446744073709551615-18446744073709551615'
  if messages >= 0 then
    -- The limit is the number that may go.
    local more = math.min(redis.call('XLEN', stream) - messages, 10000)
    if more > 0 then redis.call('XTRIM', stream, 'MINID', '~', first, 'LIMIT', more) end
  end
  if age >= 0 then
    local oldest = string.format('%.0f', math.max(now() - age, 0)) .. '-0'
    if before(first, oldest) then oldest = first end
    redis.call('XTRIM', stream, 'MINID', '~', oldest, 'LIMIT', 10000)
  end
  return 1
end
";
