//! The scripts: each is one step that is done entirely or not at all.

use std::sync::LazyLock;

use super::lua::{CLAIM, DELAY, FORGET, NEEDS, NOW, PAST, STANDS};
use crate::output::{MANY, MAY, PUT};
use crate::script::Script;

/// Trims a stream to its retention. KEYS: stream. ARGV: the most entries and the greatest age in
/// milliseconds, each or -1; with neither there is no retention; then the groups that must exist.
/// Returns 0 if one of them is missing: nothing was removed.
pub(crate) static TRIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NOW}{NEEDS}{PAST}
        return trim(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]), 3, #ARGV)"
    ))
});

/// Claims what was put back and is due. First moves messages that were put with a delay and are due
/// to the stream, if the server has room for them: at most a thousand, and no further one once
/// these have 4 MiB. KEYS: stream, delayed, attempts, later. ARGV: group, member, count. Returns
/// what [`CLAIM`] does, and in how many milliseconds the next is due, or -1.
pub(crate) static CLAIM_DUE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{CLAIM}{NOW}{MAY}
        local time, full = now(), false
        local moved, bytes = 0, 0
        while moved < 1000 and bytes < 4194304 do
          -- One by one: they may be long, and here they take memory that is beyond `maxmemory`.
          local packed = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', time, 'LIMIT', 0, 1)[1]
          if not packed then break end
          if moved == 0 then may({{{{'XADD', KEYS[1], '*', 'f', 'v'}}, {{'ZREM', KEYS[4], 'm'}}}}) end
          moved, bytes = moved + 1, bytes + #packed
          local fields = cmsgpack.unpack(packed)
          table.remove(fields, 1)
          local put = redis.pcall('XADD', KEYS[1], '*', unpack(fields))
          if type(put) == 'table' and put.err then
            full = string.find(put.err, '^%-?OOM ')
            if full then break end
            -- Whatever else it is ends the script where it says so.
            redis.call('XADD', KEYS[1], '*', unpack(fields))
          end
          redis.call('ZREM', KEYS[4], packed)
        end
        local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', time, 'LIMIT', 0, ARGV[3])
        local waiting = {{}}
        if #due > 0 then
          redis.call('HGET', KEYS[3], 'f')
          may({{
            {{'XCLAIM', KEYS[1], ARGV[1], ARGV[2], '0', '0-0'}}, {{'ZREM', KEYS[2], 'm'}},
            {{'XPENDING', KEYS[1], ARGV[1], '-', '+', '1'}},
            {{'XACK', KEYS[1], ARGV[1], '0-0'}}, {{'HDEL', KEYS[3], 'f'}}
          }})
          for _, id in ipairs(due) do
            local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1]
            if pending and pending[2] == '~delayed' then
              waiting[#waiting + 1] = id
            else
              -- Handed out as new by a group that was made again, or claimed or acked by another program.
              redis.call('HDEL', KEYS[3], id)
            end
          end
        end
        local claimed, gone = claim(KEYS[1], KEYS[3], ARGV[1], ARGV[2], waiting)
        -- Last: what is neither claimed nor here nobody would find.
        if #due > 0 then redis.call('ZREM', KEYS[2], unpack(due)) end
        local wait = -1
        for _, key in ipairs({{KEYS[2], KEYS[4]}}) do
          local next = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
          -- What has no room is looked for when the read has waited.
          if next[2] and not (full and key == KEYS[4]) then
            local left = math.max(tonumber(next[2]) - time, 0)
            if wait < 0 or left < wait then wait = left end
          end
        end
        return {{{{claimed, gone}}, wait}}"
    ))
});

/// The values of members' alive keys. KEYS: these.
pub(crate) static ALIVE_KEYS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
        local signs = {}
        for i, key in ipairs(KEYS) do signs[i] = redis.call('GET', key) end
        return signs",
    )
});

/// Claims what a member held that is no longer alive, and forgets it when it holds nothing. KEYS:
/// stream, attempts, the member's alive key. ARGV: group, member, the dead one, count, the value of
/// its alive key that is no sign of life, or nothing if it has none. Claims nothing if that value has
/// changed. Like those below it returns what [`CLAIM`] does.
pub(crate) static CLAIM_DEAD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{CLAIM}{FORGET}
        local alive = redis.call('GET', KEYS[3])
        if (alive or '') ~= ARGV[5] then return {{{{}}, 0}} end
        local held = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[4], ARGV[3])
        if #held == 0 then
          forget(KEYS[1], ARGV[1], ARGV[3], KEYS[3])
          return {{{{}}, 0}}
        end
        local ids = {{}}
        for _, entry in ipairs(held) do ids[#ids + 1] = entry[1] end
        return {{claim(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ids)}}"
    ))
});

