//! Rows: putting messages into the file and taking them out.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use brigade_core::connector::{ConnectorError, Limit, Outgoing};
use brigade_core::{IncarnationId, Message, MessageId, Period, Timestamp};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::headers::Unreadable;
use crate::schema::{BEHIND, DELAYED, READY};
use crate::settings::{Dedup, Settings};
use crate::thread::{Fault, Work};

/// The time now in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    Timestamp::from(SystemTime::now()).0
}

/// A queue as a producer writes it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) pipeline: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) groups: Vec<Arc<str>>,
    pub(crate) limit: Limit,
    pub(crate) settings: Settings,
}

/// The number of a queue's group, which is entered if it is new.
pub(crate) fn queue_id(
    db: &Connection,
    pipeline: &str,
    name: &str,
    group: &str,
) -> rusqlite::Result<i64> {
    let find = "SELECT id FROM queues WHERE pipeline = ?1 AND name = ?2 AND grp = ?3";
    let key = params![pipeline, name, group];
    if let Some(id) = db.prepare_cached(find)?.query_row(key, |row| row.get(0)).optional()? {
        return Ok(id);
    }
    let enter = "INSERT INTO queues (pipeline, name, grp) VALUES (?1, ?2, ?3)";
    db.prepare_cached(enter)?.execute(key)?;
    Ok(db.last_insert_rowid())
}

/// What a batch was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MadeOf {
    /// From one message, and it is put with its ack: it cannot be put in parts.
    One,
    /// From any messages: what is too much for a queue may come in smaller parts.
    Any,
}

impl MadeOf {
    /// Made from `messages` messages, in the transaction of their acks.
    pub(crate) fn acked(messages: usize) -> Self {
        if messages == 1 { Self::One } else { Self::Any }
    }
}

/// Puts messages on a queue, for each of its groups. If the queue is full nothing is put; an empty
/// one takes everything that one message became, since otherwise it could never take it.
pub(crate) fn enqueue(
    work: &mut Work<'_>,
    target: &Target,
    batch: &[Outgoing],
    of: MadeOf,
) -> Result<(), Fault> {
    let former = former_groups(work.db, target)?;
    for group in &target.groups {
        let queue = queue_id(work.db, &target.pipeline, &target.name, group)?;
        // First, as it makes room.
        if let Some(retention) = target.settings.retention {
            expire(work, queue, &target.name, retention)?;
        }
        let sql = "SELECT key_order, messages, bytes FROM queues WHERE id = ?1";
        let (ordered, messages, bytes) =
            work.db.prepare_cached(sql)?.query_row([queue], |row| {
                Ok((row.get::<_, bool>(0)?, row.get::<_, u64>(1)?, row.get::<_, u64>(2)?))
            })?;
        let new = match target.settings.dedup {
            None => Cow::Borrowed(batch),
            Some(dedup) => first_times(work.db, (queue, &former), batch, dedup)?,
        };
        let (put, size) =
            (new.len() as u64, new.iter().map(|o| o.message.size() as u64).sum::<u64>());
        if of == MadeOf::Any || messages > 0 {
            refuse_if_full(target, messages + put, bytes + size)?;
        }
        insert(work.db, queue, ordered, &new)?;
        let sql = "UPDATE queues SET messages = messages + ?2, bytes = bytes + ?3 WHERE id = ?1";
        work.db.prepare_cached(sql)?.execute(params![queue, put, size])?;
        if let Some(dedup) = target.settings.dedup {
            forget_seen(work.db, queue, dedup, put)?;
        }
    }
    for queue in former {
        target.settings.dedup.map_or(Ok(()), |dedup| forget_seen(work.db, queue, dedup, 0))?;
    }
    work.woke = true;
    Ok(())
}

/// How much a group of a queue holds.
struct Held {
    queue: i64,
    messages: u64,
    bytes: u64,
}

