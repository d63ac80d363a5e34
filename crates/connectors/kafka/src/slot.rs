//! Where a partition's messages are kept apart from those of others: receipts name the slot and the offset.

use std::borrow::Cow;

use brigade_core::watermark::Watermark;

use crate::assignment::Place;
use crate::ledger::Ledger;

/// A position is a partition's slot (16 bits) and an offset (48 bits).
const OFFSET_BITS: u32 = 48;
/// The most partitions that a consumer can meet in its life.
pub(crate) const SLOTS_MAX: usize = 1 << (64 - OFFSET_BITS);

/// A partition that was ever assigned.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) place: Place,
    pub(crate) ledger: Option<Ledger>,
    /// What the broker knew to be resolved when the partition went.
    pub(crate) kept: Watermark,
}

/// The offset of a receipt, as Kafka has it.
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
    /// What is resolved, as far as this member knows.
    pub(crate) fn resolved(&self) -> &Watermark {
        self.ledger.as_ref().map_or(&self.kept, Ledger::watermark)
    }

    /// What of that the broker has.
    pub(crate) fn committed(&self) -> Cow<'_, Watermark> {
        self.ledger.as_ref().map_or(Cow::Borrowed(&self.kept), Ledger::of_broker)
    }
}
