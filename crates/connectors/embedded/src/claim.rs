//! Claims: which rows a consumer gets, under which lease.

use std::collections::HashMap;
use std::time::Instant;

use brigade_core::connector::{Defect, Incoming, Order, Receipt, Want};
use brigade_core::{CauseKind, IncarnationId, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::headers::Unreadable;
use crate::rows::{message, now_ms};
use crate::schema::{BEHIND, READY};
use crate::suspects::{Quarantine, Seen, Turn};
use crate::thread::Work;

/// The leases of this process, as its thread knows them without reading the file.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// By row.
    held: HashMap<u64, Lease>,
    quarantine: Quarantine,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    queue: i64,
    fence: u64,
    suspect: bool,
}

impl Leases {
    /// Whether claims wait for suspects, which makes each resolved lease worth a check.
    pub(crate) fn in_quarantine(&self) -> bool {
        self.quarantine.is_on()
    }

    /// Records that a lease has ended, whoever ended it; a later lease of the same row stays.
    pub(crate) fn forget(&mut self, receipt: Receipt) {
        if self.held.get(&receipt.position).is_some_and(|lease| lease.fence == receipt.fence) {
            self.held.remove(&receipt.position);
        }
    }

    /// Reloads them from the file, after a transaction was lost.
    pub(crate) fn reload(&mut self, db: &Connection, holder: i64) {
        let read = || -> rusqlite::Result<HashMap<u64, Lease>> {
            let sql = "SELECT id, queue, fence, suspect FROM messages
                       WHERE queue IN (SELECT id FROM queues) AND state = 2 AND holder = ?1";
            let mut held = db.prepare_cached(sql)?;
            let held = held.query_map([holder], |row| {
                let lease = Lease { queue: row.get(1)?, fence: row.get(2)?, suspect: row.get(3)? };
                Ok((row.get(0)?, lease))
            })?;
            held.collect()
        };
        if let Ok(held) = read() {
            self.held = held;
        }
    }

    fn turn(&mut self, db: &Connection, queue: i64) -> rusqlite::Result<Turn> {
        let waiting = "SELECT 1 FROM messages WHERE suspect = 1 AND state = 0 LIMIT 1";
        let waiting = db.prepare_cached(waiting)?.exists([])?;
        let here = waiting && first_suspect(db, queue)?.is_some();
        let own = self.held.values().filter(|lease| lease.queue == queue).count();
        let suspect = self.held.values().any(|lease| lease.suspect);
        let seen = Seen { waiting, here, leases: self.held.len(), own, suspect };
        Ok(self.quarantine.turn(Instant::now(), seen))
    }
}

fn first_suspect(db: &Connection, queue: i64) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT id FROM messages WHERE queue = ?1 AND suspect = 1 AND state = 0
               ORDER BY id LIMIT 1";
    db.prepare_cached(sql)?.query_row([queue], |row| row.get(0)).optional()
}

/// The result of a claim.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) messages: Vec<Incoming>,
    /// If it is empty: when it is worth claiming again without being woken, in milliseconds since
    /// 1970.
    pub(crate) again_at: Option<i64>,
}

/// How long a claim waits when suspects block the queue, in milliseconds.
const QUARANTINE_LOOK_MS: i64 = 20;

/// Claims rows of a queue.
pub(crate) fn claim(
    work: &mut Work<'_>,
    queue: i64,
    order: Order,
    want: Want,
    incarnation: IncarnationId,
) -> rusqlite::Result<Claimed> {
    wake_delayed(work.db, queue)?;
    let reader = Reader { incarnation, crash_limit: work.options.crash_limit };
    let messages = match work.leases.turn(work.db, queue)? {
        Turn::Wait => {
            let again_at = Some(now_ms() + QUARANTINE_LOOK_MS);
            return Ok(Claimed { messages: Vec::new(), again_at });
        }
        Turn::Suspect => lease_suspect(work, queue, reader)?,
        Turn::Ordinary => lease_ordinary(work, queue, order, want, reader)?,
        Turn::OrdinaryElseSuspect => {
            let ordinary = lease_ordinary(work, queue, order, want, reader)?;
            match ordinary.is_empty() {
                true => lease_suspect(work, queue, reader)?,
                false => ordinary,
            }
        }
    };
    let again_at = if messages.is_empty() { next_delayed(work.db, queue)? } else { None };
    Ok(Claimed { messages, again_at })
}