/// The messages of a batch, by index, for which a queue has no room once the others are on it; and
/// the error text for each.
pub(crate) fn without_room(
    work: &mut Work<'_>,
    target: &Target,
    batch: &[Outgoing],
) -> Result<Vec<(usize, String)>, Fault> {
    let mut groups = Vec::with_capacity(target.groups.len());
    for group in &target.groups {
        let queue = queue_id(work.db, &target.pipeline, &target.name, group)?;
        if let Some(retention) = target.settings.retention {
            expire(work, queue, &target.name, retention)?;
        }
        let sql = "SELECT messages, bytes FROM queues WHERE id = ?1";
        let read = |row: &Row<'_>| Ok(Held { queue, messages: row.get(0)?, bytes: row.get(1)? });
        groups.push(work.db.prepare_cached(sql)?.query_row([queue], read)?);
    }
    let former = former_groups(work.db, target)?;
    let (mut without, mut put) = (Vec::new(), BTreeSet::new());
    for (at, Outgoing { message, .. }) in batch.iter().enumerate() {
        let size = message.size() as u64;
        let mut more = Vec::with_capacity(groups.len());
        for (group, held) in groups.iter().enumerate() {
            let again = match target.settings.dedup {
                None => false,
                Some(_) if put.contains(&message.id.0) => true,
                Some(dedup) => {
                    was_seen(work.db, &[held.queue], message.id, dedup)?
                        || was_seen(work.db, &former, message.id, dedup)?
                }
            };
            more.extend((!again).then_some(group));
        }
        let full = |group: &usize| {
            let held = &groups[*group];
            refuse_if_full(target, held.messages + 1, held.bytes + size).err()
        };
        if let Some(full) = more.iter().find_map(full) {
            without.push((at, full.to_string()));
            continue;
        }
        if message.id != MessageId::default() {
            put.insert(message.id.0);
        }
        for group in more {
            groups[group].messages += 1;
            groups[group].bytes += size;
        }
    }
    Ok(without)
}

/// Ids put before this time are no longer remembered.
fn remembered_since(dedup: Dedup) -> i64 {
    now_ms().saturating_sub(millis(dedup.period))
}

/// The former groups of a queue with `dedup` that still remember ids: what was put for them was put
/// on the queue.
fn former_groups(db: &Connection, target: &Target) -> rusqlite::Result<Vec<i64>> {
    if target.settings.dedup.is_none() {
        return Ok(Vec::new());
    }
    let sql = "SELECT id, grp FROM queues WHERE pipeline = ?1 AND name = ?2 AND seen > 0";
    let mut groups = db.prepare_cached(sql)?;
    let groups = groups.query_map([&*target.pipeline, &*target.name], |row| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
    })?;
    let mut groups: Vec<_> = groups.collect::<rusqlite::Result<_>>()?;
    groups.retain(|(_, group)| !target.groups.iter().any(|read| **read == **group));
    Ok(groups.into_iter().map(|(queue, _)| queue).collect())
}

/// Whether a message with this id was put in one of these groups, and is remembered.
fn was_seen(
    db: &Connection,
    queues: &[i64],
    id: MessageId,
    dedup: Dedup,
) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM seen WHERE queue = ?1 AND mid = ?2 AND at >= ?3";
    for queue in queues {
        let values = params![queue, id.0.to_le_bytes(), remembered_since(dedup)];
        if db.prepare_cached(sql)?.exists(values)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The messages of a batch that were not put before.
fn first_times<'b>(
    db: &Connection,
    (queue, former): (i64, &[i64]),
    batch: &'b [Outgoing],
    dedup: Dedup,
) -> rusqlite::Result<Cow<'b, [Outgoing]>> {
    let mut new = Vec::with_capacity(batch.len());
    for outgoing in batch {
        let known = was_seen(db, former, outgoing.message.id, dedup)?;
        if !known && first_time(db, queue, outgoing, dedup)? {
            new.push(outgoing.clone());
        }
    }
    Ok(Cow::Owned(new))
}

