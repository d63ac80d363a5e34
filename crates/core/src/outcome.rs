//! What becomes of messages in a stage, and how many of each.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::delivery::Resolution;

/// What became of a message in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, and something was made of it.
    Acked,
    /// It is done, and became nothing on purpose.
    Filtered,
    /// It was given up on and kept as a dead letter.
    DeadLettered,
    /// It was given up on and not kept.
    Discarded,
    /// It goes back to its queue after a failed attempt.
    Requeued,
    /// It was given back undecided, or lost by whoever had it.
    Released,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Acked,
        Self::Filtered,
        Self::DeadLettered,
        Self::Discarded,
        Self::Requeued,
        Self::Released,
    ];

    /// Those of messages that are done, one way or the other.
    pub const DONE: [Self; 4] = [Self::Acked, Self::Filtered, Self::DeadLettered, Self::Discarded];
}

impl From<&Resolution> for Outcome {
    fn from(resolution: &Resolution) -> Self {
        match resolution {
            Resolution::Done(done) if done.is_nothing() => Self::Filtered,
            Resolution::Done(_) => Self::Acked,
            Resolution::DeadLettered(_) => Self::DeadLettered,
            Resolution::Discarded => Self::Discarded,
            Resolution::Requeued(_) => Self::Requeued,
            Resolution::Released | Resolution::Dropped => Self::Released,
        }
    }
}

/// How many messages came, and how many came to each outcome. Each number is correct on its own;
/// together they are when nothing is in flight.
///
/// ```
/// use brigade_core::outcome::{Ledger, Outcome};
///
/// let ledger = Ledger::default();
/// ledger.receive(2);
/// ledger.add(Outcome::Acked, 1);
/// assert_eq!((ledger.received(), ledger.get(Outcome::Acked)), (2, 1));
/// ```
#[derive(Debug, Default)]
pub struct Ledger {
    received: AtomicU64,
    outcomes: [AtomicU64; Outcome::ALL.len()],
}

impl Ledger {
    /// Counts `messages` that came.
    pub fn receive(&self, messages: u64) {
        self.received.fetch_add(messages, Ordering::Relaxed);
    }

    /// Counts `messages` that came to an outcome.
    pub fn add(&self, outcome: Outcome, messages: u64) {
        if messages > 0 {
            self.outcomes[outcome as usize].fetch_add(messages, Ordering::Relaxed);
        }
    }

    /// How many came.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// How many came to this outcome.
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::component::Written;
    use crate::delivery::{Children, Delivery, HandedOut, Origin, Outputs, Parts, Slot};

    proptest! {
        /// Whatever a message becomes on its way over direct edges, and however that ends: each
        /// stage has counted one outcome for each message that came to it.
        #[test]
        fn each_stage_counts_one_outcome_for_what_came_over_a_direct_edge(
            steps in prop::collection::vec(0_u8..6, 0..60),
        ) {
            let origin = Origin::new(HandedOut::default(), Arc::new(|_| String::new()), || {});
            let ledgers: Vec<_> = (0..3).map(|_| Arc::new(Ledger::default())).collect();
            let (_, guard) = origin.hand_out(1).next(Slot(0));
            let mut here = vec![(0, Delivery::from(Parts { guard, ..Parts::default() }))];
            let enter = |stage: usize, mut delivery: Delivery| {
                ledgers[stage].receive(1);
                delivery.count_in(&ledgers[stage]);
                (stage + 1, delivery)
            };
            for step in steps {
                let Some((stage, mut delivery)) = here.pop() else { break };
                let none = Outputs::new;
                match step {
                    0 if stage < ledgers.len() => {
                        delivery.go_on(None);
                        here.push(enter(stage, delivery));
                    }
                    1 if stage < ledgers.len() => {
                        let child = || delivery.child(crate::Message::default(), None);
                        here.extend([child(), child()].map(|child| enter(stage, child)));
                        let children = Children { count: 2, size: 0 };
                        delivery.done(0, none(), Written::default(), children);
                    }
                    2 => delivery.done(0, none(), Written::default(), Children::default()),
                    3 => delivery.resolve(Resolution::Discarded),
                    4 => delivery.resolve(Resolution::Released),
                    _ => drop(delivery),
                }
            }
            drop(here);
            for ledger in ledgers {
                let ended: u64 = Outcome::ALL.map(|outcome| ledger.get(outcome)).iter().sum();
                prop_assert_eq!(ledger.received(), ended);
            }
        }
    }
}
