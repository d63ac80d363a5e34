//! The scripts of those who look into a stream.

use std::sync::LazyLock;

use super::lua::NEEDS;
use crate::script::Script;

/// The member that works on an entry, in any group. In a group that is not in `own`, entries that
/// wait for their time count as worked on too.
const HOLDER: &str = "
local function holder(stream, groups, own, id)
  for _, group in ipairs(groups) do
    local name = group['name']
    local pending = redis.call('XPENDING', stream, name, id, id, 1)[1]
    if pending and not (own[name] and pending[2] == '~delayed') then return pending[2] end
  end
  return false
end
";

/// An entry, and what is known about it. KEYS: stream, attempts of the first group. ARGV: id, the
/// groups. Returns the entry, if it is there, the member that works on it, if any, how often the
/// first group has handed it out, and what is kept of its attempts.
pub(crate) static KNOWN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NEEDS}{HOLDER}
        local there, own, count = groups_of(KEYS[1]), {{}}, 0
        for g = 2, #ARGV do own[ARGV[g]] = true end
        for _, group in ipairs(there) do
          if group['name'] == ARGV[2] then
            local pending = redis.call('XPENDING', KEYS[1], ARGV[2], ARGV[1], ARGV[1], 1)[1]
            if pending then count = pending[4] end
          end
        end
        local held = holder(KEYS[1], there, own, ARGV[1])
        local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
        return {{entry or false, held, count, redis.call('HGET', KEYS[2], ARGV[1])}}"
    ))
});

/// Deletes entries that no member of any group works on; in groups other than these, entries that
/// wait for their time count as worked on too. KEYS: stream, then for each group delayed and
/// attempts. ARGV: how many groups, their names, then the ids. Returns how many were deleted.
pub(crate) static DELETE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NEEDS}{HOLDER}
        local there, own = groups_of(KEYS[1]), {{}}
        local groups, gone = tonumber(ARGV[1]), 0
        for g = 1, groups do own[ARGV[g + 1]] = true end
        for i = groups + 2, #ARGV do
          local id = ARGV[i]
          if not holder(KEYS[1], there, own, id) then
            for g = 1, groups do
              redis.call('XACK', KEYS[1], ARGV[g + 1], id)
              redis.call('ZREM', KEYS[2 * g], id)
              redis.call('HDEL', KEYS[2 * g + 1], id)
            end
            gone = gone + redis.call('XDEL', KEYS[1], id)
          end
        end
        return gone"
    ))
});

/// Forgets messages that were put with a delay. KEYS: later. Returns how many there were.
pub(crate) static PURGE_LATER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
        local there = redis.call('ZCARD', KEYS[1])
        redis.call('DEL', KEYS[1])
        return there",
    )
});

/// Which entries at least one of these groups has not acked; without groups all entries. KEYS:
/// stream. ARGV: the first id, or nothing to begin with the first that a group needs; the last id;
/// how many to look at, if they have no more than 4 MiB before the last of them; how many to return;
/// the groups. Returns the id of each and its length in bytes, and the last id that was looked at.
pub(crate) static LIST: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NEEDS}
        local first, last, there = nil, {{}}, 0
        for _, group in ipairs(groups_of(KEYS[1])) do
          for g = 5, #ARGV do
            if group['name'] == ARGV[g] then
              last[ARGV[g]], there = group['last-delivered-id'], there + 1
              local needed = needs(KEYS[1], group)
              if not first or before(needed, first) then first = needed end
            end
          end
        end
        -- A group that is not there has acked nothing.
        if there < #ARGV - 4 then first = nil end
        local from = ARGV[1] ~= '' and ARGV[1] or first or '-'
        local waiting, at, count, bytes = {{}}, '', 0, 0
        while count < tonumber(ARGV[3]) and #waiting < tonumber(ARGV[4]) and bytes < 4194304 do
          -- One by one: they may be long, and here they take memory that is beyond `maxmemory`.
          local entry = redis.call('XRANGE', KEYS[1], from, ARGV[2], 'COUNT', 1)[1]
          if not entry then break end
          local length, waits = 0, #ARGV == 4
          for _, text in ipairs(entry[2]) do length = length + #text end
          at, count, bytes = entry[1], count + 1, bytes + length
          from = '(' .. at
          for g = 5, #ARGV do
            local group = ARGV[g]
            waits = waits or not last[group] or before(last[group], at)
              or redis.call('XPENDING', KEYS[1], group, at, at, 1)[1] ~= nil
          end
          if waits then waiting[#waiting + 1] = {{at, length}} end
        end
        return {{waiting, at}}"
    ))
});