/// Remembers a message's id; returns whether it was not remembered before. A message without an id
/// is always new.
fn first_time(
    db: &Connection,
    queue: i64,
    outgoing: &Outgoing,
    dedup: Dedup,
) -> rusqlite::Result<bool> {
    let id = outgoing.message.id;
    if id == MessageId::default() {
        return Ok(true);
    }
    let mid = id.0.to_le_bytes();
    let sql = "INSERT OR IGNORE INTO seen (queue, mid, at) VALUES (?1, ?2, ?3)";
    let mut insert = db.prepare_cached(sql)?;
    if insert.execute(params![queue, mid, now_ms()])? > 0 {
        db.prepare_cached("UPDATE queues SET seen = seen + 1 WHERE id = ?1")?.execute([queue])?;
        return Ok(true);
    }
    // One that is too old may still be there; entered again, it is the youngest.
    let old = "DELETE FROM seen WHERE queue = ?1 AND mid = ?2 AND at < ?3";
    let old = db.prepare_cached(old)?.execute(params![queue, mid, remembered_since(dedup)])?;
    Ok(old > 0 && insert.execute(params![queue, mid, now_ms()])? > 0)
}

/// Forgets ids that are too many, at most `FORGET_MAX` at a time, or else those that are too old,
/// checking at most `new` or `FORGET_LOOK` ids, whichever is more. So a batch with `new` new ids does
/// not wait long for it.
fn forget_seen(db: &Connection, queue: i64, dedup: Dedup, new: u64) -> rusqlite::Result<()> {
    const FORGET_MAX: u64 = 5000;
    let seen: u64 = db
        .prepare_cached("SELECT seen FROM queues WHERE id = ?1")?
        .query_row([queue], |row| row.get(0))?;
    let too_many = seen.saturating_sub(dedup.max).min(FORGET_MAX);
    let oldest = "DELETE FROM seen WHERE n IN
                  (SELECT n FROM seen WHERE queue = ?1 ORDER BY n LIMIT ?2)";
    let mut gone = db.prepare_cached(oldest)?.execute(params![queue, too_many])?;
    let old = "DELETE FROM seen WHERE n IN
               (SELECT n FROM seen WHERE queue = ?1 ORDER BY n LIMIT ?2) AND at < ?3";
    // If some were forgotten because of their number, there are more than enough young ones.
    if gone == 0 {
        let values = params![queue, new.max(FORGET_LOOK), remembered_since(dedup)];
        gone += db.prepare_cached(old)?.execute(values)?;
    }
    let sql = "UPDATE queues SET seen = seen - ?2 WHERE id = ?1";
    db.prepare_cached(sql)?.execute(params![queue, gone])?;
    Ok(())
}

/// How many of the oldest ids are checked with each batch, at least: otherwise as many as it has
/// new ones, so that their number does not keep growing.
const FORGET_LOOK: u64 = 200;

/// Removes messages that could have been taken for longer than the queue's `retention`, but were
/// not.
pub(crate) fn expire(
    work: &mut Work<'_>,
    queue: i64,
    name: &str,
    retention: Period,
) -> rusqlite::Result<()> {
    let before = now_ms().saturating_sub(millis(retention));
    let Some(from) = old_row(work.db, queue, before)? else { return Ok(()) };
    let sql = "DELETE FROM messages WHERE id IN (SELECT id FROM messages
                 WHERE queue = ?1 AND state = 0 AND id >= ?2 ORDER BY id LIMIT ?3) AND visible_at < ?4
               RETURNING size, order_key";
    // Rows waiting behind them were not taken either, so they keep their age.
    let gone = delete_rows(work, queue, sql, params![queue, from, EXPIRE_LOOK, before], 0)?;
    tell_expired(name, gone, retention);
    Ok(())
}

/// How many rows are checked at once, so that nothing else waits for long.
const EXPIRE_LOOK: u64 = 1000;

pub(crate) fn tell_expired(queue: &str, gone: u64, retention: Period) {
    if gone > 0 {
        tracing::info!(queue, gone, %retention, "removed what nobody took for so long");
    }
}

