//! What becomes of a queue's messages when its set of readers changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use brigade_core::connector::{Order, QueueSpec, Reader};
use parking_lot::Mutex;
use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use crate::consumer::arrange;
use crate::rows::{Target, now_ms, queue_id};
use crate::thread::Work;

/// The stages that read a queue, according to this process's pipeline file.
pub(crate) struct Readers {
    pub(crate) pipeline: Arc<str>,
    pub(crate) name: Arc<str>,
    /// The groups that read it.
    groups: Vec<Arc<str>>,
    /// The group that is opened, its stage, and its order.
    pub(crate) group: Arc<str>,
    stage: Arc<str>,
    order: Order,
    /// The groups for which waiting messages were already logged.
    told: Mutex<BTreeSet<i64>>,
}

/// What is remembered of a queue's readers, in `meta`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Remembered {
    /// The stages that read it, according to the file of the process that opened it last.
    readers: Vec<String>,
    /// The part of the only reader's messages that belongs to one stage alone.
    own: Option<Own>,
}

/// What a stage had waiting while others read the queue too, and took along when it became the only
/// reader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Own {
    stage: String,
    /// The greatest row of it. Everything in the group up to that row belongs to it.
    up_to: i64,
    /// The other stages, which had these messages as well, each in its group.
    others: Vec<String>,
}

impl Own {
    /// The row after which a group gets what the only reader has.
    fn after(&self, group: &str) -> i64 {
        if self.others.iter().any(|other| other == group) { self.up_to } else { 0 }
    }
}

impl Readers {
    pub(crate) fn new(queue: &QueueSpec, reader: &Reader) -> Self {
        Self {
            pipeline: Arc::clone(&queue.pipeline),
            name: Arc::clone(&queue.name),
            groups: queue.groups.clone(),
            group: Arc::clone(&reader.group),
            stage: Arc::clone(&reader.stage),
            order: reader.order,
            told: Mutex::default(),
        }
    }

    /// The readers of a queue that is going to be written, for none of which it is opened.
    pub(crate) fn of(target: &Target) -> Self {
        Self {
            pipeline: Arc::clone(&target.pipeline),
            name: Arc::clone(&target.name),
            groups: target.groups.clone(),
            group: "".into(),
            stage: "".into(),
            order: Order::None,
            told: Mutex::default(),
        }
    }

    /// Whether several stages read it, each in a group of its own.
    pub(crate) fn are_several(&self) -> bool {
        self.groups.iter().all(|group| !group.is_empty())
    }

    /// Before anything is put: the present readers get what waited for the only one of before, unless
    /// a process with an older file works on it. That process takes over again what is its own.
    pub(crate) fn share_first(&self, work: &mut Work<'_>) -> rusqlite::Result<()> {
        let left = self.left_behind(work)?.into_iter().find(|left| left.group.is_empty());
        let Some(left) = left else { return Ok(()) };
        if is_worked_on(work, left.id)? {
            return Ok(());
        }
        let before = self.remembered(work)?;
        let mut now = before.clone();
        self.share_out(work, &left, &mut now)?;
        if now == before { Ok(()) } else { self.remember(work, &now) }
    }

    pub(crate) fn ordered(&self) -> bool {
        self.order == Order::Key
    }

    /// When the queue is opened: the present stages read it from now on, and get what is waiting
    /// for others. `id` is the number of the group that is opened.
    pub(crate) fn begin(&self, work: &mut Work<'_>, id: i64) -> rusqlite::Result<()> {
        let before = self.remembered(work)?;
        let mut now = Remembered { readers: self.stages(), ..before.clone() };
        // Another stage is the only reader: everything waiting for it is its own.
        if self.group.is_empty() {
            now.own.take_if(|own| *own.stage != *self.stage);
        }
        self.settle(work, id, &mut now)?;
        if now == before { Ok(()) } else { self.remember(work, &now) }
    }