fn lease_suspect(
    work: &mut Work<'_>,
    queue: i64,
    reader: Reader,
) -> rusqlite::Result<Vec<Incoming>> {
    let row = first_suspect(work.db, queue)?;
    lease(work, queue, row.as_slice(), reader)
}

fn lease_ordinary(
    work: &mut Work<'_>,
    queue: i64,
    order: Order,
    want: Want,
    reader: Reader,
) -> rusqlite::Result<Vec<Incoming>> {
    let rows = match order {
        Order::None => return lease_first(work, queue, want, reader),
        Order::Key => runs(work.db, queue, want)?,
        Order::Queue => head(work.db, queue)?,
    };
    lease(work, queue, &rows, reader)
}

/// Makes delayed rows ready whose time has come.
fn wake_delayed(db: &Connection, queue: i64) -> rusqlite::Result<()> {
    let sql = "UPDATE messages SET state = 0 WHERE queue = ?1 AND state = 1 AND visible_at <= ?2";
    db.prepare_cached(sql)?.execute(params![queue, now_ms()])?;
    Ok(())
}

fn next_delayed(db: &Connection, queue: i64) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT min(visible_at) FROM messages WHERE queue = ?1 AND state = 1";
    db.prepare_cached(sql)?.query_row([queue], |row| row.get(0))
}

/// The ids of the first ready rows, as many as wanted, but at least one; and what is left of the
/// wanted bytes.
fn ready(db: &Connection, queue: i64, want: Want) -> rusqlite::Result<(Vec<u64>, usize)> {
    let sql = "SELECT id, size FROM messages WHERE queue = ?1 AND state = 0 AND suspect = 0
               ORDER BY id LIMIT ?2";
    let mut rows = db.prepare_cached(sql)?;
    let rows = rows.query_map(params![queue, want.messages], size_of)?;
    let (mut taken, mut left) = (Vec::new(), want.bytes);
    for row in rows {
        let (id, size) = row?;
        if size > left && !taken.is_empty() {
            return Ok((taken, 0));
        }
        left = left.saturating_sub(size);
        taken.push(id);
    }
    Ok((taken, left))
}

fn size_of(row: &Row<'_>) -> rusqlite::Result<(u64, usize)> {
    Ok((row.get(0)?, row.get(1)?))
}

/// The first ready rows, each with those that follow it in its key. A ready row is the first of its
/// key, so a lease on a run keeps the key from everybody else.
fn runs(db: &Connection, queue: i64, want: Want) -> rusqlite::Result<Vec<u64>> {
    let (heads, mut left_bytes) = ready(db, queue, want)?;
    let (mut taken, now) = (heads.clone(), now_ms());
    for head in heads {
        let left = want.messages.saturating_sub(taken.len());
        if left == 0 {
            break;
        }
        let sql = "SELECT behind.id, behind.size, behind.state, behind.suspect,
                     behind.visible_at > ?3 AND behind.visible_at > behind.enqueued_at
                   FROM messages AS head JOIN messages AS behind
                     ON behind.queue = head.queue AND behind.order_key = head.order_key
                   WHERE head.id = ?1 AND head.order_key IS NOT NULL AND behind.id > head.id
                   ORDER BY behind.id LIMIT ?2";
        let mut run = db.prepare_cached(sql)?;
        let mut run = run.query(params![head, left, now])?;
        while let Some(row) = run.next()? {
            let (id, size) = size_of(row)?;
            if size > left_bytes {
                return Ok(taken);
            }
            let (state, suspect, delayed): (i64, bool, bool) =
                (row.get(2)?, row.get(3)?, row.get(4)?);
            // A delayed row blocks those behind it.
            if state != BEHIND || suspect || delayed {
                break;
            }
            left_bytes -= size;
            taken.push(id);
        }
    }
    Ok(taken)
}

/// The first row of the queue, if it is ready: in queue order, any other first row blocks the rest.
fn head(db: &Connection, queue: i64) -> rusqlite::Result<Vec<u64>> {
    let mut first: Option<(u64, i64)> = None;
    // The index is by state and row, so the first row of each state is found directly.
    let sql = "SELECT id FROM messages WHERE queue = ?1 AND state = ?2 ORDER BY id LIMIT 1";
    for state in 0..=3_i64 {
        let row = db.prepare_cached(sql)?.query_row([queue, state], |row| row.get(0)).optional()?;
        if let Some(row) = row
            && first.is_none_or(|(id, _)| row < id)
        {
            first = Some((row, state));
        }
    }
    Ok(first.filter(|(_, state)| *state == READY).map(|(id, _)| id).into_iter().collect())
}

