//! Holders: the processes that have a store open, and what becomes of their leases.
//!
//! A holder is a row, and a file beside the database on which the process holds an operating-system
//! lock for as long as it lives. A process that can take that lock knows that the holder is dead,
//! at once and without a clock.

use std::fs::{File, OpenOptions, TryLockError};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use brigade_core::connector::ConnectorError;
use rusqlite::{Connection, TransactionBehavior, params};

use crate::heard::Heard;
use crate::rows::{now_ms, promote_freed};
use crate::schema::failed;

/// This process, as a holder of leases.
pub(crate) struct Holder {
    pub(crate) id: i64,
    directory: PathBuf,
    name: String,
    /// Locked for as long as the process lives.
    _lock: File,
    /// Where others send a byte when they have written.
    pub(crate) socket: UdpSocket,
    heard: Heard,
}

/// Another holder.
struct Other {
    id: i64,
    lock: String,
    seen_at: i64,
}

impl Holder {
    /// Enters this process. `directory` is where the lock files are.
    pub(crate) fn enter(db: &Connection, directory: &Path) -> Result<Self, ConnectorError> {
        let io = |error: std::io::Error| {
            let place = directory.display();
            ConnectorError::permanent(format!("cannot lock a file in {place}: {error}"))
        };
        std::fs::create_dir_all(directory).map_err(io)?;
        let name = format!("{:016x}.lock", fastrand::u64(..));
        let path = directory.join(&name);
        let lock = OpenOptions::new().write(true).create_new(true).open(&path).map_err(io)?;
        let entered = lock_and_bind(&lock).map_err(io).and_then(|socket| {
            // The row comes after the lock, so that a holder that is being created is not taken for
            // dead.
            let port = socket.local_addr().map_err(io)?.port();
            let sql = "INSERT INTO holders (lock, port, pid, seen_at) VALUES (?1, ?2, ?3, ?4)";
            let values = params![name, port, std::process::id(), now_ms()];
            let entered = db.execute(sql, values);
            entered.map_err(|error| failed(Path::new(db.path().unwrap_or_default()), error))?;
            Ok((db.last_insert_rowid(), socket))
        });
        let (id, socket) = entered.inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
        })?;
        let (directory, heard) = (directory.to_path_buf(), Heard::new(Instant::now()));
        Ok(Self { id, directory, name, _lock: lock, socket, heard })
    }

    /// Writes a sign of life of this process; enters it again if others had taken it for dead.
    pub(crate) fn seen(&mut self, db: &Connection, now: Instant) {
        let sql = "INSERT INTO holders (id, lock, port, pid, seen_at) VALUES (?1, ?2, ?3, ?4, ?5)
                   ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at";
        let port = self.socket.local_addr().map_or(0, |address| address.port());
        let values = params![self.id, self.name, port, std::process::id(), now_ms()];
        match db.execute(sql, values) {
            Ok(_) => self.heard.signed(now),
            Err(error) => tracing::debug!(%error, "a sign of life was not written"),
        }
    }

    /// Notifies the other processes that something was written. A lost byte costs little: they
    /// check by themselves several times a second.
    pub(crate) fn wake_others(&self, db: &Connection) {
        let ports = || -> rusqlite::Result<Vec<u16>> {
            let mut others = db.prepare_cached("SELECT port FROM holders WHERE id != ?1")?;
            others.query_map([self.id], |row| row.get(0))?.collect()
        };
        for port in ports().unwrap_or_default() {
            let _ = self.socket.send_to(&[1], ("127.0.0.1", port));
        }
    }

    /// Frees the leases of holders that are dead, or that gave no sign of life for longer than
    /// `lease`.
    pub(crate) fn free_the_dead(
        &mut self,
        db: &mut Connection,
        lease: Duration,
    ) -> rusqlite::Result<usize> {
        let others = self.others(db)?;
        let signs: Vec<_> = others.iter().map(|other| (other.id, other.seen_at)).collect();
        let silent = self.heard.silent(&signs, lease);
        let mut freed = 0;
        for other in others {
            let path = self.directory.join(&other.lock);
            let dead = is_dead(&path);
            if !dead && !silent.contains(&other.id) {
                continue;
            }
            freed += free(db, &other, dead)?;
            if dead {
                // The file goes last: while it exists, another process can still do this.
                let _ = std::fs::remove_file(&path);
            }
        }
        Ok(freed)
    }

    fn others(&self, db: &Connection) -> rusqlite::Result<Vec<Other>> {
        let mut others =
            db.prepare_cached("SELECT id, lock, seen_at FROM holders WHERE id != ?1")?;
        let others = others.query_map([self.id], |row| {
            Ok(Other { id: row.get(0)?, lock: row.get(1)?, seen_at: row.get(2)? })
        })?;
        others.collect()
    }

    /// Leaves: nothing is held any more.
    pub(crate) fn leave(&self, db: &Connection) {
        let left = || -> rusqlite::Result<()> {
            // Consumers have given back what they held; this covers any that were forgotten.
            let sql = "UPDATE messages SET holder = 0, suspect = 0,
                         visible_at = CASE WHEN order_key IS NULL THEN max(visible_at, ?2)
                                           ELSE enqueued_at END,
                         state = CASE WHEN order_key IS NULL THEN 0 ELSE 3 END
                       WHERE queue IN (SELECT id FROM queues) AND state = 2 AND holder = ?1
                       RETURNING queue, order_key";
            let mut freed = db.prepare(sql)?;
            let freed =
                freed.query_map([self.id, now_ms()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            promote_freed(db, &freed.collect::<rusqlite::Result<_>>()?)?;
            Ok(())
        };
        // The row goes last, as nobody would look at the file without it: the program may end at any
        // time, because nobody has to wait for this.
        let left = left().map_err(|error| error.to_string());
        let removed = std::fs::remove_file(self.directory.join(&self.name));
        let left = left.and_then(|()| removed.map_err(|error| error.to_string())).and_then(|()| {
            let gone = db.execute("DELETE FROM holders WHERE id = ?1", [self.id]);
            gone.map_err(|error| error.to_string())
        });
        if let Err(error) = left {
            tracing::debug!(error, "a holder did not leave; others will notice");
        }
    }
}

/// Locks a holder's file, and opens the socket that others wake it by.
fn lock_and_bind(lock: &File) -> std::io::Result<UdpSocket> {
    lock.try_lock().map_err(|error| match error {
        TryLockError::Error(error) => error,
        TryLockError::WouldBlock => std::io::ErrorKind::AlreadyExists.into(),
    })?;
    UdpSocket::bind(("127.0.0.1", 0))
}

/// Whether nobody holds the lock.
fn is_dead(path: &Path) -> bool {
    // Read access is enough to lock it: another user may have created it.
    match File::open(path) {
        Ok(file) => file.try_lock().is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// A message is suspect once it was in flight at this many deaths: a single one may have any cause,
/// and handing out everything singly after each death would take long.
const SUSPECT_DEATHS: i64 = 2;

/// Frees a holder's leases. If it is dead, what was in flight may be suspect, and what was in
/// flight alone has crashed; a holder that is only silent may have been suspended for a while.
fn free(db: &mut Connection, other: &Other, dead: bool) -> rusqlite::Result<usize> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let holder = other.id;
    // It may have given a sign, or somebody else may have freed what it had, while this waited for
    // the transaction.
    let sql = "SELECT 1 FROM holders WHERE id = ?1 AND seen_at = ?2";
    if !dead && !transaction.prepare_cached(sql)?.exists([holder, other.seen_at])? {
        return Ok(0);
    }
    let held: usize = transaction.query_row(
        "SELECT count(*) FROM messages
         WHERE queue IN (SELECT id FROM queues) AND state = 2 AND holder = ?1",
        [holder],
        |row| row.get(0),
    )?;
    let crashed = dead && held == 1;
    let sql = "UPDATE messages SET holder = 0, redeliveries = redeliveries + 1,
                 visible_at = CASE WHEN order_key IS NULL THEN max(visible_at, ?5)
                                   ELSE enqueued_at END,
                 state = CASE WHEN order_key IS NULL THEN 0 ELSE 3 END,
                 deaths = deaths + ?2, crashes = crashes + ?3, suspect = (deaths + ?2 >= ?4)
               WHERE queue IN (SELECT id FROM queues) AND state = 2 AND holder = ?1
               RETURNING queue, order_key";
    {
        let mut update = transaction.prepare(sql)?;
        let values = params![holder, dead, crashed, SUSPECT_DEATHS, now_ms()];
        let freed = update.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
        promote_freed(&transaction, &freed.collect::<rusqlite::Result<_>>()?)?;
    }
    if dead {
        transaction.execute("DELETE FROM holders WHERE id = ?1", [holder])?;
    } else {
        // The holder's row stays, since it may claim before it gives a sign of life: leases without
        // a holder would never be freed.
        let sql = "UPDATE holders SET seen_at = ?2 WHERE id = ?1";
        transaction.execute(sql, [holder, now_ms()])?;
    }
    transaction.commit()?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Sync;

    const LEASE: Duration = Duration::from_secs(8);

    /// A store with one message.
    fn store(directory: &tempfile::TempDir) -> Connection {
        let db = crate::schema::open(&directory.path().join("a.db"), Sync::Full).expect("a store");
        db.execute("INSERT INTO queues (pipeline, name, grp) VALUES ('p', 'q', '')", [])
            .expect("a queue");
        let sql =
            "INSERT INTO messages (queue, state, visible_at, order_key, enqueued_at, size, mid)
                   VALUES (1, 0, 0, x'01', 0, 1, x'00')";
        db.execute(sql, []).expect("a message");
        db
    }

    fn counts(db: &Connection) -> (u32, u32, u32) {
        let sql = "SELECT redeliveries, deaths, crashes FROM messages WHERE state = 0";
        db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .expect("it is free")
    }

    fn lease(db: &Connection, holder: &Holder) {
        let sql = "UPDATE messages SET state = 2, holder = ?1";
        assert_eq!(db.execute(sql, [holder.id]).expect("it is leased"), 1);
        db.execute("UPDATE holders SET seen_at = 0 WHERE id = ?1", [holder.id]).expect("it is old");
    }

    /// A holder checks, and checks again after it has given a sign of life some time later.
    fn look_twice(me: &mut Holder, db: &mut Connection, now: &mut Instant) -> [usize; 2] {
        let first = me.free_the_dead(db, LEASE).expect("it looks");
        *now += LEASE + Duration::from_millis(1);
        me.seen(db, *now);
        [first, me.free_the_dead(db, LEASE).expect("it looks")]
    }

    /// It may claim more before it gives a sign of life, like one that was suspended for a while:
    /// nobody else would free that when it dies.
    #[test]
    fn who_is_silent_and_lives_loses_its_leases_and_has_not_died() {
        for says_so in [true, false] {
            let directory = tempfile::tempdir().expect("a directory");
            let mut db = store(&directory);
            let enter = || Holder::enter(&db, &directory.path().join("holders"));
            let (mut me, mut other) = (enter().expect("it enters"), enter().expect("it enters"));
            let mut now = Instant::now();
            lease(&db, &other);
            assert_eq!(look_twice(&mut me, &mut db, &mut now), [0, 1]);
            assert_eq!(counts(&db), (1, 0, 0));
            if says_so {
                other.seen(&db, now);
            }
            lease(&db, &other);
            drop(other);
            assert_eq!(me.free_the_dead(&mut db, LEASE).expect("it looks"), 1);
            assert_eq!(counts(&db), (2, 1, 1));
            let holders = db.query_row("SELECT count(*) FROM holders", [], |row| row.get(0));
            assert_eq!(holders, Ok(1), "only I am left");
        }
    }

    /// When the wall clock is set forward, a process looks as if it had been silent for very long.
    #[test]
    fn who_lives_keeps_its_leases_when_the_clock_is_set_forward() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut db = store(&directory);
        let enter = || Holder::enter(&db, &directory.path().join("holders"));
        let (mut me, other) = (enter().expect("it enters"), enter().expect("it enters"));
        lease(&db, &other);
        assert_eq!(me.free_the_dead(&mut db, LEASE).expect("it looks"), 0);
    }

    #[test]
    fn who_gives_a_sign_before_it_is_freed_keeps_its_leases() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut db = store(&directory);
        let holders = directory.path().join("holders");
        let me = Holder::enter(&db, &holders).expect("it enters");
        let mut other = Holder::enter(&db, &holders).expect("it enters");
        lease(&db, &other);
        let silent = me.others(&db).expect("one other");
        other.seen(&db, Instant::now());
        assert_eq!(free(&mut db, &silent[0], false).expect("it looks"), 0);
        lease(&db, &other);
        let silent = me.others(&db).expect("one other");
        assert_eq!(free(&mut db, &silent[0], false).expect("it looks"), 1);
        assert_eq!(free(&mut db, &silent[0], false).expect("it looks"), 0, "somebody did");
    }

    /// A file that another user created may be read-only; for root that makes no difference.
    #[test]
    fn who_died_is_known_by_a_file_that_may_only_be_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let db = store(&directory);
        let other = Holder::enter(&db, directory.path()).expect("it enters");
        let path = directory.path().join(&other.name);
        let mut permissions = std::fs::metadata(&path).expect("a file").permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(&path, permissions).expect("they are set");
        assert!(!is_dead(&path));
        drop(other);
        assert!(is_dead(&path));
    }

    /// Nobody looks at a file without a row, and the program may end between the two.
    #[test]
    fn who_leaves_has_a_row_for_as_long_as_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut db = store(&directory);
        let holders = directory.path().join("holders");
        let enter = || Holder::enter(&db, &holders).expect("it enters");
        let (mut me, other) = (enter(), enter());
        let path = holders.join(&other.name);
        std::fs::remove_file(&path).expect("it is removed");
        std::fs::create_dir(&path).expect("this is no file to be removed");
        other.leave(&db);
        let rows = || db.query_row("SELECT count(*) FROM holders", [], |row| row.get::<_, i64>(0));
        assert_eq!(rows(), Ok(2));
        std::fs::remove_dir(&path).expect("it is removed");
        me.free_the_dead(&mut db, LEASE).expect("it looks");
        assert_eq!(me.others(&db).expect("rows").len(), 0);
        me.leave(&db);
        assert_eq!(std::fs::read_dir(&holders).expect("a directory").count(), 0);
    }

    /// Each attempt to open a store on a full disk would leave a file.
    #[test]
    fn who_cannot_enter_leaves_no_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let db = store(&directory);
        db.execute("DROP TABLE holders", []).expect("it is gone");
        let holders = directory.path().join("holders");
        assert!(Holder::enter(&db, &holders).is_err());
        assert_eq!(std::fs::read_dir(&holders).expect("a directory").count(), 0);
    }
}