    /// When there is nothing to be taken: handles what a process with an older file has put, for
    /// other readers, since the queue was opened. Returns whether there may be something now.
    pub(crate) fn look(&self, work: &mut Work<'_>, id: i64) -> rusqlite::Result<bool> {
        if self.left_behind(work)?.is_empty() {
            return Ok(false);
        }
        let before = self.remembered(work)?;
        // The process that started last, with its file, decides: otherwise two would take it from
        // each other.
        if before.readers != self.stages() {
            return Ok(false);
        }
        let mut now = before.clone();
        let moved = self.settle(work, id, &mut now)?;
        if now != before {
            self.remember(work, &now)?;
        }
        Ok(moved)
    }

    /// Gives the present readers what is waiting for stages that no longer read the queue, or logs
    /// it, once. Returns whether there was something to give.
    fn settle(
        &self,
        work: &mut Work<'_>,
        id: i64,
        remembered: &mut Remembered,
    ) -> rusqlite::Result<bool> {
        let mut moved = false;
        for left in self.left_behind(work)? {
            let own = self.group.is_empty() && *left.group == *self.stage;
            if !own && !left.group.is_empty() {
                if self.is_new(&left) {
                    tracing::warn!(
                        queue = %self.name, stage = %left.group, messages = left.messages,
                        "messages wait for a stage that does not read this queue any more; see `queues`"
                    );
                }
            } else if is_worked_on(work, left.id)? {
                if self.is_new(&left) {
                    tracing::warn!(
                        queue = %self.name,
                        messages = left.messages,
                        "a process with an older pipeline file still works on messages of this queue; \
                         once it has stopped, what is left is taken over"
                    );
                }
            } else if !own {
                self.share_out(work, &left, remembered)?;
                moved = true;
            } else if self.order != Order::Queue || !is_worked_on(work, id)? {
                // It is older than what is being worked on, which finishes first if the order is
                // the queue's.
                self.take_over(work, id, &left, remembered)?;
                moved = true;
            }
        }
        Ok(moved)
    }

    /// Whether it was not logged yet.
    fn is_new(&self, left: &Left) -> bool {
        self.told.lock().insert(left.id)
    }

    /// The stages that read it, independent of their order in the file.
    fn stages(&self) -> Vec<String> {
        if self.group.is_empty() {
            return vec![self.stage.to_string()];
        }
        let mut stages: Vec<_> = self.groups.iter().map(|group| group.to_string()).collect();
        stages.sort();
        stages
    }

    fn remembered(&self, work: &Work<'_>) -> rusqlite::Result<Remembered> {
        let sql = "SELECT value FROM meta WHERE name = ?1";
        let mut value = work.db.prepare_cached(sql)?;
        let value: Option<Vec<u8>> =
            value.query_row([self.entry()], |row| row.get(0)).optional()?;
        // Data written by another version is ignored: messages may be handed out twice then.
        Ok(value.and_then(|value| serde_json::from_slice(&value).ok()).unwrap_or_default())
    }

    fn remember(&self, work: &Work<'_>, remembered: &Remembered) -> rusqlite::Result<()> {
        let value = serde_json::to_vec(remembered).expect("names and numbers always encode");
        let sql = "INSERT INTO meta VALUES (?1, ?2)
                   ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        work.db.prepare_cached(sql)?.execute(params![self.entry(), value]).map(drop)
    }

    fn entry(&self) -> String {
        format!("readers of {}/{}", self.pipeline, self.name)
    }

    /// The other stages that ever read the queue.
    fn other_groups(&self, work: &Work<'_>) -> rusqlite::Result<Vec<String>> {
        let sql = "SELECT grp FROM queues WHERE pipeline = ?1 AND name = ?2 AND grp NOT IN ('', ?3)
                   ORDER BY grp";
        let mut groups = work.db.prepare_cached(sql)?;
        let groups =
            groups.query_map([&*self.pipeline, &*self.name, &*self.stage], |row| row.get(0))?;
        groups.collect()
    }

