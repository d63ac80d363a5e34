//! What a consumer has handed out: how many resolutions each message still waits for, and what
//! becomes of it once the last has arrived.

use std::time::Instant;

use smallvec::SmallVec;

use crate::Timestamp;
use crate::connector::Receipt;
use crate::delivery::{Done, GivenUp, Made, Requeued, Resolution, Resolved, Slot};

/// A consumer's messages in flight: handed out and not yet settled.
///
/// A message may become several deliveries over direct edges; it ends when the last of them is
/// resolved. If any of them was given back or lost, the whole message is given back: nothing it
/// emitted leaves, and it runs again from its root.
#[derive(Debug, Default)]
pub struct Flights {
    entries: Vec<Entry>,
    free: Vec<Slot>,
    messages: usize,
    bytes: usize,
    made: usize,
}

#[derive(Debug, Default)]
struct Entry {
    receipt: Option<Receipt>,
    since: Option<Since>,
    bytes: usize,
    /// The bytes of what was made of it.
    made: usize,
    /// Deliveries not yet resolved.
    open: u32,
    end: End,
}

/// When a message was queued and received, to compute how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since {
    /// When it was put on its queue, if the queue knows.
    pub enqueued_at: Option<Timestamp>,
    /// When the consumer received it.
    pub received: Instant,
}

/// How a message ended.
#[derive(Debug, Default)]
pub struct End {
    /// What the stages made of it, parent before child.
    pub done: SmallVec<[Box<Made>; 1]>,
    /// What stages gave up on: the message or its descendants.
    pub given_up: Vec<Box<GivenUp>>,
    /// Whether it was given up on without being kept.
    pub discarded: bool,
    /// A failed attempt, to be put back.
    pub requeued: Option<Box<Requeued>>,
    /// Whether it is given back undecided.
    pub released: bool,
}

/// A message whose last delivery is resolved.
#[derive(Debug)]
pub struct Finished {
    /// Its slot, occupied until it is [settled](Flights::settled).
    pub slot: Slot,
    /// What is needed to ack it.
    pub receipt: Receipt,
    /// When it was queued and received.
    pub since: Option<Since>,
    /// How it ended.
    pub end: End,
}

impl Finished {
    /// Whether settling it writes to the state of a stage.
    pub fn writes(&self) -> bool {
        self.end.done.iter().any(|made| !made.written.writes.is_empty())
    }
}

