//! Counters of a stage, kept by its actors and read by anybody.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One stage's counters since the start. Atomic, relaxed: each is right by itself.
#[derive(Debug, Default)]
pub(crate) struct StageStats {
    pub(crate) received: Counter,
    pub(crate) acked: Counter,
    pub(crate) filtered: Counter,
    pub(crate) requeued: Counter,
    pub(crate) dead_lettered: Counter,
    /// Dead letters by the kind of their cause.
    pub(crate) causes: Mutex<BTreeMap<&'static str, u64>>,
    /// The time that components took, in nanoseconds, all workers together.
    pub(crate) busy_ns: Counter,
    pub(crate) discarded: Counter,
    pub(crate) released: Counter,
    pub(crate) emitted: Counter,
    pub(crate) calls: Counter,
    pub(crate) failed_attempts: Counter,
    pub(crate) panics: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) restarts: Counter,
    /// Threads of blocking components that were given up on and still run.
    pub(crate) stuck: Counter,
    /// Whether outputs wait for a queue that does not take them.
    pub(crate) blocked: AtomicBool,
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

    pub(crate) fn sub(&self, n: usize) {
        self.0.fetch_sub(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
