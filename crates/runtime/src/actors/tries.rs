//! Consecutive failures while a store or a queue takes nothing.

use std::time::Duration;

use brigade_core::retry::doubled;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::settler::Settler;
use crate::stats::Waiting;

/// Back-off while a store or a queue cannot be written.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// How often an ongoing failure is logged.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// When a failure was last logged. A full queue fails again and again, which is no news.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Whether to log it now; if so, it counts as logged.
    pub(super) fn is_due(&self) -> bool {
        let mut told = self.0.lock();
        let is_due = told.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if is_due {
            *told = Some(Instant::now());
        }
        is_due
    }
}

/// How often something has failed in a row. While it does, its stage and its consumer are blocked;
/// other stages and consumers count their own blocking.
#[derive(Default)]
pub(super) struct Tries<'s> {
    failures: u32,
    blocked: Option<[Waiting<'s>; 2]>,
}

impl<'s> Tries<'s> {
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Records another failure and waits before the next try.
    pub(super) async fn wait(&mut self, settler: &'s Settler) {
        self.failures += 1;
        self.blocked
            .get_or_insert_with(|| [settler.root().stats.blocked.wait(), settler.blocked.wait()]);
        tokio::time::sleep(doubled(BACK_OFF.0, BACK_OFF.1, self.failures)).await;
    }
}
