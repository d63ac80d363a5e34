//! The thread of a store: group commit, checking other processes, and waking.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use brigade_core::connector::ConnectorError;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{Notify, oneshot};

use crate::claim::Leases;
use crate::holder::Holder;
use crate::schema::failed;
use crate::settings::Options;

/// The most requests in one transaction.
const GROUP_MAX: usize = 256;
/// How often other processes are checked while there is nothing to do.
const LOOK: Duration = Duration::from_millis(200);
/// How often this process gives a sign of life.
const SEEN: Duration = Duration::from_secs(5);

/// What a request works with.
pub(crate) struct Work<'w> {
    pub(crate) db: &'w Connection,
    pub(crate) holder: i64,
    pub(crate) leases: &'w mut Leases,
    pub(crate) options: &'w Options,
    /// Set when rows have become visible, so that others are notified after the commit.
    pub(crate) woke: bool,
    /// Whether the transaction is committed, for code that has to know that later.
    pub(crate) committed: Arc<AtomicBool>,
}

/// Something to be done in a transaction, answered after its commit.
trait Job: Send {
    /// Returns whether the transaction may go on, which it may not after a failure with part of the
    /// job done.
    fn run(&mut self, work: &mut Work<'_>) -> bool;
    /// Returns whether it has to be done again later.
    fn answer(&mut self, committed: Result<(), ConnectorError>) -> bool;
}

/// When a request is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Once, whether or not anybody waits for its answer.
    Once,
    /// Only if somebody still waits for its answer when its turn comes.
    WhileAwaited,
    /// Repeatedly, until it succeeds.
    UntilDone,
}

struct Request<F, T> {
    run: F,
    wanted: Wanted,
    result: Option<Result<T, ConnectorError>>,
    /// Present until it is answered.
    reply: Option<oneshot::Sender<Result<T, ConnectorError>>>,
    path: Arc<PathBuf>,
}

