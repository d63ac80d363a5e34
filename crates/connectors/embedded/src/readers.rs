//! What becomes of a queue's messages when other stages read it than before.

use std::sync::Arc;

use rusqlite::params;

use crate::consumer::arrange;
use crate::rows::queue_id;
use crate::thread::Work;

/// Who reads a queue, by the file of this process.
pub(crate) struct Readers<'r> {
    pub(crate) pipeline: &'r str,
    pub(crate) name: &'r str,
    /// The groups that read it.
    pub(crate) groups: &'r [Arc<str>],
    /// The group that is opened, its number, and whether it is read in the order of its keys.
    pub(crate) group: &'r str,
    pub(crate) id: i64,
    pub(crate) ordered: bool,
    /// The stage of it.
    pub(crate) stage: &'r str,
}

impl Readers<'_> {
    /// Gives those that read it what is there for others that do not, or tells of it. The keys of the group
    /// that is opened may have to be put in order then.
    pub(crate) fn settle(&self, work: &mut Work<'_>) -> rusqlite::Result<()> {
        for left in self.left_behind(work)? {
            let own = self.group.is_empty() && left.group == self.stage;
            match (own, left.group.is_empty()) {
                (false, false) => tracing::warn!(
                    queue = self.name, stage = %left.group, messages = left.messages,
                    "messages wait for a stage that does not read this queue any more; see `queues`"
                ),
                _ if is_worked_on(work, left.id)? => tracing::warn!(
                    queue = self.name,
                    messages = left.messages,
                    "a process with an older pipeline file still works on messages of this queue; \
                     once it has stopped, the next start takes over what is left"
                ),
                (true, _) => self.take_over(work, &left)?,
                (_, true) => self.share_out(work, &left)?,
            }
        }
        Ok(())
    }

    /// The groups of the queue that have messages and are none of those that read it.
    fn left_behind(&self, work: &Work<'_>) -> rusqlite::Result<Vec<Left>> {
        let sql = "SELECT id, grp, messages FROM queues WHERE pipeline = ?1 AND name = ?2";
        let mut known = work.db.prepare_cached(sql)?;
        let known = known.query_map([self.pipeline, self.name], |row| {
            Ok(Left { id: row.get(0)?, group: row.get(1)?, messages: row.get(2)? })
        })?;
        let mut known: Vec<Left> = known.collect::<rusqlite::Result<_>>()?;
        let read = |left: &Left| self.groups.iter().any(|read| **read == *left.group);
        known.retain(|left| left.messages > 0 && !read(left));
        Ok(known)
    }

    /// What the only reader of the queue had before it goes to each of those that there are now.
    fn share_out(&self, work: &mut Work<'_>, left: &Left) -> rusqlite::Result<()> {
        for group in self.groups {
            let to = queue_id(work.db, self.pipeline, self.name, group)?;
            work.db.prepare_cached(COPY)?.execute([to, left.id])?;
            count_in(work, to, left.id)?;
            // At once, as its reader may be at work in another process; one that opens it later has it as it
            // wants it.
            let sql = "SELECT max(key_order) FROM queues WHERE id IN (?1, ?2)";
            let ordered =
                work.db.prepare_cached(sql)?.query_row([to, left.id], |row| row.get(0))?;
            arrange(work, to, ordered)?;
        }
        work.db.prepare_cached("DELETE FROM messages WHERE queue = ?1")?.execute([left.id])?;
        count_out(work, left.id)?;
        tracing::info!(
            queue = self.name,
            messages = left.messages,
            "several stages read this queue now; each gets what it held"
        );
        Ok(())
    }

    /// What the stage had before it while others read the queue too is its own when it is the only
    /// reader.
    fn take_over(&self, work: &Work<'_>, left: &Left) -> rusqlite::Result<()> {
        work.db
            .prepare_cached("UPDATE messages SET queue = ?1 WHERE queue = ?2")?
            .execute([self.id, left.id])?;
        // Its keys are put in order anew, with what is there already.
        let sql = "UPDATE queues SET key_order = ?2 WHERE id = ?1";
        work.db.prepare_cached(sql)?.execute(params![self.id, !self.ordered])?;
        count_in(work, self.id, left.id)?;
        count_out(work, left.id)?;
        tracing::info!(
            queue = self.name, stage = %left.group, messages = left.messages,
            "the stage is the only reader of this queue now; it gets what it had before"
        );
        Ok(())
    }
}

/// A group that is not read any more, with messages.
struct Left {
    id: i64,
    group: String,
    messages: u64,
}

/// Whether somebody still works on messages of a group.
fn is_worked_on(work: &Work<'_>, queue: i64) -> rusqlite::Result<bool> {
    let leased = "SELECT 1 FROM messages WHERE queue = ?1 AND state = 2 LIMIT 1";
    work.db.prepare_cached(leased)?.exists([queue])
}

/// What one group holds is another's too from now on, or instead.
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
  FROM messages WHERE queue = ?2 ORDER BY id";
