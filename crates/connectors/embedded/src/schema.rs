//! The file: its tables and version, and refusal of files that are not Brigade's.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use brigade_core::connector::ConnectorError;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::settings::Sync;

/// "Brgd", so that tools can recognize the file.
const APPLICATION_ID: i32 = 0x4272_6764;
/// The version of the tables.
const VERSION: i32 = 1;
/// How long a writer waits for other processes, in steps of a millisecond.
const BUSY_MAX: Duration = Duration::from_secs(10);
/// The size to which the log is truncated once all of it is in the file: several times the size at
/// which it is transferred.
const LOG_KEPT_MAX: u64 = 32 << 20;
/// Files up to this size are checked as a whole when they are opened.
const CHECKED_MAX: u64 = 64 << 20;

/// The states of a row. `READY` can be handed out; `DELAYED` waits for its time; `LEASED` is handed
/// out; `BEHIND` waits for an earlier row of its key; it is also delayed if its `visible_at` is in
/// the future and later than when it was put. 4 is parked: it waits for somebody to release it.
pub(crate) const READY: i64 = 0;
pub(crate) const DELAYED: i64 = 1;
pub(crate) const LEASED: i64 = 2;
pub(crate) const BEHIND: i64 = 3;

/// One row of `messages` per message and group. Row numbers are never reused: they are positions.
/// `order_key` is the key if the queue is read in the order of keys, and null otherwise, so that
/// only such queues pay for that index. `seen` holds the ids that a queue with `dedup` remembers.
const TABLES: &str = "
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE state (
  space TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (space, key)
) WITHOUT ROWID;
CREATE TABLE queues (
  id INTEGER PRIMARY KEY, pipeline TEXT NOT NULL, name TEXT NOT NULL, grp TEXT NOT NULL,
  key_order INTEGER NOT NULL DEFAULT 0, messages INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0, seen INTEGER NOT NULL DEFAULT 0,
  UNIQUE (pipeline, name, grp)
);
CREATE TABLE seen (
  n INTEGER PRIMARY KEY AUTOINCREMENT, queue INTEGER NOT NULL, mid BLOB NOT NULL,
  at INTEGER NOT NULL, UNIQUE (queue, mid)
);
CREATE INDEX seen_in_order ON seen (queue, n);
CREATE TABLE holders (
  id INTEGER PRIMARY KEY AUTOINCREMENT, lock TEXT NOT NULL, port INTEGER NOT NULL,
  pid INTEGER NOT NULL, seen_at INTEGER NOT NULL
);
CREATE TABLE messages (
  id INTEGER PRIMARY KEY AUTOINCREMENT, queue INTEGER NOT NULL, state INTEGER NOT NULL,
  visible_at INTEGER NOT NULL, order_key BLOB, holder INTEGER NOT NULL DEFAULT 0,
  fence INTEGER NOT NULL DEFAULT 0, suspect INTEGER NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0, redeliveries INTEGER NOT NULL DEFAULT 0,
  deaths INTEGER NOT NULL DEFAULT 0, crashes INTEGER NOT NULL DEFAULT 0,
  first_failed_at INTEGER, error TEXT, enqueued_at INTEGER NOT NULL,
  size INTEGER NOT NULL, mid BLOB NOT NULL, key BLOB, headers BLOB, event_time INTEGER, payload BLOB
);
CREATE INDEX by_state ON messages (queue, state, id);
CREATE INDEX by_time ON messages (queue, visible_at) WHERE state = 1;
CREATE INDEX by_key ON messages (queue, order_key, id) WHERE order_key IS NOT NULL;
CREATE INDEX leased_keys ON messages (queue, order_key) WHERE state = 2 AND order_key IS NOT NULL;
CREATE INDEX parked ON messages (queue, order_key) WHERE state = 4;
CREATE INDEX suspects ON messages (queue, id) WHERE suspect = 1;
";

