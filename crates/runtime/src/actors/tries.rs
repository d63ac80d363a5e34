//! Tries that fail one after the other, while a store or a queue takes nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use brigade_core::retry::doubled;
use tokio::time::Instant;

use super::settler::Settler;
use crate::stats::Waiting;

/// Back-off while a store or a queue cannot be written.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// How often it is told that something fails, and goes on to.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// When it was last told that something fails. A full queue is one again and again: that is no news.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Whether it is to be told now; then it counts as told.
    pub(super) fn is_due(&self) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = told.is_none_or(|at| at.elapsed() >= TELL_EVERY);
        if is_due {
            *told = Some(Instant::now());
        }
        is_due
    }
}

/// How often something has failed in a row. As long as it does, its stage and its consumer are
/// blocked; whoever else is, is so for himself.
#[derive(Default)]
pub(super) struct Tries<'s> {
    failures: u32,
    blocked: Option<[Waiting<'s>; 2]>,
}

impl<'s> Tries<'s> {
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// It has failed once more: waits before the next try.
    pub(super) async fn wait(&mut self, settler: &'s Settler) {
        self.failures += 1;
        self.blocked
            .get_or_insert_with(|| [settler.root().stats.blocked.wait(), settler.blocked.wait()]);
        tokio::time::sleep(doubled(BACK_OFF.0, BACK_OFF.1, self.failures)).await;
    }
}
