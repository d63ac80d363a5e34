//! Tries that fail one after the other, while a store or a queue takes nothing.

use std::time::Duration;

use brigade_core::retry::doubled;

use super::settler::Settler;
use crate::stats::Waiting;

/// Back-off while a store or a queue cannot be written.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// Tell of the first failure in a row, and then of every so many.
const TELL_EVERY: u32 = 20;

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

    /// Whether the next failure is to be told.
    pub(super) fn is_to_be_told(&self) -> bool {
        self.failures.is_multiple_of(TELL_EVERY)
    }

    /// It has failed once more: waits before the next try.
    pub(super) async fn wait(&mut self, settler: &'s Settler) {
        self.failures += 1;
        self.blocked
            .get_or_insert_with(|| [settler.root().stats.blocked.wait(), settler.blocked.wait()]);
        tokio::time::sleep(doubled(BACK_OFF.0, BACK_OFF.1, self.failures)).await;
    }
}
