//! Deliveries: the duty to resolve a message, and what resolving it means.
//!
//! A [`Delivery`] is one handing-over of a message by a consumer. Its [`Guard`] informs the
//! [`Origin`] how it ended, exactly once; a guard that is dropped (a panic, a lost mailbox, a dead
//! actor) reports [`Resolution::Dropped`]. Losing a message takes a deliberate act.

use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::component::{Parsed, Written};
use crate::connector::{Defect, Outgoing, Receipt};
use crate::outcome::{Ledger, Outcome};
use crate::{Cause, Codec, Message, Timestamp};

/// A message on its way through a stage, with the duty to resolve it.
///
/// It passes through several mailboxes and lists, so it is the size of a pointer; and over a direct
/// edge it goes on to the next stage without being rebuilt.
#[derive(Debug, Default)]
pub struct Delivery(Box<Parts>);

/// What a delivery is made of.
#[derive(Debug, Default)]
pub struct Parts {
    /// The message.
    pub message: Message,
    /// Its payload already decoded, if available.
    pub parsed: Option<Parsed>,
    /// The number of this handing-over by its stage's consumers, counted from 1 over all their
    /// lives.
    pub number: u64,
    /// How many attempts of this stage have failed.
    pub attempts: u32,
    /// How often it was handed out before without an outcome.
    pub redeliveries: u32,
    /// The queue it came from, by its number in the topology.
    pub input: u16,
    /// The number of the queue whose message it is: `input`, or for a redriven message the queue it
    /// came from before it was given up on.
    pub belongs_to: u16,
    /// The encoding of its payload.
    pub codec: Codec,
    /// What identifies it to its consumer.
    pub receipt: Receipt,
    /// When it was put on its queue.
    pub enqueued_at: Option<Timestamp>,
    /// When its first attempt failed.
    pub first_failed_at: Option<Timestamp>,
    /// Why it must not reach a component.
    pub defect: Option<Box<Defect>>,
    /// The duty to resolve it.
    pub guard: Guard,
}

/// The duty to resolve one delivery; dropping it resolves it as [`Resolution::Dropped`].
///
/// The default carries no duty.
#[derive(Default)]
pub struct Guard {
    origin: Option<Arc<Origin>>,
    /// Taken by resolving.
    slot: Option<Slot>,
    /// Where its outcome is counted: for a message that came over a direct edge, in the stage that
    /// has it. What comes from a queue is counted when it is settled.
    ledger: Option<Arc<Ledger>>,
}

/// A delivery's slot in its consumer's list of what is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub u32);

/// How a delivery ended.
#[derive(Debug)]
pub enum Resolution {
    /// The component is done with it. Nothing emitted means filtered, on purpose.
    Done(Done),
    /// A failed attempt: put back on the queue and retried later.
    Requeued(Box<Requeued>),
    /// Given up on and kept as a dead letter.
    DeadLettered(Box<GivenUp>),
    /// Given up on by policy, kept nowhere.
    Discarded,
    /// Given back undecided.
    Released,
    /// Nobody resolved it.
    Dropped,
}

/// A failed attempt whose message goes back to its queue.
#[derive(Debug)]
pub struct Requeued {
    /// How many attempts have failed by now.
    pub attempts: u32,
    /// What went wrong.
    pub error: String,
    /// When it is retried.
    pub again: Again,
}

/// When a message that goes back to its queue is handed out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// After this long.
    After(Duration),
    /// When somebody releases it; later messages with its key wait behind it.
    Parked,
}

/// What became of a message in a component.
#[derive(Debug, Default)]
pub struct Done {
    /// The deliveries over direct edges that it became; they share its slot.
    pub children: Children,
    /// What has to be written for it, if anything.
    pub made: Option<Box<Made>>,
}

impl Done {
    /// Whether nothing became of the message: it was filtered.
    pub fn is_nothing(&self) -> bool {
        self.children.count == 0 && self.made.is_none()
    }
}

/// The deliveries over direct edges that one delivery became.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Children {
    /// How many.
    pub count: u32,
    /// By how many bytes their messages together are larger than the message that they replace.
    pub size: usize,
}

/// What became of a message in one stage, to be written when the message is settled.
#[derive(Debug, Default)]
pub struct Made {
    /// The stage, by its number in the topology.
    pub stage: u16,
    /// The message itself, since an output may still be refused. It carries no duty any more.
    pub delivery: Delivery,
    /// Outputs to queues.
    pub outputs: Outputs,
    /// Changes of the stage's own state.
    pub written: Written,
}

