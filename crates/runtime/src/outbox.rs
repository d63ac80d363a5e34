//! What waits to go over direct edges.

use brigade_core::delivery::Delivery;

use crate::pool::CHUNK_MAX;

/// Deliveries over direct edges, by the stage they go to: sent together, since one mailbox message
/// per delivery costs more than many components do.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: Vec<(u16, Vec<Delivery>)>,
    /// Deliveries that went on with the duty they came with.
    pub(crate) gone_on: u64,
}

impl Outbox {
    /// Whether a stage's deliveries fill one mailbox message.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.iter().any(|(_, deliveries)| deliveries.len() >= CHUNK_MAX)
    }

    /// Adds a delivery for a stage.
    pub(crate) fn push(&mut self, stage: u16, delivery: Delivery) {
        match self.waiting.iter_mut().find(|(have, _)| *have == stage) {
            Some((_, waiting)) => {
                if waiting.capacity() == 0 {
                    waiting.reserve_exact(CHUNK_MAX);
                }
                waiting.push(delivery);
            }
            None => self.waiting.push((stage, vec![delivery])),
        }
    }

    /// Removes all that waits, by the stage it goes to.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = (u16, Vec<Delivery>)> {
        let filled = self.waiting.iter_mut().filter(|(_, waiting)| !waiting.is_empty());
        filled.map(|(stage, waiting)| (*stage, std::mem::take(waiting)))
    }
}