    /// The groups of the queue that have messages but no reader any more.
    fn left_behind(&self, work: &Work<'_>) -> rusqlite::Result<Vec<Left>> {
        let sql = "SELECT id, grp, messages FROM queues WHERE pipeline = ?1 AND name = ?2";
        let mut known = work.db.prepare_cached(sql)?;
        let known = known.query_map([&*self.pipeline, &*self.name], |row| {
            Ok(Left { id: row.get(0)?, group: row.get(1)?, messages: row.get(2)? })
        })?;
        let mut known: Vec<Left> = known.collect::<rusqlite::Result<_>>()?;
        let read = |left: &Left| self.groups.iter().any(|read| **read == *left.group);
        known.retain(|left| left.messages > 0 && !read(left));
        Ok(known)
    }

    /// Copies what waited for the only reader to each of the present readers; but they do not get
    /// again what they had as well.
    fn share_out(
        &self,
        work: &mut Work<'_>,
        left: &Left,
        remembered: &mut Remembered,
    ) -> rusqlite::Result<()> {
        let own = remembered.own.take();
        for group in &self.groups {
            let to = queue_id(work.db, &self.pipeline, &self.name, group)?;
            let after = own.as_ref().map_or(0, |own| own.after(group));
            let sql =
                "UPDATE queues SET messages = messages + shared.n, bytes = bytes + shared.size
                       FROM (SELECT count(*) AS n, coalesce(sum(size), 0) AS size FROM messages
                             WHERE queue = ?2 AND id > ?3) AS shared
                       WHERE queues.id = ?1";
            work.db.prepare_cached(sql)?.execute([to, left.id, after])?;
            let sql = "SELECT max(id) FROM messages WHERE queue = ?1";
            let last: Option<i64> =
                work.db.prepare_cached(sql)?.query_row([to], |row| row.get(0))?;
            work.db.prepare_cached(COPY)?.execute([to, left.id, after])?;
            // Arranged at once, as the group's reader may be at work in another process; a reader
            // that opens it later arranges it as it wants.
            match last {
                Some(last) => join_in(work, to, last)?,
                None => {
                    let sql = "SELECT max(key_order) FROM queues WHERE id IN (?1, ?2)";
                    let mut ordered = work.db.prepare_cached(sql)?;
                    let ordered = ordered.query_row([to, left.id], |row| row.get(0))?;
                    arrange(work, to, ordered)?;
                }
            }
        }
        work.db.prepare_cached("DELETE FROM messages WHERE queue = ?1")?.execute([left.id])?;
        count_out(work, left.id)?;
        tracing::info!(
            queue = %self.name,
            messages = left.messages,
            "several stages read this queue now; each gets what it held for it"
        );
        Ok(())
    }

    /// What a stage had waiting while others read the queue too becomes its own when it is the only
    /// reader.
    fn take_over(
        &self,
        work: &mut Work<'_>,
        id: i64,
        left: &Left,
        remembered: &mut Remembered,
    ) -> rusqlite::Result<()> {
        let known = remembered.own.as_ref().map_or(0, |own| own.up_to);
        let sql = "SELECT max(id) FROM messages WHERE queue = ?1";
        let mut greatest = work.db.prepare_cached(sql)?;
        let greatest: Option<i64> = greatest.query_row([left.id], |row| row.get(0))?;
        let sql = "SELECT min(id) FROM messages WHERE queue = ?1 AND id > ?2";
        let mut of_all = work.db.prepare_cached(sql)?;
        let of_all: Option<i64> = of_all.query_row([id, known], |row| row.get(0))?;
        // What was put for all readers must not be taken for its own: what comes after that may be
        // handed out twice, but nothing is withheld.
        let up_to = greatest.unwrap_or(0).min(of_all.map_or(i64::MAX, |first| first - 1));
        remembered.own = Some(Own {
            stage: self.stage.to_string(),
            up_to: up_to.max(known),
            others: self.other_groups(work)?,
        });
        work.db
            .prepare_cached("UPDATE messages SET queue = ?1 WHERE queue = ?2")?
            .execute([id, left.id])?;
        count_in(work, id, left.id)?;
        count_out(work, left.id)?;
        // Its keys are arranged again, together with what is already there. What is being worked on
        // keeps its key, even if it is younger.
        arrange(work, id, self.ordered())?;
        let sql =
            "UPDATE messages SET state = 3 WHERE queue = ?1 AND state IN (0, 1) AND order_key IN
                     (SELECT order_key FROM messages
                      WHERE queue = ?1 AND state = 2 AND order_key IS NOT NULL)";
        work.db.prepare_cached(sql)?.execute([id])?;
        tracing::info!(
            queue = %self.name, stage = %left.group, messages = left.messages,
            "the stage is the only reader of this queue now; it gets what it had before"
        );
        Ok(())
    }
}