/// Outputs to queues, each with the queue's number in the topology.
pub type Outputs = SmallVec<[(u16, Outgoing); 1]>;

/// A message that a stage gave up on.
#[derive(Debug)]
pub struct GivenUp {
    /// The stage, by its number in the topology.
    pub stage: u16,
    /// The message. It carries no duty any more.
    pub delivery: Delivery,
    /// Why.
    pub cause: Cause,
    /// What is known about the message if it is not whole.
    pub truncated: Option<crate::Truncated>,
}

/// A resolution, and the delivery it belongs to.
#[derive(Debug)]
pub struct Resolved {
    /// Which delivery.
    pub slot: Slot,
    /// How it ended.
    pub resolution: Resolution,
}

/// Where deliveries come from, and where their resolutions go: one per life of a consumer actor,
/// kept outside the actor so that nothing is lost with it.
pub struct Origin {
    /// What the consumer has not taken yet.
    resolved: Mutex<Vec<Resolved>>,
    /// Set, under the lock, when nobody will take resolutions any more.
    closed: AtomicBool,
    handed_out: HandedOut,
    locate: Locate,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// Counts what a stage's consumers have handed out in all their lives, so that later handings-over
/// have greater numbers, whichever consumer makes them.
#[derive(Debug, Clone, Default)]
pub struct HandedOut(Arc<AtomicU64>);

/// The deliveries made from one pull of a consumer, numbered together.
#[derive(Debug)]
pub struct HandingOut<'a> {
    origin: &'a Arc<Origin>,
    next: u64,
    past: u64,
}

thread_local! {
    static ENDED_HERE: Cell<u64> = const { Cell::new(0) };
}

/// How many deliveries have been resolved on this thread, by any code. A worker's books use it,
/// since they have to notice a delivery that nobody resolved.
pub fn ended_here() -> u64 {
    ENDED_HERE.get()
}

/// Returns a message's position in readable form.
pub type Locate = Arc<dyn Fn(Receipt) -> String + Send + Sync>;

impl Origin {
    /// An origin that continues counting from `handed_out`, and calls `wake` when there is
    /// something to [take](Origin::take) and there was nothing before. `wake` must neither panic
    /// nor block: it runs in destructors.
    pub fn new(
        handed_out: HandedOut,
        locate: Locate,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (resolved, closed) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { resolved, closed, handed_out, locate, wake: Box::new(wake) })
    }

    /// Announces that `n` messages are handed out.
    pub fn hand_out(self: &Arc<Self>, n: usize) -> HandingOut<'_> {
        let n = n as u64;
        let next = self.handed_out.0.fetch_add(n, Ordering::Relaxed) + 1;
        HandingOut { origin: self, next, past: next + n }
    }

    fn guard(self: &Arc<Self>, slot: Slot) -> Guard {
        Guard { origin: Some(Arc::clone(self)), slot: Some(slot), ledger: None }
    }

    /// Moves everything resolved since the last call, oldest first, into an empty vector.
    pub fn take(&self, into: &mut Vec<Resolved>) {
        debug_assert!(into.is_empty(), "the vector would be lost");
        std::mem::swap(&mut *self.resolved.lock(), into);
    }

    /// Ends the consumer's life: from now on resolutions of its messages are dropped at once, with
    /// what those messages wrote, since another life hands them out again.
    pub fn close(&self) {
        let mut resolved = self.resolved.lock();
        self.closed.store(true, Ordering::Relaxed);
        let left = std::mem::take(&mut *resolved);
        // Outside the lock, as it may hold anything.
        drop(resolved);
        drop(left);
    }

    fn resolve(&self, slot: Slot, resolution: Resolution) {
        ENDED_HERE.set(ENDED_HERE.get().wrapping_add(1));
        let mut resolved = self.resolved.lock();
        if self.closed.load(Ordering::Relaxed) {
            // Outside the lock, as it may hold anything.
            drop(resolved);
            return drop(resolution);
        }
        resolved.push(Resolved { slot, resolution });
        let first = resolved.len() == 1;
        drop(resolved);
        if first {
            (self.wake)();
        }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("handed_out", &self.handed_out.0).finish_non_exhaustive()
    }
}

impl HandingOut<'_> {
    /// The number of the next handing-over, and the duty to resolve what is in `slot`.
    ///
    /// # Panics
    ///
    /// When called more often than was announced.
    pub fn next(&mut self, slot: Slot) -> (u64, Guard) {
        assert!(self.next < self.past, "more is handed out than was said");
        let number = self.next;
        self.next += 1;
        (number, self.origin.guard(slot))
    }
}

