//! Counters of a stage, kept by its actors and readable by everyone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use brigade_core::outcome::{Ledger, Outcome};
use parking_lot::Mutex;

/// One stage's counters since the start. Atomic, relaxed: each is correct on its own.
#[derive(Debug, Default)]
pub(crate) struct StageStats {
    /// What came from its queues.
    pub(crate) from_queues: Ledger,
    /// What came over a direct edge, by the lane of the worker that it went to: workers of
    /// different lanes should not share counters. Empty for a stage that reads queues.
    pub(crate) direct: Box<[Arc<Ledger>]>,
    /// Dead letters by the kind of their cause.
    pub(crate) causes: Mutex<BTreeMap<&'static str, u64>>,
    /// Outputs by the queue their root came from and the queue they went to.
    pub(crate) outputs: Mutex<BTreeMap<(u16, u16), u64>>,
    /// Total time spent in components, in nanoseconds, summed over all workers.
    pub(crate) busy_ns: Counter,
    /// Total time that workers waited for something to do, in nanoseconds, summed over all workers.
    pub(crate) idle_ns: Counter,
    /// Results of its queues that contained messages.
    pub(crate) pulls: Counter,
    /// When the last message came, in milliseconds since 1970; 0 if none has.
    pub(crate) last_message: Counter,
    /// Messages that were settled, and the total time from receiving to settling them.
    pub(crate) settled: Counter,
    pub(crate) settled_ns: Counter,
    pub(crate) calls: Counter,
    pub(crate) failed_attempts: Counter,
    pub(crate) panics: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) restarts: Counter,
    /// Threads of blocking components that were given up on and still run.
    pub(crate) stuck: Counter,
    /// Whether outputs wait for a queue that does not take them.
    pub(crate) blocked: Blocked,
}

impl StageStats {
    /// The counters of a stage that is fed directly, on so many lanes.
    pub(crate) fn fed_directly(lanes: usize) -> Self {
        Self { direct: (0..lanes).map(|_| Arc::default()).collect(), ..Self::default() }
    }

    fn ledgers(&self) -> impl Iterator<Item = &Ledger> {
        [&self.from_queues].into_iter().chain(self.direct.iter().map(|ledger| &**ledger))
    }

    /// Messages that came, from queues and over a direct edge.
    pub(crate) fn received(&self) -> u64 {
        self.ledgers().map(Ledger::received).sum()
    }

    /// Messages that came to this outcome.
    pub(crate) fn count(&self, outcome: Outcome) -> u64 {
        self.ledgers().map(|ledger| ledger.get(outcome)).sum()
    }
}

/// How many wait for something that takes nothing, and for how long in total any of them did.
#[derive(Debug, Default)]
pub(crate) struct Blocked {
    /// How many are waiting, and since when there have been any.
    now: Mutex<(usize, Option<Instant>)>,
    ns: Counter,
}

/// One blocked waiter, until it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'b>(&'b Blocked);

impl Blocked {
    /// Records another waiter.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        let mut now = self.now.lock();
        now.0 += 1;
        now.1.get_or_insert_with(Instant::now);
        Waiting(self)
    }

    /// How many are waiting.
    pub(crate) fn count(&self) -> usize {
        self.now.lock().0
    }

    pub(crate) fn is(&self) -> bool {
        self.count() > 0
    }

    /// For how long any waited, including a wait that is not over.
    pub(crate) fn time(&self) -> Duration {
        let since = self.now.lock().1;
        self.ns.time() + since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut now = self.0.now.lock();
        now.0 -= 1;
        if now.0 == 0
            && let Some(since) = now.1.take()
        {
            self.0.ns.add_time(since.elapsed());
        }
    }
}

/// A number that is counted up, or set.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: usize) {
        if n > 0 {
            self.0.fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    /// Adds nanoseconds.
    pub(crate) fn add_time(&self, time: Duration) {
        self.add(usize::try_from(time.as_nanos()).unwrap_or(usize::MAX));
    }

    /// The nanoseconds that were added.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(self.get())
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, n: usize) {
        self.0.fetch_sub(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often something was done with a queue, and how long that took.
pub(crate) struct Timing {
    count: Counter,
    ns: Counter,
    seconds: metrics::Histogram,
}

impl Timing {
    pub(crate) fn new(pipeline: &str, queue: &str, operation: &'static str) -> Self {
        let seconds = metrics::histogram!(
            "brigade_queue_seconds",
            "pipeline" => pipeline.to_owned(), "queue" => queue.to_owned(), "operation" => operation
        );
        Self { count: Counter::default(), ns: Counter::default(), seconds }
    }

    /// Records one operation that began at `begun`.
    pub(crate) fn done_since(&self, begun: Instant) {
        let took = begun.elapsed();
        self.count.add(1);
        self.ns.add_time(took);
        self.seconds.record(took);
    }

    pub(crate) fn get(&self) -> (u64, Duration) {
        (self.count.get(), self.ns.time())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_blocked_as_long_as_anybody_waits() {
        let blocked = Blocked::default();
        let (one, other) = (blocked.wait(), blocked.wait());
        drop(one);
        assert!(blocked.is());
        drop(other);
        assert!(!blocked.is());
        let time = blocked.time();
        assert!(time > Duration::ZERO);
        assert_eq!(blocked.time(), time, "it does not go on");
    }
}