/// Claims what another program's member held for too long: it has no alive key. It may be alive, so
/// it stays in the group. KEYS: stream, attempts. ARGV: group, member, the other, count, how many
/// milliseconds are too long.
pub(crate) static CLAIM_IDLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{CLAIM}
        local held =
          redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[5], '-', '+', ARGV[4], ARGV[3])
        local ids = {{}}
        for _, entry in ipairs(held) do ids[#ids + 1] = entry[1] end
        return {{claim(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ids)}}"
    ))
});

/// Which entries a member holds, with their fences. KEYS: stream. ARGV: group, member, from which on,
/// how many at most.
pub(crate) static HELD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
        local ids = {}
        for _, entry in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], '+', ARGV[4], ARGV[2])) do
          ids[#ids + 1] = {entry[1], entry[4]}
        end
        return ids",
    )
});

/// Claims the member's own entries again, except those that are no longer its own. KEYS: stream,
/// attempts. ARGV: group, member, then the ids.
pub(crate) static CLAIM_OWN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{CLAIM}
        local ids = {{}}
        for i = 3, #ARGV do
          local id = ARGV[i]
          local own = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])
          if own[1] then ids[#ids + 1] = id end
        end
        return {{claim(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ids)}}"
    ))
});

/// Acks what still stands, and puts outputs; if there are outputs, all or nothing. An entry that no
/// group needs any more is removed: at once if there is only one group, otherwise when all groups
/// are past it and none of those that must exist is missing. With a retention it stays until that
/// no longer keeps it. KEYS: stream, attempts. ARGV: group, member, how many, the first and the
/// last id, the retention as for [`TRIM`], how many groups must exist, then these, then id and
/// fence of each, then outputs. Returns the indexes of the fenced, from 0.
pub(crate) static ACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{MANY}{MAY}{PUT}{NOW}{NEEDS}{PAST}
        local stream, group, member, n = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
        local messages, age = tonumber(ARGV[6]), tonumber(ARGV[7])
        local groups = tonumber(ARGV[8])
        local past = 8 + groups + 2 * n
        local held = {{}}
        if n > 0 then
          local pending =
            redis.call('XPENDING', stream, group, ARGV[4], ARGV[5], 1000000, member)
          for _, entry in ipairs(pending) do held[entry[1]] = entry[4] end
        end
        local fenced, good = {{}}, {{}}
        for i = 9 + groups, past, 2 do
          if held[ARGV[i]] == tonumber(ARGV[i + 1]) then
            good[#good + 1] = ARGV[i]
            -- One handing-over is one, also where a server that lost its end has told it twice.
            held[ARGV[i]] = nil
          else
            fenced[#fenced + 1] = (i - 9 - groups) / 2
          end
        end
        if #fenced > 0 and #ARGV > past then return fenced end
        -- What would fail if a key had another type, or a right were missing, fails here.
        local sole = messages < 0 and age < 0 and groups == 1
          and #redis.call('XINFO', 'GROUPS', stream) == 1
        redis.call('HGET', KEYS[2], 'f')
        may({{{{'XACK', stream, group, '0-0'}}, {{'HDEL', KEYS[2], 'f'}}}})
        may({{{{sole and 'XDEL' or 'XTRIM', stream, 'MINID', '0'}}}})
        -- Outputs first: a script that ends in an error keeps what it has done.
        local wrong = put(past + 1)
        if wrong then return wrong end
        for from = 1, #good, 1000 do
          local to = math.min(from + 999, #good)
          redis.call('XACK', stream, group, unpack(good, from, to))
          redis.call('HDEL', KEYS[2], unpack(good, from, to))
          if sole then redis.call('XDEL', stream, unpack(good, from, to)) end
        end
        if #good > 0 and not sole then trim(stream, messages, age, 9, 8 + groups) end
        return fenced"
    ))
});

/// Puts back what still stands. KEYS: stream, delayed, attempts. ARGV: group, member, then of each
/// id, fence, delay in milliseconds, attempts or -1. Returns the indexes of the fenced, from 0.
pub(crate) static FAIL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NOW}{STANDS}{MAY}{DELAY}
        local fenced = {{}}
        local time = now()
        may_delay(KEYS[1], KEYS[2], ARGV[1])
        redis.call('HGET', KEYS[3], 'f')
        may({{{{'HSET', KEYS[3], 'f', 'v'}}}})
        -- A full server refuses a script what takes room, but not once it has removed something. What fails has
        -- to go back all the same: the acks that make room wait for it.
        redis.call('HDEL', KEYS[3], 'f')
        for i = 3, #ARGV, 4 do
          local id, attempts = ARGV[i], tonumber(ARGV[i + 3])
          if stands(KEYS[1], ARGV[1], ARGV[2], id, ARGV[i + 1]) then
            if attempts >= 0 then
              local kept = redis.call('HGET', KEYS[3], id)
              local first = kept and string.match(kept, ':(.*)') or time
              redis.call('HSET', KEYS[3], id, attempts .. ':' .. string.format('%.0f', first))
            end
            delay(KEYS[1], KEYS[2], ARGV[1], id, time + tonumber(ARGV[i + 2]))
          else
            fenced[#fenced + 1] = (i - 3) / 4
          end
        end
        return fenced"
    ))
});