/// Leases the first ready rows, and reads them: a single update leases them all, since they include
/// every ready row up to the last of them.
fn lease_first(
    work: &mut Work<'_>,
    queue: i64,
    want: Want,
    reader: Reader,
) -> rusqlite::Result<Vec<Incoming>> {
    let sql = format!(
        "SELECT {COLUMNS}, size FROM messages WHERE queue = ?1 AND state = 0 AND suspect = 0
         ORDER BY id LIMIT ?2"
    );
    let mut read = work.db.prepare_cached(&sql)?;
    let mut rows = read.query(params![queue, want.messages])?;
    let (mut messages, mut bytes) = (Vec::with_capacity(want.messages), 0);
    while let Some(row) = rows.next()? {
        bytes += row.get::<_, usize>(SIZE)?;
        if bytes > want.bytes && !messages.is_empty() {
            break;
        }
        messages.push(reader.read(row)?.0);
    }
    drop(rows);
    let Some(last) = messages.last() else { return Ok(messages) };
    let sql = "UPDATE messages SET state = 2, holder = ?3, fence = fence + 1
               WHERE queue = ?1 AND state = 0 AND suspect = 0 AND id <= ?2";
    let mut update = work.db.prepare_cached(sql)?;
    let leased = update.execute(params![queue, last.receipt.position, work.holder])?;
    debug_assert_eq!(leased, messages.len(), "nothing else is ready up to the last");
    work.leases.held.extend(messages.iter().map(|incoming| {
        let Receipt { position, fence } = incoming.receipt;
        (position, Lease { queue, fence, suspect: false })
    }));
    Ok(messages)
}

/// Leases rows, and reads them.
fn lease(
    work: &mut Work<'_>,
    queue: i64,
    rows: &[u64],
    reader: Reader,
) -> rusqlite::Result<Vec<Incoming>> {
    let sql = format!("SELECT {COLUMNS} FROM messages WHERE id = ?1");
    let mut read = work.db.prepare_cached(&sql)?;
    // An update with `RETURNING` takes three times as long: it fills a table.
    let sql = "UPDATE messages SET state = 2, holder = ?2, fence = fence + 1 WHERE id = ?1";
    let mut update = work.db.prepare_cached(sql)?;
    let mut messages = Vec::with_capacity(rows.len());
    for id in rows {
        let (incoming, suspect) = read.query_row([id], |row| reader.read(row))?;
        update.execute(params![id, work.holder])?;
        let fence = incoming.receipt.fence;
        work.leases.held.insert(*id, Lease { queue, fence, suspect });
        messages.push(incoming);
    }
    Ok(messages)
}

/// The columns that [`Reader::read`] reads, in its order; the fence is its new value.
const COLUMNS: &str = "id, mid, key, headers, event_time, payload, fence + 1, attempts,
  redeliveries, enqueued_at, first_failed_at, crashes, suspect";
/// The index of the column after those.
const SIZE: usize = 13;

/// Makes messages from rows.
#[derive(Clone, Copy)]
struct Reader {
    incarnation: IncarnationId,
    crash_limit: u32,
}

impl Reader {
    /// A message with what is known about it, and whether it is a suspect.
    fn read(self, row: &Row<'_>) -> rusqlite::Result<(Incoming, bool)> {
        let receipt = Receipt { position: row.get(0)?, fence: row.get(6)? };
        let (message, unreadable) = message(row, self.incarnation)?;
        let mut incoming = Incoming::new(message, receipt);
        incoming.attempts = row.get(7)?;
        incoming.redeliveries = row.get(8)?;
        incoming.enqueued_at = Some(Timestamp(row.get(9)?));
        incoming.first_failed_at = row.get::<_, Option<i64>>(10)?.map(Timestamp);
        let crashes: u32 = row.get(11)?;
        let crashed = || (crashes >= self.crash_limit).then(|| crashed(crashes));
        incoming.defect = unreadable.map(undecoded).or_else(crashed).map(Box::new);
        Ok((incoming, row.get(12)?))
    }
}

fn undecoded(why: Unreadable) -> Defect {
    Defect { kind: CauseKind::Decode, message: why.to_string(), truncated: None }
}

fn crashed(times: u32) -> Defect {
    Defect {
        kind: CauseKind::Crash,
        message: format!("the process died {times} times while only this message was in flight"),
        truncated: None,
    }
}