impl<F, T> Job for Request<F, T>
where
    F: FnMut(&mut Work<'_>) -> Result<T, Fault> + Send,
    T: Send,
{
    fn run(&mut self, work: &mut Work<'_>) -> bool {
        let is_awaited = self.reply.as_ref().is_some_and(|reply| !reply.is_closed());
        if self.wanted == Wanted::WhileAwaited && !is_awaited {
            return true;
        }
        let before = work.db.total_changes();
        let result = (self.run)(work).map_err(|fault| match fault {
            Fault::Sql(error) => failed(&self.path, error),
            Fault::Told(error) => error,
        });
        // Some errors end the transaction by themselves.
        let clean = work.db.total_changes() == before && !work.db.is_autocommit();
        let goes_on = result.is_ok() || clean;
        self.result = Some(result);
        goes_on
    }

    fn answer(&mut self, committed: Result<(), ConnectorError>) -> bool {
        let own = self.result.take().unwrap_or_else(|| {
            Err(ConnectorError::transient(format!(
                "the state {}: the transaction ended before this was done",
                self.path.display()
            )))
        });
        let result = committed.and(own);
        let again = self.wanted == Wanted::UntilDone && result.is_err();
        if let Some(reply) = self.reply.take() {
            if let Err(error) = &result
                && again
            {
                tracing::warn!(%error, "messages are not given back yet; it is tried until they are");
            }
            // The caller may be gone; what was committed stands.
            let _ = reply.send(result);
        }
        again
    }
}

/// Why a request was not done.
pub(crate) enum Fault {
    Sql(rusqlite::Error),
    Told(ConnectorError),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<ConnectorError> for Fault {
    fn from(error: ConnectorError) -> Self {
        Self::Told(error)
    }
}

enum Told {
    Job(Box<dyn Job>),
    /// Another process has written.
    Wake,
    /// Only sent to see whether the thread is listening.
    Nothing,
    Stop,
}

/// The handle for sending requests to a store's thread.
///
/// The channel itself is unbounded; each consumer, producer and settlement waits for its answers,
/// so the number of requests is at most their number times the few each has pending.
#[derive(Clone)]
pub(crate) struct Requests {
    sender: Sender<Told>,
    path: Arc<PathBuf>,
}

impl Requests {
    pub(crate) fn new(path: PathBuf) -> (Self, Inbox) {
        let (sender, receiver) = std::sync::mpsc::channel();
        (Self { sender, path: Arc::new(path) }, Inbox(receiver))
    }

    /// Does something in the next transaction. It may be rolled back and done again.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut Work<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, ConnectorError> {
        let answer = self.send(run);
        answer.await.unwrap_or_else(|_| Err(self.closed()))
    }

    /// Sends a request whose answer need not be waited for.
    pub(crate) fn send<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut Work<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, ConnectorError>> {
        self.enter(run, Wanted::Once)
    }

    /// Sends a request that nobody else will repeat. If it fails, the error is returned, and it is
    /// retried at each check until it is committed or the store is closed. It gives back leases, so
    /// there are never more of these requests than leases.
    pub(crate) fn send_owed<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut Work<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> oneshot::Receiver<Result<T, ConnectorError>> {
        self.enter(run, Wanted::UntilDone)
    }

    fn enter<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut Work<'_>) -> Result<T, Fault> + Send + 'static,
        wanted: Wanted,
    ) -> oneshot::Receiver<Result<T, ConnectorError>> {
        let (reply, answer) = oneshot::channel();
        let path = Arc::clone(&self.path);
        let request = Request { run, wanted, result: None, reply: Some(reply), path };
        // If the thread has ended, the reply is dropped, which signals that.
        let _ = self.sender.send(Told::Job(Box::new(request)));
        answer
    }

    /// Looks something up in the next transaction. Skipped if the caller is gone when its turn
    /// comes.
    pub(crate) fn look<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut Work<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> impl Future<Output = Result<T, ConnectorError>> + Send + 'static {
        let (answer, closed) = (self.enter(run, Wanted::WhileAwaited), self.closed());
        async move { answer.await.unwrap_or(Err(closed)) }
    }

    /// Makes consumers check again; returns whether the store is still open.
    pub(crate) fn wake(&self) -> bool {
        self.sender.send(Told::Wake).is_ok()
    }

    /// Whether the thread still lives.
    pub(crate) fn is_open(&self) -> bool {
        self.sender.send(Told::Nothing).is_ok()
    }

    pub(crate) fn stop(&self) {
        let _ = self.sender.send(Told::Stop);
    }

    fn closed(&self) -> ConnectorError {
        ConnectorError::closed(&self.path.display().to_string())
    }
}

pub(crate) struct Inbox(Receiver<Told>);

pub(crate) struct StoreThread {
    pub(crate) db: Connection,
    pub(crate) holder: Holder,
    pub(crate) options: Options,
    pub(crate) path: PathBuf,
    /// Notifies consumers to check again.
    pub(crate) visible: Arc<Notify>,
}

/// The result of a group of jobs.
enum Transacted {
    Committed {
        woke: bool,
    },
    /// One of them failed part-way, so nothing was kept.
    Undone,
}