impl Guard {
    /// Reports how the delivery ended.
    pub fn resolve(mut self, resolution: Resolution) {
        self.report(resolution);
    }

    fn report(&mut self, resolution: Resolution) {
        if let (Some(origin), Some(slot)) = (&self.origin, self.slot.take()) {
            // First: whoever sees the message settled finds it counted.
            if let Some(ledger) = self.ledger.take() {
                ledger.add(Outcome::from(&resolution), 1);
            }
            origin.resolve(slot, resolution);
        }
    }

    /// A guard for one of the `children` that [`Done`] announces. It must be made before the
    /// parent's guard is resolved, so that their slot cannot end early.
    pub fn child(&self) -> Guard {
        match (&self.origin, self.slot) {
            (Some(origin), Some(slot)) => origin.guard(slot),
            _ => Guard::default(),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.report(Resolution::Dropped);
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({:?})", self.slot.map(|slot| slot.0))
    }
}

impl Delivery {
    /// Reports how it ended.
    pub fn resolve(mut self, resolution: Resolution) {
        std::mem::take(&mut self.guard).resolve(resolution);
    }

    /// Reports that the component of this stage is done with it, and made `children` of it.
    pub fn done(mut self, stage: u16, outputs: Outputs, written: Written, children: Children) {
        let guard = std::mem::take(&mut self.guard);
        let writes_nothing = outputs.is_empty() && written.writes.is_empty();
        let made = Made { stage, delivery: self, outputs, written };
        let made = (!writes_nothing).then(|| Box::new(made));
        guard.resolve(Resolution::Done(Done { children, made }));
    }

    /// Reports that this stage gives up on it.
    pub fn give_up(mut self, stage: u16, cause: Cause, truncated: Option<crate::Truncated>) {
        let guard = std::mem::take(&mut self.guard);
        let given_up = GivenUp { stage, delivery: self, cause, truncated };
        guard.resolve(Resolution::DeadLettered(Box::new(given_up)));
    }

    /// Whether its consumer's life is over, so that the message is handed out again and this
    /// delivery's result is not used.
    pub fn is_deserted(&self) -> bool {
        self.guard.origin.as_ref().is_some_and(|origin| origin.closed.load(Ordering::Relaxed))
    }

    /// The number of the last handing-over so far by its stage's consumers.
    pub fn last_number(&self) -> u64 {
        self.guard.origin.as_ref().map_or(0, |origin| origin.handed_out.0.load(Ordering::Relaxed))
    }

    /// From here on its outcome is counted in this ledger, which has counted it as received.
    pub fn count_in(&mut self, ledger: &Arc<Ledger>) {
        self.guard.ledger = Some(Arc::clone(ledger));
    }

    /// Starts over in the next stage: there it is a new message, with attempts of its own and the
    /// same duty. In the stage that it leaves it is acked.
    pub fn go_on(&mut self, parsed: Option<Parsed>) {
        if let Some(ledger) = self.guard.ledger.take() {
            ledger.add(Outcome::Acked, 1);
        }
        self.parsed = parsed;
        self.attempts = 0;
        self.first_failed_at = None;
    }

    /// A delivery made from this one: one of the `children` that [`Done`] announces.
    #[must_use]
    pub fn child(&self, message: Message, parsed: Option<Parsed>) -> Self {
        let Parts { redeliveries, input, belongs_to, codec, receipt, enqueued_at, .. } = *self.0;
        let guard = self.guard.child();
        let parts = Parts {
            message,
            parsed,
            redeliveries,
            input,
            belongs_to,
            codec,
            receipt,
            enqueued_at,
            guard,
            ..Parts::default()
        };
        parts.into()
    }

    /// The same message without the duty, for a call that may be abandoned.
    #[must_use]
    pub fn copy_without_duty(&self) -> Self {
        let Parts {
            attempts,
            redeliveries,
            input,
            belongs_to,
            codec,
            receipt,
            enqueued_at,
            first_failed_at,
            ..
        } = *self.0;
        let guard = Guard { origin: self.guard.origin.clone(), slot: None, ledger: None };
        let message = self.message.clone();
        let parts = Parts {
            message,
            attempts,
            redeliveries,
            input,
            belongs_to,
            codec,
            receipt,
            enqueued_at,
            first_failed_at,
            guard,
            ..Parts::default()
        };
        parts.into()
    }

