//! How much a queue holds: queried again and again while data flows, so it costs next to nothing.

use std::time::Duration;

use brigade_core::connector::Lag;
use rusqlite::{OptionalExtension, Row};

use crate::rows::now_ms;
use crate::schema::{DELAYED, LEASED};
use crate::thread::Work;

/// Parked rows and those that wait behind them, found by the indexes of parked rows and of keys;
/// ready rows are not scanned. Some rows of such a key may still be handed out.
const PARKED: &str = "SELECT
  (SELECT count(*) FROM messages INDEXED BY parked
   WHERE queue = ?1 AND state = 4 AND order_key IS NULL)
  + coalesce(sum(
    (SELECT count(*) FROM messages AS m WHERE m.queue = ?1 AND m.order_key = parked.order_key)
    - (SELECT count(*) FROM messages AS m
       WHERE m.queue = ?1 AND m.order_key = parked.order_key AND m.state = 2)), 0)
  FROM (SELECT DISTINCT order_key FROM messages
        WHERE queue = ?1 AND state = 4 AND order_key IS NOT NULL) AS parked";
/// The rows in a state.
const OF_STATE: &str = "SELECT count(*) FROM messages WHERE queue = ?1 AND state = ?2";
/// When the first ready row was put.
const OLDEST: &str = "SELECT enqueued_at FROM messages WHERE queue = ?1 AND state = 0
  ORDER BY id LIMIT 1";

/// That nothing is there.
pub(crate) fn nothing() -> Lag {
    let none = Some(0);
    Lag { ready: none, parked: none, delayed: none, in_flight: none, bytes: none, ..Lag::default() }
}

/// How much a queue's group holds.
pub(crate) fn lag(work: &Work<'_>, queue: i64) -> rusqlite::Result<Lag> {
    let sql = "SELECT messages, bytes FROM queues WHERE id = ?1";
    let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let (all, bytes): (u64, u64) = work.db.prepare_cached(sql)?.query_row([queue], read)?;
    let count = |state: i64| -> rusqlite::Result<u64> {
        work.db.prepare_cached(OF_STATE)?.query_row([queue, state], |row| row.get(0))
    };
    let (delayed, leased) = (count(DELAYED)?, count(LEASED)?);
    let parked: u64 = work.db.prepare_cached(PARKED)?.query_row([queue], |row| row.get(0))?;
    let mut oldest = work.db.prepare_cached(OLDEST)?;
    let oldest: Option<i64> = oldest.query_row([queue], |row| row.get(0)).optional()?;
    let age = oldest.map(|at| Duration::from_millis(u64::try_from(now_ms() - at).unwrap_or(0)));
    Ok(Lag {
        ready: Some(all.saturating_sub(delayed + leased + parked)),
        parked: Some(parked),
        delayed: Some(delayed),
        in_flight: Some(leased),
        bytes: Some(bytes),
        age,
        ..Lag::default()
    })
}

#[cfg(test)]
mod tests {
    use rusqlite::{Connection, StatementStatus, params};

    use super::*;
    use crate::settings::Sync;

    const QUEUE: i64 = 1;

    fn store(directory: &tempfile::TempDir) -> Connection {
        crate::schema::open(&directory.path().join("a.db"), Sync::Normal).expect("a store")
    }

    /// Puts `rows` rows of one state and key.
    fn put(db: &Connection, rows: usize, state: i64, key: Option<&str>) {
        let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?4)
                   INSERT INTO messages (queue, state, visible_at, order_key, enqueued_at, size, mid)
                   SELECT ?1, ?2, 0, CAST(?3 AS BLOB), 0, 1, x'00' FROM n";
        assert_eq!(db.execute(sql, params![QUEUE, state, key, rows]).expect("rows"), rows);
    }

    /// The result of a statement, and the number of SQLite steps it took.
    fn asked(db: &Connection, sql: &str) -> (u64, i32) {
        let mut statement = db.prepare(sql).expect("a statement");
        let answer = statement.query_row([QUEUE], |row| row.get(0)).expect("an answer");
        (answer, statement.get_status(StatementStatus::VmStep))
    }

    #[test]
    fn what_is_ready_costs_nothing_to_tell_what_is_parked() {
        const STEPS_MAX: i32 = 200;
        let directory = tempfile::tempdir().expect("a directory");
        let db = store(&directory);
        put(&db, 1000, 0, None);
        put(&db, 1000, 0, Some("ready"));
        let (parked, steps) = asked(&db, PARKED);
        assert!(parked == 0 && steps < STEPS_MAX, "{parked} parked, {steps} steps");
        put(&db, 1, 4, Some("parked"));
        put(&db, 3, 3, Some("parked"));
        put(&db, 1, 4, None);
        let (parked, steps) = asked(&db, PARKED);
        assert!(parked == 5 && steps < STEPS_MAX, "{parked} parked, {steps} steps");
    }

    /// The first row of a leased run may be parked before the others are given back.
    #[test]
    fn what_is_handed_out_does_not_count_as_parked_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let db = store(&directory);
        put(&db, 1, 4, Some("parked"));
        put(&db, 2, 2, Some("parked"));
        put(&db, 4, 3, Some("parked"));
        assert_eq!(asked(&db, PARKED).0, 5);
    }
}