impl Flights {
    /// Records a message of this size as handed out, as one delivery. `since` is returned with it
    /// when it is finished.
    pub fn hand_out(&mut self, receipt: Receipt, bytes: usize, since: Option<Since>) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            let next = u32::try_from(self.entries.len()).expect("credit is far below 2^32");
            self.entries.push(Entry::default());
            Slot(next)
        });
        let end = End::default();
        let receipt = Some(receipt);
        self.entries[slot.0 as usize] = Entry { receipt, since, bytes, made: 0, open: 1, end };
        self.messages += 1;
        self.bytes += bytes;
        slot
    }

    /// Records a resolution; returns the message if it was its last.
    pub fn resolve(&mut self, resolved: Resolved) -> Option<Finished> {
        let Resolved { slot, resolution } = resolved;
        let entry = &mut self.entries[slot.0 as usize];
        let receipt = entry.receipt.expect("a guard resolves once, and only then is a slot freed");
        match resolution {
            Resolution::Done(Done { children, made }) => {
                entry.open += children.count;
                self.messages += children.count as usize;
                let mut bytes = children.size;
                if let Some(made) = made {
                    bytes += made.outputs.iter().map(|(_, out)| out.message.size()).sum::<usize>();
                    entry.end.done.push(made);
                }
                entry.made += bytes;
                self.made += bytes;
            }
            Resolution::DeadLettered(given_up) => entry.end.given_up.push(given_up),
            Resolution::Discarded => entry.end.discarded = true,
            Resolution::Requeued(requeued) => entry.end.requeued = Some(requeued),
            Resolution::Released | Resolution::Dropped => entry.end.released = true,
        }
        entry.open -= 1;
        if entry.open > 0 {
            self.messages -= 1;
            return None;
        }
        let (since, end) = (entry.since, std::mem::take(&mut entry.end));
        Some(Finished { slot, receipt, since, end })
    }

    /// Records that a finished message is settled: its slot and its credit are free.
    pub fn settled(&mut self, slot: Slot) {
        let entry = &mut self.entries[slot.0 as usize];
        debug_assert_eq!(entry.open, 0, "only what is finished is settled");
        if entry.receipt.take().is_some() {
            self.messages -= 1;
            self.bytes -= entry.bytes;
            self.made -= entry.made;
            self.free.push(slot);
        }
    }

    /// Deliveries and finished messages that are not settled, including descendants.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Their bytes, including [what was made of them](Flights::made).
    pub fn bytes(&self) -> usize {
        self.bytes + self.made
    }

    /// The bytes of what was made of messages that are not settled: their descendants, and outputs
    /// that wait.
    pub fn made(&self) -> usize {
        self.made
    }

    /// Messages handed out by the consumer and not settled, without descendants.
    pub fn roots(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The receipts of the messages in flight, to extend their leases.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.entries.iter().filter_map(|entry| entry.receipt).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Children;
    use proptest::prelude::*;

    const RECEIPT: Receipt = Receipt { position: 1, fence: 1 };

    /// Each child has 5 bytes.
    fn done(count: u32) -> Resolution {
        let children = Children { count, size: 5 * count as usize };
        Resolution::Done(Done { children, ..Done::default() })
    }

    #[test]
    fn a_message_ends_with_the_last_of_its_descendants() {
        let mut flights = Flights::default();
        let slot = flights.hand_out(RECEIPT, 10, None);
        assert!(flights.resolve(Resolved { slot, resolution: done(2) }).is_none());
        assert_eq!((flights.messages(), flights.made(), flights.bytes()), (2, 10, 20));
        assert!(flights.resolve(Resolved { slot, resolution: done(0) }).is_none());
        let finished = flights.resolve(Resolved { slot, resolution: done(0) });
        assert!(!finished.expect("the last one").end.released);
        assert_eq!(flights.messages(), 1, "its credit is kept until it is settled");
        flights.settled(slot);
        assert!(flights.is_empty());
        assert_eq!((flights.made(), flights.bytes()), (0, 0));
    }

    #[test]
    fn a_lost_child_gives_the_whole_message_back() {
        let mut flights = Flights::default();
        let slot = flights.hand_out(RECEIPT, 10, None);
        flights.resolve(Resolved { slot, resolution: done(1) });
        let resolved = Resolved { slot, resolution: Resolution::Dropped };
        assert!(flights.resolve(resolved).expect("the last one").end.released);
    }

    proptest! {
        /// For any tree of descendants and any order of resolutions: one end per message, after as
        /// many resolutions as there were deliveries, and the counts return to zero.
        #[test]
        fn counts_come_back_to_zero(children in prop::collection::vec(0_u32..4, 1..200)) {
            let mut flights = Flights::default();
            let (mut open, mut ended, mut begun) = (Vec::new(), 0, 0);
            let mut children = children.into_iter();
            loop {
                if open.is_empty() {
                    let Some(_) = children.next() else { break };
                    begun += 1;
                    open.push(flights.hand_out(RECEIPT, 7, None));
                }
                let slot = open.swap_remove(open.len() / 2);
                let n = children.next().unwrap_or(0);
                open.extend((0..n).map(|_| slot));
                if let Some(finished) = flights.resolve(Resolved { slot, resolution: done(n) }) {
                    ended += 1;
                    flights.settled(finished.slot);
                }
            }
            prop_assert_eq!(begun, ended);
            prop_assert!(flights.is_empty());
            prop_assert_eq!((flights.made(), flights.bytes()), (0, 0));
            prop_assert!(flights.receipts().is_empty());
        }
    }
}