/// Opens the file, and creates or upgrades its tables.
pub(crate) fn open(path: &Path, sync: Sync) -> Result<Connection, ConnectorError> {
    let wrong = |error: rusqlite::Error| failed(path, error);
    let _alone = alone(path);
    // Checked before the database, which another process may be creating.
    let made = path.with_extension("made").exists();
    let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if made && length == 0 {
        return Err(lost(path));
    }
    // One thread uses it, so it needs no lock of its own.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(wrong)?;
    connection.busy_handler(Some(wait)).map_err(wrong)?;
    let sync = match sync {
        Sync::Full => "FULL",
        Sync::Normal => "NORMAL",
    };
    connection.pragma_update(None, "journal_mode", "WAL").map_err(wrong)?;
    connection.pragma_update(None, "synchronous", sync).map_err(wrong)?;
    connection.pragma_update(None, "wal_autocheckpoint", 4000).map_err(wrong)?;
    connection.pragma_update(None, "journal_size_limit", LOG_KEPT_MAX).map_err(wrong)?;
    connection.pragma_update(None, "cache_size", -16_384).map_err(wrong)?;
    connection.set_prepared_statement_cache_capacity(128);
    prepare(&mut connection, path)?;
    if (1..=CHECKED_MAX).contains(&length) {
        check(&connection, path)?;
    }
    if !made && let Err(error) = mark(path) {
        tracing::warn!(
            state = %path.display(), %error,
            "cannot note beside the state that it is there: should it be emptied, nobody would tell"
        );
    }
    Ok(connection)
}

/// Records beside the database that it was created: an empty or missing one is not a new one then.
fn mark(path: &Path) -> std::io::Result<()> {
    let mut mark = File::create(path.with_extension("made"))?;
    mark.write_all(b"Beside this file is a database. To begin with none, delete the directory.\n")?;
    mark.sync_all()?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// The database was created once, and is now empty or missing.
fn lost(path: &Path) -> ConnectorError {
    let how = if path.exists() { "is empty" } else { "is not there" };
    let directory = path.parent().unwrap_or(path).display();
    ConnectorError::permanent(format!(
        "the state {} {how}, but it was made before, so its messages and positions are gone: put a \
         copy of it there; or delete the directory {directory} to begin with nothing, where files \
         are read from their beginning",
        path.display()
    ))
}

/// Lets one process at a time open the file: two that create it at the same moment, each while
/// setting its journal mode, would wait for each other. Without the lock this is only slower.
fn alone(path: &Path) -> Option<File> {
    let lock = File::create(path.with_extension("opening")).ok()?;
    for tries in 0.. {
        match lock.try_lock() {
            Ok(()) => return Some(lock),
            Err(TryLockError::WouldBlock) if wait(tries) => {}
            Err(_) => return None,
        }
    }
    None
}

fn prepare(connection: &mut Connection, path: &Path) -> Result<(), ConnectorError> {
    let wrong = |error: rusqlite::Error| failed(path, error);
    let behavior = rusqlite::TransactionBehavior::Immediate;
    let transaction = connection.transaction_with_behavior(behavior).map_err(wrong)?;
    let pragma =
        |name: &str| transaction.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let application = pragma("application_id").map_err(wrong)?;
    let version = pragma("user_version").map_err(wrong)?;
    let tables: i64 = transaction
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(wrong)?;
    match (application, version) {
        (APPLICATION_ID, VERSION) => {}
        (APPLICATION_ID, newer) if newer > VERSION => {
            return Err(ConnectorError::permanent(format!(
                "the state {} has version {newer}; this program knows version {VERSION}: use the \
                 newer program, or another `state`",
                path.display()
            )));
        }
        (0, 0) if tables == 0 => {
            transaction.execute_batch(TABLES).map_err(wrong)?;
            let incarnation = fastrand::u128(..).to_le_bytes();
            transaction
                .execute("INSERT INTO meta VALUES ('incarnation', ?1)", [&incarnation[..]])
                .map_err(wrong)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(wrong)?;
            transaction.pragma_update(None, "user_version", VERSION).map_err(wrong)?;
        }
        _ => {
            return Err(ConnectorError::permanent(format!(
                "{} is an SQLite file, but not one of Brigade's: give another `state`",
                path.display()
            )));
        }
    }
    transaction.commit().map_err(wrong)
}

fn check(connection: &Connection, path: &Path) -> Result<(), ConnectorError> {
    let verdict: Option<String> = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .optional()
        .map_err(|error| failed(path, error))?;
    match verdict.as_deref() {
        Some("ok") => Ok(()),
        other => Err(corrupt(path, other.unwrap_or("it cannot be checked"))),
    }
}

/// What went wrong, in readable form, and whether it may work later.
pub(crate) fn failed(path: &Path, error: rusqlite::Error) -> ConnectorError {
    let place = path.display();
    let code = error.sqlite_error_code();
    match code {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            corrupt(path, &error.to_string())
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => ConnectorError::transient(
            format!("the state {place} is held by another process for more than {BUSY_MAX:?}"),
        ),
        Some(ErrorCode::DiskFull) => ConnectorError::transient(format!(
            "the disk of the state {place} is full: make room; nothing is lost meanwhile"
        )),
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            let (file, why) =
                unwritable(path).unwrap_or_else(|| (place.to_string(), error.to_string()));
            ConnectorError::permanent(format!(
                "the state {file} cannot be written: {why}; check its owner and permissions, and \
                 the limit of open files"
            ))
        }
        Some(ErrorCode::SystemIoFailure) => ConnectorError::transient(format!(
            "the state {place} cannot be read or written: {error}"
        )),
        _ => ConnectorError::permanent(format!("the state {place}: {error}")),
    }
}