/// Puts back what this member has and nobody was handed, in its order: by its own time, which its
/// id tells. KEYS: stream, delayed, attempts. ARGV: group, member, then of each id, fence, and how
/// often it was handed out before, or nothing to leave that. Returns how many were deleted.
pub(crate) static PUT_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NOW}{STANDS}{MAY}{DELAY}
        local time, gone = now(), 0
        may_delay(KEYS[1], KEYS[2], ARGV[1])
        -- A full server refuses a script what takes room, but not once it has removed something.
        redis.call('HDEL', KEYS[3], 'f')
        for i = 3, #ARGV, 3 do
          local id, before = ARGV[i], ARGV[i + 2]
          if stands(KEYS[1], ARGV[1], ARGV[2], id, ARGV[i + 1]) then
            local count = before ~= '' and {{'RETRYCOUNT', before}} or {{}}
            -- Of one millisecond as many as a number can tell apart.
            local ms, number = string.match(id, '(%d+)-(%d+)')
            local own = tonumber(ms) + math.min(tonumber(number), 4095) / 4096
            if not delay(KEYS[1], KEYS[2], ARGV[1], id, math.min(own, time), count) then
              redis.call('ZREM', KEYS[2], id)
              redis.call('HDEL', KEYS[3], id)
              gone = gone + 1
            end
          end
        end
        return gone"
    ))
});

/// Gives back everything that a member holds, and forgets it. KEYS: stream, delayed, its alive key.
/// ARGV: group, member.
pub(crate) static GIVE_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{FORGET}{MAY}{DELAY}
        may_delay(KEYS[1], KEYS[2], ARGV[1])
        -- A full server refuses a script what takes room, but not once it has removed something.
        redis.call('XACK', KEYS[1], ARGV[1], '0-0')
        -- All are due, and come in their order on the stream: equal times go by the ids as texts.
        local due = 0
        while true do
          local held = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000, ARGV[2])
          for _, entry in ipairs(held) do
            due = due + 1
            delay(KEYS[1], KEYS[2], ARGV[1], entry[1], due)
          end
          if #held < 1000 then break end
        end
        forget(KEYS[1], ARGV[1], ARGV[2], KEYS[3])
        return 1"
    ))
});

/// Gives a time to entries of `~delayed` that have none, left behind by a script that ended
/// half-way. KEYS: stream, delayed. ARGV: group. Returns how many there were.
pub(crate) static FIND_TIMELESS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
        local waiting = 0
        for _, member in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1])[4] or {}) do
          if member[1] == '~delayed' then waiting = tonumber(member[2]) end
        end
        if waiting <= redis.call('ZCARD', KEYS[2]) then return 0 end
        local from, found = '-', 0
        while true do
          local held =
            redis.call('XPENDING', KEYS[1], ARGV[1], from, '+', 1000, '~delayed')
          for _, entry in ipairs(held) do
            found = found + redis.call('ZADD', KEYS[2], 'NX', 0, entry[1])
            from = '(' .. entry[1]
          end
          if #held < 1000 then return found end
        end",
    )
});

/// Keeps a message for later. KEYS: later. ARGV: delay in milliseconds, something that
/// distinguishes it from others, then names and values.
pub(crate) static LATER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NOW}
        local packed = {{}}
        for i = 2, #ARGV do packed[#packed + 1] = ARGV[i] end
        redis.call('ZADD', KEYS[1], now() + tonumber(ARGV[1]), cmsgpack.pack(packed))
        return 1"
    ))
});

#[cfg(all(test, feature = "real-redis"))]
mod tests {
    use brigade_testkit::servers::Redis;
    use redis::Value;

    use super::*;

    /// What a script that claims returns.
    type Claimed = (Vec<(String, Value, u64, String)>, u64);

    /// Runs a command as it is typed into `redis-cli`.
    fn ask(server: &mut redis::Connection, command: &str) -> Value {
        let mut words = command.split(' ');
        let mut asked = redis::cmd(words.next().expect("it is not empty"));
        asked.arg(words.collect::<Vec<_>>()).query(server).expect("it is right")
    }

