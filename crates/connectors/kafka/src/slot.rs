//! The slot of a partition in a member's list: a receipt's position is its slot's number and an
//! offset.

use crate::assignment::Place;
use crate::ledger::Ledger;

/// A position is a partition's slot (16 bits) and an offset (48 bits).
const OFFSET_BITS: u32 = 48;
/// The most partitions that a consumer can be assigned in its life.
pub(crate) const SLOTS_MAX: usize = 1 << (64 - OFFSET_BITS);

/// A partition that was ever assigned.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) place: Place,
    pub(crate) ledger: Option<Ledger>,
    /// The previous ledger, if the partition was lost: pending commits may still count.
    pub(crate) gone: Option<Ledger>,
    /// The number of the current ledger.
    pub(crate) epoch: u64,
}

/// A state of a slot that an ack waits to be committed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    slot: usize,
    epoch: u64,
    resolved: u64,
}

/// The offset of a receipt, as in Kafka.
pub(crate) fn offset_of(position: u64) -> u64 {
    position & ((1 << OFFSET_BITS) - 1)
}

pub(crate) fn position_of(slot: usize, offset: u64) -> u64 {
    (slot as u64) << OFFSET_BITS | offset
}

pub(crate) fn slot_of(position: u64) -> usize {
    usize::try_from(position >> OFFSET_BITS).unwrap_or(usize::MAX)
}

impl Slot {
    pub(crate) fn new(place: Place) -> Self {
        Self { place, ledger: None, gone: None, epoch: 0 }
    }

    /// Starts over with another ledger.
    pub(crate) fn begin(&mut self, ledger: Ledger) {
        (self.ledger, self.gone) = (Some(ledger), None);
        self.epoch += 1;
    }

    /// Records that the partition is ours no longer.
    pub(crate) fn end(&mut self) {
        self.gone = self.ledger.take().or_else(|| self.gone.take());
    }

    /// The ledger, or the previous one.
    pub(crate) fn last(&self) -> Option<&Ledger> {
        self.ledger.as_ref().or(self.gone.as_ref())
    }

    pub(crate) fn last_mut(&mut self) -> Option<&mut Ledger> {
        self.ledger.as_mut().or(self.gone.as_mut())
    }

    /// Whether an offset is resolved; if the partition was lost, whether the broker knows that it
    /// is.
    pub(crate) fn is_resolved(&self, offset: u64) -> bool {
        match &self.ledger {
            Some(ledger) => ledger.is_resolved(offset),
            None => self.gone.as_ref().is_some_and(|ledger| ledger.is_known(offset)),
        }
    }

    pub(crate) fn mark(&self, slot: usize) -> Option<Mark> {
        let ledger = self.ledger.as_ref()?;
        Some(Mark { slot, epoch: self.epoch, resolved: ledger.resolved() })
    }

    /// Whether the broker has an offset that was resolved before one of the marks was made.
    pub(crate) fn is_committed(&self, at: usize, offset: u64, marks: &[Mark]) -> bool {
        let Some(ledger) = self.last() else { return false };
        let mark = marks.iter().find(|mark| mark.slot == at && mark.epoch == self.epoch);
        ledger.is_known(offset)
            || mark.is_some_and(|mark| ledger.is_committed(offset, mark.resolved))
    }
}