/// Which of the database's files cannot be written, and why: SQLite does not say, the operating
/// system does. They are not opened for this: closing one drops all locks that the process has on
/// it.
fn unwritable(path: &Path) -> Option<(String, String)> {
    let directory = path.parent().unwrap_or(Path::new("."));
    ["", "-wal", "-shm"].iter().find_map(|end| {
        let file = format!("{}{end}", path.display());
        let access = match access(&file, Access::READ_OK | Access::WRITE_OK) {
            // SQLite creates it.
            Err(Errno::NOENT) => access(directory, Access::WRITE_OK | Access::EXEC_OK),
            other => other,
        };
        access.err().map(|error| (file, std::io::Error::from(error).to_string()))
    })
}

fn corrupt(path: &Path, what: &str) -> ConnectorError {
    ConnectorError::permanent(format!(
        "the state {0} is damaged ({what}): stop every process that uses it, keep a copy, and save \
         what can be read with `sqlite3 {0} .recover`; or give another `state`",
        path.display()
    ))
}

/// Waits a millisecond for another process's transaction, up to a limit.
fn wait(tries: i32) -> bool {
    let limit = i32::try_from(BUSY_MAX.as_millis()).unwrap_or(i32::MAX);
    if tries >= limit {
        return false;
    }
    std::thread::sleep(Duration::from_millis(1));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_that_make_the_file_at_the_same_time_all_open_it() {
        const ROUNDS: usize = 100;
        const OPENERS: usize = 4;
        let directory = tempfile::tempdir().expect("a directory");
        for round in 0..ROUNDS {
            let path = directory.path().join(format!("{round}.db"));
            let start = std::sync::Barrier::new(OPENERS);
            std::thread::scope(|scope| {
                let opener = || {
                    start.wait();
                    open(&path, Sync::Full).map(drop)
                };
                let openers: Vec<_> = (0..OPENERS).map(|_| scope.spawn(opener)).collect();
                for opener in openers {
                    opener.join().expect("no panic").expect("it opens");
                }
            });
        }
    }

    /// SQLite otherwise leaves the log at its greatest length, until the last process ends.
    #[test]
    fn the_log_gets_short_again_after_a_long_transaction() {
        const LONG: i64 = 48 << 20;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.db");
        let db = open(&path, Sync::Normal).expect("it opens");
        let log = || std::fs::metadata(path.with_extension("db-wal")).expect("a log").len();
        let put = |bytes: i64| {
            db.execute("REPLACE INTO state VALUES ('s', 'k', zeroblob(?1))", [bytes])
                .expect("it is put");
        };
        put(LONG);
        assert!(log() > LONG.unsigned_abs());
        // What is in the log is in the file by now; the next write starts the log from the
        // beginning.
        put(1);
        assert!(log() <= LOG_KEPT_MAX, "{}", log());
    }

    /// Opening the database and closing it again would drop this process's locks on it.
    #[test]
    fn what_cannot_be_written_is_told_without_opening_the_database() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.db");
        assert_eq!(unwritable(&path), None);
        assert!(!path.exists(), "nothing is made");
        let under_a_file = path.join("b.db");
        std::fs::write(&path, "").expect("a file");
        let (file, why) = unwritable(&under_a_file).expect("it cannot be made");
        assert_eq!(file, under_a_file.display().to_string());
        assert!(why.contains("Not a directory"), "{why}");
        let nowhere = directory.path().join("c").join("d.db");
        assert!(unwritable(&nowhere).is_some_and(|(_, why)| why.contains("No such file")));
    }
}