/// One step of removing everything that `retention` bounds, starting at row `from`, before a queue
/// hands out anything: what could have been taken since `before`. Returns where the next step
/// starts, if there may be more, and how many are gone.
pub(crate) fn expire_from(
    work: &mut Work<'_>,
    queue: i64,
    before: i64,
    from: i64,
) -> rusqlite::Result<(Option<i64>, u64)> {
    // What waits for its time is found by that; it is not made ready first, as it may be much.
    let delayed = "DELETE FROM messages WHERE id IN (SELECT id FROM messages
                     WHERE queue = ?1 AND state = 1 AND visible_at < ?2 LIMIT ?3)
                   RETURNING size, order_key";
    let mut gone = delete_rows(work, queue, delayed, params![queue, before, EXPIRE_LOOK], 0)?;
    let looked_at = "SELECT id, enqueued_at FROM (SELECT id, enqueued_at FROM messages
                       WHERE queue = ?1 AND state = 0 AND id >= ?2 ORDER BY id LIMIT ?3)
                     ORDER BY id DESC LIMIT 1";
    let ready = "DELETE FROM messages WHERE queue = ?1 AND state = 0 AND id BETWEEN ?2 AND ?3
                   AND visible_at < ?4
                 RETURNING size, order_key";
    let next = loop {
        let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        let last = work.db.prepare_cached(looked_at)?;
        let last = { last }.query_row(params![queue, from, EXPIRE_LOOK], read).optional()?;
        let more = match last {
            None => 0,
            Some((last, _)) => {
                delete_rows(work, queue, ready, params![queue, from, last, before], 0)?
            }
        };
        gone += more;
        match last {
            // Rows that waited behind them are ready now, and as old.
            _ if gone >= EXPIRE_LOOK => break Some(from),
            Some(_) if more > 0 => {}
            // Rows that were put later cannot be old.
            Some((last, put)) if put < before => break Some(last + 1),
            _ => break None,
        }
    };
    Ok((next, gone))
}

/// A row that could have been taken since before this time, if one is found cheaply: the first
/// ready row, or one of a few random ones. Rows given back recently come before rows never taken,
/// and are not old themselves.
fn old_row(db: &Connection, queue: i64, before: i64) -> rusqlite::Result<Option<i64>> {
    const FEW: i64 = 16;
    let sql = "SELECT (SELECT min(id) FROM messages WHERE queue = ?1 AND state = 0),
                      (SELECT max(id) FROM messages WHERE queue = ?1 AND state = 0)";
    let read = |row: &Row<'_>| Ok(row.get::<_, Option<i64>>(0)?.zip(row.get(1)?));
    let ends: Option<(i64, i64)> = db.prepare_cached(sql)?.query_row([queue], read)?;
    let Some((first, last)) = ends else { return Ok(None) };
    let anywhere = fastrand::i64(first..=first.max(last - FEW + 1));
    let sql = "SELECT id FROM (SELECT id, visible_at FROM messages
                 WHERE queue = ?1 AND state = 0 AND id >= ?2 ORDER BY id LIMIT ?3)
               WHERE visible_at < ?4 ORDER BY id LIMIT 1";
    let mut find = db.prepare_cached(sql)?;
    for (from, rows) in [(first, 1), (anywhere, FEW)] {
        let found = find.query_row(params![queue, from, rows, before], |row| row.get(0));
        if let Some(found) = found.optional()? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Deletes the rows selected by a statement, which returns `size, order_key`; rows that waited
/// behind them in their keys become ready, with `since` as for [`promote`]. Returns how many were
/// deleted.
pub(crate) fn delete_rows(
    work: &mut Work<'_>,
    queue: i64,
    sql: &str,
    values: &[&dyn rusqlite::ToSql],
    since: i64,
) -> rusqlite::Result<u64> {
    let read = |row: &Row<'_>| Ok((row.get::<_, u64>(0)?, row.get::<_, Option<Vec<u8>>>(1)?));
    let mut gone = work.db.prepare_cached(sql)?;
    let gone: Vec<_> = gone.query_map(values, read)?.collect::<rusqlite::Result<_>>()?;
    let bytes: u64 = gone.iter().map(|(size, _)| size).sum();
    let sql = "UPDATE queues SET messages = messages - ?2, bytes = bytes - ?3 WHERE id = ?1";
    work.db.prepare_cached(sql)?.execute(params![queue, gone.len(), bytes])?;
    let keys: BTreeSet<_> = gone.iter().filter_map(|(_, key)| key.as_ref()).collect();
    for key in keys {
        work.woke |= promote(work.db, queue, key, since)?;
    }
    Ok(gone.len() as u64)
}

pub(crate) fn millis(period: Period) -> i64 {
    i64::try_from(period.0.as_millis()).unwrap_or(i64::MAX)
}

/// Marks an error as "the queue is full", to distinguish it from other transient ones.
#[derive(Debug)]
struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it takes more once some of that was taken")
    }
}