/// Arranges the rows after `last` in the order of their queue. There may be many rows before them,
/// and this may run for each message that an older process puts.
fn join_in(work: &mut Work<'_>, queue: i64, last: i64) -> rusqlite::Result<()> {
    let sql = "SELECT key_order FROM queues WHERE id = ?1";
    if work.db.prepare_cached(sql)?.query_row([queue], |row| row.get(0))? {
        let sql = "UPDATE messages SET order_key = key WHERE queue = ?1 AND id > ?2";
        work.db.prepare_cached(sql)?.execute([queue, last])?;
        let sql = "UPDATE messages SET state = 3
                   WHERE queue = ?1 AND id > ?2 AND order_key IS NOT NULL AND EXISTS
                     (SELECT 1 FROM messages AS other WHERE other.queue = ?1
                       AND other.order_key = messages.order_key AND other.id < messages.id)";
        work.db.prepare_cached(sql)?.execute([queue, last])?;
    } else {
        // Parked rows exist only with the order of keys.
        let sql = "UPDATE messages SET state = 0, visible_at = max(visible_at, ?3)
                   WHERE queue = ?1 AND id > ?2 AND state = 4";
        work.db.prepare_cached(sql)?.execute([queue, last, now_ms()])?;
    }
    work.woke = true;
    Ok(())
}

/// A group that is no longer read, with messages.
struct Left {
    id: i64,
    group: String,
    messages: u64,
}

/// Whether messages of a group are still being worked on.
fn is_worked_on(work: &Work<'_>, queue: i64) -> rusqlite::Result<bool> {
    let leased = "SELECT 1 FROM messages WHERE queue = ?1 AND state = 2 LIMIT 1";
    work.db.prepare_cached(leased)?.exists([queue])
}

/// Adds one group's counts to another's, which takes over its rows.
fn count_in(work: &Work<'_>, to: i64, from: i64) -> rusqlite::Result<()> {
    let sql = "UPDATE queues SET messages = messages + (SELECT messages FROM queues WHERE id = ?2),
                 bytes = bytes + (SELECT bytes FROM queues WHERE id = ?2) WHERE id = ?1";
    work.db.prepare_cached(sql)?.execute([to, from]).map(drop)
}

fn count_out(work: &Work<'_>, from: i64) -> rusqlite::Result<()> {
    let sql = "UPDATE queues SET messages = 0, bytes = 0 WHERE id = ?1";
    work.db.prepare_cached(sql)?.execute([from]).map(drop)
}

const COPY: &str = "INSERT INTO messages
  (queue, state, visible_at, order_key, suspect, attempts, redeliveries, crashes, first_failed_at,
   error, enqueued_at, size, mid, key, headers, event_time, payload)
  SELECT ?1, CASE WHEN state IN (1, 4) THEN state ELSE 0 END, visible_at, NULL, suspect, attempts,
   redeliveries, crashes, first_failed_at, error, enqueued_at, size, mid, key, headers, event_time,
   payload
  FROM messages WHERE queue = ?2 AND id > ?3 ORDER BY id";
