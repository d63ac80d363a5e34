//! Deliberate defects, to test that the books find them. Not for production programs.

use std::sync::atomic::{AtomicU8, Ordering};

/// A worker forgets a delivery.
pub(crate) const LEAK: u8 = 1;
/// A consumer's message is acked twice.
pub(crate) const ACK_TWICE: u8 = 2;
/// A delivery does not arrive at its worker.
pub(crate) const LOSE: u8 = 3;
/// A message that is settled is counted as no kind of outcome.
pub(crate) const NO_OUTCOME: u8 = 4;
/// An output is forgotten before it is put on its queue.
pub(crate) const DROP_OUTPUT: u8 = 5;

/// A defect that a stage shows, once.
#[derive(Debug, Default)]
pub(crate) struct Sabotage(AtomicU8);

impl Sabotage {
    pub(crate) fn order(&self, defect: u8) {
        self.0.store(defect, Ordering::Relaxed);
    }

    /// Whether this defect strikes now.
    pub(crate) fn strike(&self, defect: u8) -> bool {
        self.0.compare_exchange(defect, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}