impl std::error::Error for Full {}

/// Whether an error says that the queue is full.
pub(crate) fn is_full(error: &ConnectorError) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<Full>())
}

fn refuse_if_full(target: &Target, messages: u64, bytes: u64) -> Result<(), ConnectorError> {
    let limit = &target.limit;
    let over = |what: &str, limit: u64| {
        let text = format!("queue `{}` is full: its limit is {limit} {what}", target.name);
        Err(ConnectorError::transient(text).caused_by(Full))
    };
    match (limit.messages, limit.bytes) {
        (Some(max), _) if messages > max => over("messages", max),
        (_, Some(max)) if bytes > max.0 => over("bytes", max.0),
        _ => Ok(()),
    }
}

fn insert(db: &Connection, queue: i64, ordered: bool, batch: &[Outgoing]) -> rusqlite::Result<()> {
    let sql = "SELECT 1 FROM messages WHERE queue = ?1 AND order_key = ?2 LIMIT 1";
    let mut of_key = db.prepare_cached(sql)?;
    let sql = "INSERT INTO messages
        (queue, state, visible_at, order_key, enqueued_at, size, mid, key, headers, event_time, payload)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let mut insert = db.prepare_cached(sql)?;
    let now = now_ms();
    for Outgoing { message, delay, .. } in batch {
        let delay = delay.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
        let order_key = message.key.as_deref().filter(|_| ordered);
        let behind = order_key.map(|key| of_key.exists(params![queue, key])).transpose()?;
        let state = match (behind, delay) {
            (Some(true), _) => BEHIND,
            (_, 0) => READY,
            (_, _) => DELAYED,
        };
        insert.execute(params![
            queue,
            state,
            now.saturating_add(delay),
            order_key,
            now,
            message.size(),
            message.id.0.to_le_bytes(),
            message.key.as_deref(),
            crate::headers::encode(&message.headers),
            message.event_time.map(|time| time.0),
            message.payload.as_deref(),
        ])?;
    }
    Ok(())
}

/// The columns that [`message`] reads, in its order.
pub(crate) const MESSAGE: &str = "id, mid, key, headers, event_time, payload";

/// Reads a message, and what is wrong with its headers. One that was put without an id gets one
/// from its row.
pub(crate) fn message(
    row: &Row<'_>,
    incarnation: IncarnationId,
) -> rusqlite::Result<(Message, Option<Unreadable>)> {
    let bytes = |at: usize| row.get::<_, Option<Vec<u8>>>(at).map(|b| b.map(Bytes::from));
    let position: u64 = row.get(0)?;
    let id = u128::from_le_bytes(row.get(1)?);
    let id = if id == 0 { MessageId::root(incarnation, position) } else { MessageId(id) };
    let (headers, unreadable) = crate::headers::read(row.get_ref(3)?.as_bytes_or_null()?);
    let message = Message {
        id,
        key: bytes(2)?,
        headers,
        event_time: row.get::<_, Option<i64>>(4)?.map(Timestamp),
        payload: bytes(5)?,
    };
    Ok((message, unreadable))
}