    /// The position of the message, or of the root it was made from, in readable form.
    pub fn locate(&self) -> String {
        self.guard.origin.as_ref().map_or_else(String::new, |origin| (origin.locate)(self.receipt))
    }
}

impl From<Parts> for Delivery {
    fn from(parts: Parts) -> Self {
        Self(Box::new(parts))
    }
}

impl Deref for Delivery {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl DerefMut for Delivery {
    fn deref_mut(&mut self) -> &mut Parts {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn nowhere() -> Locate {
        Arc::new(|_| String::new())
    }

    fn taken(origin: &Origin) -> Vec<Resolved> {
        let mut resolved = Vec::new();
        origin.take(&mut resolved);
        resolved
    }

    #[test]
    fn a_later_life_of_a_consumer_counts_on() {
        let handed_out = HandedOut::default();
        let life = || Origin::new(handed_out.clone(), nowhere(), || {});
        let (first, second) = (life(), life());
        let (number, _guard) = first.hand_out(1).next(Slot(0));
        let (later, guard) = second.hand_out(1).next(Slot(0));
        assert_eq!((number, later), (1, 2));
        let delivery = Delivery::from(Parts { guard, ..Parts::default() });
        assert_eq!(delivery.last_number(), 2);
    }

    #[test]
    fn a_guard_lost_in_a_panic_is_resolved_as_dropped() {
        let origin = Origin::new(HandedOut::default(), nowhere(), || {});
        let (_, guard) = origin.hand_out(1).next(Slot(3));
        let result = catch_unwind(AssertUnwindSafe(move || {
            let _held = guard;
            panic!("user code");
        }));
        assert!(result.is_err());
        let resolved = taken(&origin);
        assert!(matches!(
            resolved[..],
            [Resolved { slot: Slot(3), resolution: Resolution::Dropped }]
        ));
    }

    #[test]
    fn a_guard_resolves_once_and_wakes_only_for_the_first() {
        let wakes = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&wakes);
        let origin = Origin::new(HandedOut::default(), nowhere(), move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let mut handing_out = origin.hand_out(5);
        let guards: Vec<_> = (0..5).map(|slot| handing_out.next(Slot(slot)).1).collect();
        for guard in guards {
            guard.resolve(Resolution::Discarded);
        }
        assert_eq!(taken(&origin).len(), 5);
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_nobody_will_take_is_dropped_at_once() {
        let origin = Origin::new(HandedOut::default(), nowhere(), || {});
        let unsettled = crate::component::Unsettled::default();
        let mut handing_out = origin.hand_out(2);
        let mut delivery = |slot| {
            let (number, guard) = handing_out.next(Slot(slot));
            Delivery::from(Parts { number, guard, ..Parts::default() })
        };
        let (before, after) = (delivery(0), delivery(1));
        let show = |key: &str| {
            unsettled.show(vec![crate::component::StateWrite { key: key.into(), value: None }])
        };
        before.done(0, Outputs::new(), show("before"), Children::default());
        assert_eq!(unsettled.get("before"), Some(None));
        assert!(!after.is_deserted());
        origin.close();
        assert_eq!(unsettled.get("before"), None);
        assert!(after.is_deserted());
        after.done(0, Outputs::new(), show("after"), Children::default());
        assert_eq!(unsettled.get("after"), None);
        assert!(taken(&origin).is_empty());
    }

    proptest! {
        /// Whoever holds the guards, on any number of threads, and however each ends: one
        /// resolution per guard.
        #[test]
        fn every_guard_resolves_once(
            ends in prop::collection::vec(0_u8..4, 1..60), threads in 1_usize..4,
        ) {
            let origin = Origin::new(HandedOut::default(), nowhere(), || {});
            let mut guards: Vec<Vec<(Guard, u8)>> = (0..threads).map(|_| Vec::new()).collect();
            let mut expected = Vec::new();
            let mut handing_out = origin.hand_out(ends.len());
            for (at, end) in ends.iter().enumerate() {
                let slot = u32::try_from(at).unwrap();
                let (_, guard) = handing_out.next(Slot(slot));
                expected.push(slot);
                if *end == 3 {
                    // A child shares its parent's slot.
                    guards[at % threads].push((guard.child(), 1));
                    expected.push(slot);
                }
                guards[at % threads].push((guard, *end));
            }
            std::thread::scope(|scope| {
                for share in guards {
                    scope.spawn(move || {
                        for (guard, end) in share {
                            match end {
                                0 => drop(guard),
                                1 => guard.resolve(Resolution::Discarded),
                                _ => guard.resolve(Resolution::Released),
                            }
                        }
                    });
                }
            });
            let mut slots: Vec<u32> = taken(&origin).iter().map(|one| one.slot.0).collect();
            slots.sort_unstable();
            prop_assert_eq!(slots, expected);
        }
    }
}