    /// Between asking what a member holds and this script, the member may have put something back.
    #[test]
    fn of_ones_own_only_what_is_still_held_is_claimed_anew() {
        let server = Redis::start();
        let client = redis::Client::open(server.url()).expect("it is an address");
        let mut server = client.get_connection().expect("it answers");
        let mut ask = |command: &str| ask(&mut server, command);
        for id in ["1-1", "2-1", "3-1"] {
            ask(&format!("XADD s {id} payload x"));
        }
        ask("XGROUP CREATE s g 0");
        ask("XREADGROUP GROUP g me STREAMS s >");
        ask("XCLAIM s g ~delayed 0 1-1 JUSTID");
        ask("XCLAIM s g other 0 2-1 JUSTID");
        let mut claim = CLAIM_OWN.key("s");
        claim.key("attempts").arg("g").arg("me").arg("1-1").arg("2-1").arg("3-1").arg("4-1");
        let (claimed, gone): Claimed = claim.invoke(&mut server).expect("it runs");
        let ids: Vec<&str> = claimed.iter().map(|(id, ..)| &**id).collect();
        assert_eq!((ids, claimed[0].2, gone), (vec!["3-1"], 2, 0));
    }

    /// Otherwise nobody else would be answered meanwhile, and the script would hold them all in
    /// memory.
    #[test]
    fn of_long_messages_that_are_due_only_some_are_moved_at_once() {
        let server = Redis::start();
        let client = redis::Client::open(server.url()).expect("it is an address");
        let mut server = client.get_connection().expect("it answers");
        ask(&mut server, "XGROUP CREATE s g 0 MKSTREAM");
        for n in 0..10 {
            let mut put = LATER.key("later");
            put.arg(0).arg(n).arg("payload").arg(vec![b'x'; 1 << 20]);
            put.invoke::<i64>(&mut server).expect("it runs");
        }
        for moved in [4, 8, 10] {
            let mut due = CLAIM_DUE.key("s");
            due.key("delayed").key("attempts").key("later").arg("g").arg("me").arg(10);
            let (_, wait): (Value, i64) = due.invoke(&mut server).expect("it runs");
            assert_eq!(ask(&mut server, "XLEN s"), Value::Int(moved));
            assert_eq!(wait, if moved < 10 { 0 } else { -1 });
        }
    }

    /// Deleted, or trimmed, by someone who knows nothing about attempts.
    #[test]
    fn of_deleted_entries_nothing_is_left_when_they_are_claimed_and_they_are_counted() {
        let server = Redis::start();
        let client = redis::Client::open(server.url()).expect("it is an address");
        let mut server = client.get_connection().expect("it answers");
        for command in [
            "XADD s 1-1 payload x",
            "XADD s 2-1 payload x",
            "XADD s 3-1 payload x",
            "XADD s 4-1 payload x",
            "XGROUP CREATE s g 0",
            "XREADGROUP GROUP g other STREAMS s >",
            "HSET attempts 1-1 1:5 2-1 2:6 3-1 1:7 4-1 1:8",
            "XCLAIM s g ~delayed 0 3-1 4-1 JUSTID",
            // What is not pending has been resolved.
            "ZADD delayed 0 3-1 0 4-1 0 0-7",
            "XTRIM s MINID 2",
            "XDEL s 3-1",
        ] {
            ask(&mut server, command);
        }
        let mut idle = CLAIM_IDLE.key("s");
        idle.key("attempts").arg("g").arg("me").arg("other").arg(10).arg(0);
        let (claimed, gone): Claimed = idle.invoke(&mut server).expect("it runs");
        let claimed: Vec<_> = claimed.iter().map(|one| (&*one.0, &*one.3)).collect();
        assert_eq!((claimed, gone), (vec![("2-1", "2:6")], 1));
        let mut due = CLAIM_DUE.key("s");
        due.key("delayed").key("attempts").key("later").arg("g").arg("me").arg(10);
        let ((claimed, gone), _): (Claimed, i64) = due.invoke(&mut server).expect("it runs");
        let claimed: Vec<_> = claimed.iter().map(|one| (&*one.0, &*one.3)).collect();
        assert_eq!((claimed, gone), (vec![("4-1", "1:8")], 1));
        assert_eq!(ask(&mut server, "HLEN attempts"), Value::Int(2));
        for command in ["XPENDING s g - + 10 other", "XPENDING s g - + 10 ~delayed"] {
            assert_eq!(ask(&mut server, command), Value::Array(Vec::new()));
        }
    }
}