/// A row that is leased.
pub(crate) struct Leased {
    id: u64,
    size: u64,
    key: Option<Vec<u8>>,
}

/// Finds rows by their numbers and fences; also returns those whose fence has changed.
pub(crate) fn leased(
    work: &Work<'_>,
    queue: i64,
    rows: &[(u64, u64)],
) -> rusqlite::Result<(Vec<Leased>, Vec<u64>)> {
    let (mut leased, mut fenced) = (Vec::with_capacity(rows.len()), Vec::new());
    let sql = "SELECT size, order_key FROM messages
               WHERE id = ?1 AND fence = ?2 AND state = 2 AND queue = ?3";
    let mut find = work.db.prepare_cached(sql)?;
    for (id, fence) in rows {
        let read = |row: &Row<'_>| Ok(Leased { id: *id, size: row.get(0)?, key: row.get(1)? });
        match find.query_row(params![id, fence, queue], read).optional()? {
            Some(row) => leased.push(row),
            None => fenced.push(*id),
        }
    }
    Ok((leased, fenced))
}

/// Deletes rows that are done.
pub(crate) fn delete_leased(
    work: &mut Work<'_>,
    queue: i64,
    rows: &[Leased],
) -> rusqlite::Result<()> {
    // A deletion with `RETURNING` takes three times as long: it fills a table.
    let mut delete = work.db.prepare_cached("DELETE FROM messages WHERE id = ?1")?;
    for row in rows {
        delete.execute([row.id])?;
    }
    let bytes: u64 = rows.iter().map(|row| row.size).sum();
    let sql = "UPDATE queues SET messages = messages - ?2, bytes = bytes - ?3 WHERE id = ?1";
    work.db.prepare_cached(sql)?.execute(params![queue, rows.len(), bytes])?;
    let keys: BTreeSet<&[u8]> = rows.iter().filter_map(|row| row.key.as_deref()).collect();
    let now = now_ms();
    for key in keys {
        work.woke |= promote(work.db, queue, key, now)?;
    }
    Ok(())
}

/// Makes the first row of a key ready if none of the key is handed out; returns whether it did. It
/// counts as available since `since` at the earliest. For a row behind another, `visible_at` is the
/// end of its delay, or when it was put: a clock that was set back does not turn that into a delay.
pub(crate) fn promote(
    db: &Connection,
    queue: i64,
    key: &[u8],
    since: i64,
) -> rusqlite::Result<bool> {
    let leased = "SELECT 1 FROM messages WHERE queue = ?1 AND order_key = ?2 AND state = 2 LIMIT 1";
    if db.prepare_cached(leased)?.exists(params![queue, key])? {
        return Ok(false);
    }
    let first = "SELECT id, state, visible_at > ?3 AND visible_at > enqueued_at FROM messages
                 WHERE queue = ?1 AND order_key = ?2 ORDER BY id LIMIT 1";
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let first: Option<(i64, i64, bool)> =
        db.prepare_cached(first)?.query_row(params![queue, key, now_ms()], read).optional()?;
    let Some((id, BEHIND, delayed)) = first else { return Ok(false) };
    let state = if delayed { DELAYED } else { READY };
    let sql = "UPDATE messages SET state = ?2, visible_at = max(visible_at, ?3) WHERE id = ?1";
    db.prepare_cached(sql)?.execute([id, state, since])?;
    Ok(true)
}

/// Makes the first rows of keys ready whose rows were leased and now wait behind others.
pub(crate) fn promote_freed(
    db: &Connection,
    freed: &BTreeSet<(i64, Option<Vec<u8>>)>,
) -> rusqlite::Result<()> {
    let now = now_ms();
    for (queue, key) in freed {
        if let Some(key) = key {
            promote(db, *queue, key, now)?;
        }
    }
    Ok(())
}
