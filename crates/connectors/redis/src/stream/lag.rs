//! How much waits for a group of a stream.

use std::sync::{Arc, LazyLock};

use brigade_core::connector::{ConnectorError, Lag};

use super::connector::Keys;
use super::lua::{NEEDS, NOW};
use super::retention::Retention;
use crate::script::Script;
use crate::wire::Wire;

/// How much waits. KEYS: stream, delayed, later. ARGV: group, whether acked entries stay (1).
/// Returns how many are ready, delayed, and handed out.
static LAG: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NOW}{NEEDS}
        -- How many entries come after one, up to 1000; a few at a time, as they are read for that.
        local function after(id)
          local count = 0
          repeat
            local some = redis.call('XRANGE', KEYS[1], '(' .. id, '+', 'COUNT', 50)
            count = count + #some
            if #some > 0 then id = some[#some][1] end
          until #some < 50 or count >= 1000
          return count
        end
        local time = now()
        local groups = groups_of(KEYS[1])
        local pending, lag, last = 0, -1, nil
        for _, group in ipairs(groups) do
          if group['name'] == ARGV[1] then
            pending, last = group['pending'], group['last-delivered-id']
            if group['lag'] then lag = group['lag'] end
          end
        end
        local length = redis.call('XLEN', KEYS[1])
        local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
        if not last or (first and before(last, first[1])) then
          -- A group that is not there begins with what is; one that has read nothing of it goes on with that.
          lag = length
        elseif not redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1] then
          -- Also where deleted entries let nobody count, or acked ones are left of other days.
          lag = 0
        elseif #groups == 1 and ARGV[2] ~= '1' then
          -- What is pending and was trimmed is not there any more.
          local trimmed = 0
          if pending > 0 then
            trimmed = #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '(' .. first[1], 100000)
          end
          -- Entries that were left behind are in this; such that were deleted unread may be in the other.
          local left = math.max(length - (pending - trimmed), 1)
          if lag < 0 or left < lag then lag = left end
        elseif lag < 0 then
          -- Where an entry was deleted unread, and before Redis 7, the server does not say.
          lag = after(last)
        end
        local all = redis.call('ZCARD', KEYS[2])
        local due = redis.call('ZCOUNT', KEYS[2], '-inf', time)
        local later = redis.call('ZCARD', KEYS[3])
        return {{lag + due, all - due + later, pending - all}}"
    ))
});

/// How much is ready, delayed and handed out.
pub(super) async fn lag(
    wire: &Arc<Wire>,
    keys: &Keys,
    retention: Option<Retention>,
) -> Result<Lag, ConnectorError> {
    let mut lag = LAG.key(&keys.stream);
    lag.key(&keys.delayed).key(&keys.later).arg(&keys.group);
    lag.arg(u8::from(retention.is_some()));
    let (ready, delayed, held): (u64, u64, i64) = wire.script(lag).await?;
    let in_flight = u64::try_from(held).ok();
    Ok(Lag { ready: Some(ready), delayed: Some(delayed), in_flight, ..Lag::default() })
}