impl StoreThread {
    pub(crate) fn run(mut self, inbox: Inbox) {
        let mut leases = Leases::default();
        let mut owed = Vec::new();
        let (mut looked, mut seen) = (Instant::now(), Instant::now());
        let mut data_version = self.data_version();
        loop {
            let first = match inbox.0.recv_timeout(LOOK) {
                Ok(Told::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(told) => Some(told),
                Err(RecvTimeoutError::Timeout) => None,
            };
            let mut stop = false;
            let mut jobs = Vec::new();
            let mut take = |told| match told {
                Told::Job(job) => jobs.push(job),
                Told::Wake => self.visible.notify_waiters(),
                Told::Stop => stop = true,
                Told::Nothing => {}
            };
            first.into_iter().for_each(&mut take);
            for told in inbox.0.try_iter().take(GROUP_MAX) {
                take(told);
            }
            if !jobs.is_empty() {
                owed.append(&mut self.commit(jobs, &mut leases));
            }
            if looked.elapsed() >= LOOK {
                if !owed.is_empty() {
                    owed = self.commit(owed, &mut leases);
                }
                looked = Instant::now();
                let version = self.data_version();
                if version != data_version {
                    data_version = version;
                    self.visible.notify_waiters();
                }
                self.look_after_others();
            }
            if seen.elapsed() >= SEEN {
                seen = Instant::now();
                self.holder.seen(&self.db, seen);
            }
            if stop {
                break;
            }
        }
        self.holder.leave(&self.db);
        // The log is transferred into the file, so that a copy of the file is complete.
        let _ = self.db.pragma_update(None, "wal_checkpoint", "TRUNCATE");
    }

    /// Does a group of jobs in one transaction, commits once, and answers all. Returns those that
    /// have to be done again later.
    ///
    /// When one of them fails part-way, everything is rolled back and each is done by itself: that
    /// is rare, and a savepoint for each would copy every page that they change.
    fn commit(&mut self, mut jobs: Vec<Box<dyn Job>>, leases: &mut Leases) -> Vec<Box<dyn Job>> {
        let transacted = self.transact(&mut jobs, leases);
        if matches!(transacted, Ok(Transacted::Undone)) {
            leases.reload(&self.db, self.holder.id);
            if jobs.len() > 1 {
                return jobs.into_iter().flat_map(|job| self.commit(vec![job], leases)).collect();
            }
        }
        let woke = matches!(transacted, Ok(Transacted::Committed { woke: true }));
        let failed = transacted.err().map(|error| failed(&self.path, error));
        jobs.retain_mut(|job| job.answer(failed.clone().map_or(Ok(()), Err)));
        if failed.is_some() {
            // Claims made in it did not happen; what was held before still is.
            leases.reload(&self.db, self.holder.id);
        } else if woke {
            self.visible.notify_waiters();
            self.holder.wake_others(&self.db);
        }
        jobs
    }

    fn transact(
        &mut self,
        jobs: &mut [Box<dyn Job>],
        leases: &mut Leases,
    ) -> rusqlite::Result<Transacted> {
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut work = Work {
            db: &transaction,
            holder: self.holder.id,
            leases,
            options: &self.options,
            woke: false,
            committed: Arc::default(),
        };
        if !jobs.iter_mut().all(|job| job.run(&mut work)) {
            return Ok(Transacted::Undone);
        }
        let (woke, committed) = (work.woke, work.committed);
        transaction.commit()?;
        committed.store(true, Ordering::Relaxed);
        Ok(Transacted::Committed { woke })
    }

    /// A number that changes when another process has written.
    fn data_version(&self) -> i64 {
        self.db.pragma_query_value(None, "data_version", |row| row.get(0)).unwrap_or(0)
    }

    fn look_after_others(&mut self) {
        match self.holder.free_the_dead(&mut self.db, self.options.lease) {
            Ok(0) => {}
            Ok(freed) => {
                tracing::info!(state = %self.path.display(), freed, "leases of ended processes freed");
                self.visible.notify_waiters();
            }
            Err(error) => {
                tracing::warn!(state = %self.path.display(), %error, "cannot look after other processes");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use rusqlite::TransactionBehavior;

    use super::*;
    use crate::{Options, Store};

    /// A caller that asks for the depth gives up after some seconds and asks again: otherwise more
    /// and more queries would queue up while the store is slow.
    #[tokio::test]
    async fn what_nobody_wants_to_know_any_more_is_not_looked_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), Options::default()).expect("a store");
        let looked = Arc::new(AtomicU32::new(0));
        let question = || {
            let looked = Arc::clone(&looked);
            store.requests().look(move |_| {
                looked.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        let file = directory.path().join("brigade.db");
        let mut other = Connection::open(file).expect("a connection");
        let busy = other.transaction_with_behavior(TransactionBehavior::Immediate);
        let busy = busy.expect("the store is locked");
        let (given_up, wanted) = (question(), question());
        drop(given_up);
        drop(busy);
        wanted.await.expect("it is answered");
        assert_eq!(looked.load(Ordering::Relaxed), 1);
    }
}
