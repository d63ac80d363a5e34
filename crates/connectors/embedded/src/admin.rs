//! Administration of embedded queues: inspecting, deleting, releasing.

use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::IncarnationId;
use brigade_core::connector::{
    ConnectorError, Outgoing, Peeked, Produced, Producer, QueueAdmin, QueueSpec, QueueStatus,
};
use rusqlite::{OptionalExtension, Row, params};

use crate::lag::{lag, nothing};
use crate::producer::EmbeddedProducer;
use crate::rows::{MESSAGE, Target, delete_rows, message, now_ms};
use crate::store::Store;
use crate::thread::{Requests, Work};

/// Administration of an embedded queue.
pub(crate) struct EmbeddedAdmin {
    requests: Requests,
    target: Arc<Target>,
    incarnation: IncarnationId,
    producer: EmbeddedProducer,
}

impl EmbeddedAdmin {
    pub(crate) fn open(store: &Store, queue: &QueueSpec) -> Result<Self, ConnectorError> {
        let producer = EmbeddedProducer::enter(store, queue)?;
        Ok(Self {
            requests: store.requests().clone(),
            target: Arc::clone(producer.target()),
            incarnation: store.incarnation(),
            producer,
        })
    }
}

/// The groups of a queue that were ever read or written: number and name.
fn groups(work: &Work<'_>, target: &Target) -> rusqlite::Result<Vec<(i64, String)>> {
    let sql = "SELECT id, grp FROM queues WHERE pipeline = ?1 AND name = ?2 ORDER BY grp";
    let mut groups = work.db.prepare_cached(sql)?;
    let groups = groups.query_map(params![&*target.pipeline, &*target.name], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    groups.collect()
}

fn peeked(row: &Row<'_>, incarnation: IncarnationId) -> rusqlite::Result<Peeked> {
    let holder: i64 = row.get(9)?;
    let parked: bool = row.get(10)?;
    let error = row.get::<_, Option<String>>(11)?.unwrap_or_default();
    Ok(Peeked {
        position: row.get(0)?,
        message: message(row, incarnation)?.0,
        attempts: row.get(6)?,
        redeliveries: row.get(7)?,
        group: row.get(8)?,
        parked: parked.then_some(error),
        holder: (holder != 0).then(|| format!("process {holder}").into()),
    })
}

fn select(rest: &str) -> String {
    let columns: Vec<String> = MESSAGE.split(", ").map(|column| format!("m.{column}")).collect();
    format!(
        "SELECT {}, m.attempts, m.redeliveries, q.grp, m.holder, m.state = 4, m.error FROM messages m
         JOIN queues q ON q.id = m.queue WHERE q.pipeline = ?1 AND q.name = ?2 {rest}",
        columns.join(", ")
    )
}

/// The row id of a position; positions beyond any row id have none.
fn row_id(position: u64) -> Option<i64> {
    i64::try_from(position).ok()
}

/// Rows that are not being worked on. With an optional position in the condition, SQLite would scan
/// all of them for each one.
const DELETE_ALL: &str = "DELETE FROM messages WHERE queue = ?1 AND state != 2
  RETURNING size, order_key";
const DELETE_ONE: &str = "DELETE FROM messages WHERE queue = ?1 AND state != 2 AND id = ?2
  RETURNING size, order_key";
/// Rows that are parked.
const RELEASE_ALL: &str =
    "UPDATE messages SET state = 0, attempts = 0, error = NULL, visible_at = ?2
  WHERE queue = ?1 AND state = 4";
const RELEASE_ONE: &str =
    "UPDATE messages SET state = 0, attempts = 0, error = NULL, visible_at = ?3
  WHERE queue = ?1 AND state = 4 AND id = ?2";

/// Deletes the rows of a queue that are not being worked on, all or one.
fn delete(work: &mut Work<'_>, target: &Target, only: Option<i64>) -> rusqlite::Result<u64> {
    let mut deleted = 0;
    for (queue, _) in groups(work, target)? {
        deleted += match only {
            None => delete_rows(work, queue, DELETE_ALL, params![queue], now_ms())?,
            Some(id) => delete_rows(work, queue, DELETE_ONE, params![queue, id], now_ms())?,
        };
    }
    Ok(deleted)
}

/// Lets parked rows be handed out again; the queue's `retention` starts over for them.
fn release(work: &mut Work<'_>, queue: i64, only: Option<&[u64]>) -> rusqlite::Result<u64> {
    let (mut released, now) = (0, now_ms());
    match only {
        None => released += work.db.prepare_cached(RELEASE_ALL)?.execute([queue, now])?,
        Some(positions) => {
            let mut release = work.db.prepare_cached(RELEASE_ONE)?;
            for id in positions.iter().filter_map(|position| row_id(*position)) {
                released += release.execute([queue, id, now])?;
            }
        }
    }
    work.woke |= released > 0;
    Ok(released as u64)
}

#[async_trait]
impl QueueAdmin for EmbeddedAdmin {
    async fn status(&self) -> Result<Vec<QueueStatus>, ConnectorError> {
        let target = Arc::clone(&self.target);
        let status = self.requests.look(move |work| {
            let mut all = Vec::new();
            for (queue, group) in groups(work, &target)? {
                all.push(QueueStatus { group, lag: lag(work, queue)? });
            }
            for group in &target.groups {
                // Nothing has opened it yet.
                if !all.iter().any(|status| status.group == **group) {
                    all.push(QueueStatus { group: group.to_string(), lag: nothing() });
                }
            }
            all.sort_by(|a, b| a.group.cmp(&b.group));
            Ok(all)
        });
        status.await
    }

    async fn peek(&self, skip: u64, limit: u64) -> Result<Vec<Peeked>, ConnectorError> {
        let (target, incarnation) = (Arc::clone(&self.target), self.incarnation);
        let peek = self.requests.ask(move |work| {
            let [limit, skip] = [limit, skip].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
            let mut rows = work.db.prepare_cached(&select("ORDER BY m.id LIMIT ?3 OFFSET ?4"))?;
            let values = params![&*target.pipeline, &*target.name, limit, skip];
            let rows = rows.query_map(values, |row| peeked(row, incarnation))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        });
        peek.await
    }

    async fn get(&self, position: u64) -> Result<Option<Peeked>, ConnectorError> {
        let (target, incarnation) = (Arc::clone(&self.target), self.incarnation);
        let Some(position) = row_id(position) else { return Ok(None) };
        let get = self.requests.ask(move |work| {
            let mut row = work.db.prepare_cached(&select("AND m.id = ?3"))?;
            let values = params![&*target.pipeline, &*target.name, position];
            Ok(row.query_row(values, |row| peeked(row, incarnation)).optional()?)
        });
        get.await
    }

    async fn put(&self, messages: Vec<Outgoing>) -> Result<Vec<Produced>, ConnectorError> {
        self.producer.share_out().await?;
        self.producer.produce(&messages).await
    }

    async fn delete(&self, positions: &[u64]) -> Result<u64, ConnectorError> {
        let target = Arc::clone(&self.target);
        let positions: Vec<i64> = positions.iter().filter_map(|at| row_id(*at)).collect();
        let deleted = self.requests.ask(move |work| {
            let mut deleted = 0;
            for position in &positions {
                deleted += delete(work, &target, Some(*position))?;
            }
            Ok(deleted)
        });
        deleted.await
    }

    async fn release(&self, positions: Option<&[u64]>) -> Result<u64, ConnectorError> {
        let target = Arc::clone(&self.target);
        let positions = positions.map(<[u64]>::to_vec);
        let released = self.requests.ask(move |work| {
            let mut released = 0;
            for (queue, _) in groups(work, &target)? {
                released += release(work, queue, positions.as_deref())?;
            }
            Ok(released)
        });
        released.await
    }

    async fn purge(&self) -> Result<u64, ConnectorError> {
        let target = Arc::clone(&self.target);
        self.requests.ask(move |work| Ok(delete(work, &target, None)?)).await
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, StatementStatus};

    use super::*;
    use crate::settings::Sync;

    /// A store with a queue of `messages` messages in one state.
    fn store(directory: &tempfile::TempDir, messages: i64, state: i64) -> Connection {
        let path = directory.path().join("a.db");
        let db = crate::schema::open(&path, Sync::Normal).expect("a store");
        let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
                   INSERT INTO messages (queue, state, visible_at, enqueued_at, size, mid)
                   SELECT 1, ?2, 0, 0, 1, x'00' FROM n";
        db.execute(sql, [messages, state]).expect("messages");
        db
    }

    /// Many are deleted or released one by one: none must cost more because there are more rows.
    #[test]
    fn one_is_found_by_its_position_and_not_by_looking_at_all() {
        const STEPS_MAX: i32 = 200;
        const MESSAGES: i64 = 1000;
        let directory = tempfile::tempdir().expect("a directory");
        for (sql, state) in [(DELETE_ONE, 0), (RELEASE_ONE, 4)] {
            let db = store(&directory, MESSAGES, state);
            let mut statement = db.prepare(sql).expect("a statement");
            let last = db.last_insert_rowid();
            let values = [1, last, 0];
            let values = &values[..statement.parameter_count()];
            let mut rows = statement.query(rusqlite::params_from_iter(values)).expect("it begins");
            while rows.next().expect("it goes on").is_some() {}
            drop(rows);
            let steps = statement.get_status(StatementStatus::VmStep);
            assert!(steps < STEPS_MAX, "{steps} steps: {sql}");
            let sql = "SELECT count(*) FROM messages WHERE state = ?1 AND id = ?2";
            let left = db.query_row(sql, [state, last], |row| row.get::<_, i64>(0));
            assert_eq!(left.expect("an answer"), 0, "it is done");
        }
    }
}
