//! What a member of a group has: its partitions, what is resolved in each, and the messages that
//! came and are not resolved. A pure state machine: time is an argument.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use brigade_core::connector::{Failed, Incoming, Order, Receipt, Want};
use brigade_core::group::Group;
use brigade_core::watermark::Watermark;
use rustc_hash::FxHashMap;

use crate::commits::Commit;
use crate::lag::Progress;
use crate::ledger::Ledger;
use crate::metadata;
use crate::position::Position;
use crate::slot::{Mark, SLOTS_MAX, Slot, offset_of, position_of, slot_of};

/// A topic and one of its partitions.
pub(crate) type Place = (Arc<str>, i32);

/// At most this many delayed messages of one partition, and this many bytes, wait here; later
/// records wait at the broker.
const DELAYED_MAX: usize = 200;
const DELAYED_BYTES_MAX: u64 = 4 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Assignment {
    /// Each partition that was ever assigned; receipts refer to them by number.
    slots: Vec<Slot>,
    by_place: HashMap<Place, usize>,
    messages: Group<Instant>,
    /// By position: where the originals of retry copies are.
    origins: FxHashMap<u64, String>,
}

/// What a record means to this consumer.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation for each record")]
pub(crate) enum Arrival {
    Message {
        incoming: Incoming,
        /// It is not handed out before this.
        due: Option<Instant>,
        /// Where its original is, if it is a retry copy.
        origin: Option<String>,
    },
    /// Nothing: it is skipped.
    Nothing,
    /// A message for another consumer in the same group: nothing of its partition may be committed
    /// here.
    Anothers,
}

#[cfg(test)]
impl Arrival {
    pub(crate) fn plain(message: brigade_core::Message) -> Self {
        let incoming = Incoming::new(message, crate::record::UNPLACED);
        Self::Message { incoming, due: None, origin: None }
    }
}

impl Assignment {
    /// Takes a partition into the assignment, with what is committed of it. Returns `false` if
    /// there are more partitions than receipts can refer to.
    pub(crate) fn assign(&mut self, place: Place, committed: Option<Watermark>) -> bool {
        let slot = match self.by_place.get(&place) {
            Some(slot) => *slot,
            None if self.slots.len() == SLOTS_MAX => return false,
            None => {
                self.by_place.insert(place.clone(), self.slots.len());
                self.slots.push(Slot::new(place));
                self.slots.len() - 1
            }
        };
        self.slots[slot].begin(Ledger::starting_at(committed.unwrap_or_default()));
        true
    }

    /// Removes a partition that is ours no longer; what came from it is forgotten.
    pub(crate) fn revoke(&mut self, place: &Place) {
        let Some(slot) = self.by_place.get(place).copied() else { return };
        self.slots[slot].end();
        self.forget(slot);
    }

    fn forget(&mut self, slot: usize) {
        self.messages.withdraw(|position| slot_of(position) == slot);
        self.origins.retain(|position, _| slot_of(*position) != slot);
    }

    /// Handles a record that came. Returns `false` if it is another consumer's, whose partition is
    /// then given up.
    pub(crate) fn arrive(&mut self, place: &Place, offset: u64, arrival: Arrival) -> bool {
        let Some(slot) = self.by_place.get(place).copied() else { return true };
        let Some(ledger) = &mut self.slots[slot].ledger else { return true };
        if offset < ledger.next() {
            // The topic was recreated, or its log truncated: what was known of it is void.
            self.slots[slot].begin(Ledger::starting_at(Watermark::starting_at(offset)));
            self.forget(slot);
        }
        let Some(ledger) = &mut self.slots[slot].ledger else { return true };
        if !ledger.arrive(offset) {
            return true;
        }
        let position = position_of(slot, offset);
        match arrival {
            Arrival::Message { mut incoming, due, origin } => {
                incoming.receipt.position = position;
                self.origins.extend(origin.map(|origin| (position, origin)));
                self.messages.put_at(incoming, due);
            }
            Arrival::Nothing => ledger.pass_over(offset),
            Arrival::Anothers => {
                self.revoke(place);
                return false;
            }
        }
        true
    }

    /// What can be handed out now.
    pub(crate) fn take(&mut self, want: Want, order: Order, now: Instant) -> Vec<Incoming> {
        self.messages.take(want, order, 0, now)
    }

    /// When the next delayed message is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.messages.due()
    }

    /// Puts failed messages back; returns the receipts that were no longer valid.
    pub(crate) fn fail(&mut self, failed: &[Failed], now: Instant) -> Vec<Receipt> {
        // In reverse order, since each goes to the front.
        let lost = failed.iter().rev().filter(|failed| !self.messages.fail(failed, now));
        lost.map(|failed| failed.receipt).collect()
    }

    /// A message that is handed out, as it came.
    pub(crate) fn held(&self, receipt: Receipt) -> Option<Incoming> {
        self.messages.held(receipt)
    }

    /// The receipts that are no longer valid: their partition is lost, or they were given back. The
    /// receipt of a message that was already resolved is valid.
    pub(crate) fn fenced(&self, receipts: &[Receipt]) -> Vec<Receipt> {
        let done = |receipt: &Receipt| {
            let slot = self.slots.get(slot_of(receipt.position));
            slot.is_some_and(|slot| slot.is_resolved(offset_of(receipt.position)))
        };
        let stands = |receipt: &&Receipt| self.messages.stands(**receipt) || done(receipt);
        receipts.iter().filter(|receipt| !stands(receipt)).copied().collect()
    }

    /// The marks up to which commits are needed so that everything resolved of these is committed.
    pub(crate) fn marks(&self, receipts: &[Receipt]) -> Vec<Mark> {
        let mut slots: Vec<usize> = receipts.iter().map(|r| slot_of(r.position)).collect();
        slots.sort_unstable();
        slots.dedup();
        slots.iter().filter_map(|at| self.slots.get(*at)?.mark(*at)).collect()
    }

    /// After a commit: the receipts whose messages the broker does not know to be resolved, though
    /// the marks were to be committed. They come again, here or to another member.
    pub(crate) fn uncommitted(&self, receipts: &[Receipt], marks: &[Mark]) -> Vec<Receipt> {
        let is_committed = |receipt: &&Receipt| {
            let (at, offset) = (slot_of(receipt.position), offset_of(receipt.position));
            self.slots.get(at).is_some_and(|slot| slot.is_committed(at, offset, marks))
        };
        receipts.iter().filter(|receipt| !is_committed(receipt)).copied().collect()
    }

    /// Marks messages as done.
    pub(crate) fn resolve(&mut self, receipts: &[Receipt]) {
        for receipt in receipts {
            if !self.messages.done(*receipt) {
                continue;
            }
            if let Some(ledger) = &mut self.slots[slot_of(receipt.position)].ledger {
                ledger.resolve(offset_of(receipt.position));
            }
            if !self.origins.is_empty() {
                self.origins.remove(&receipt.position);
            }
        }
    }

    /// What is resolved but not committed.
    pub(crate) fn to_commit(&self) -> Vec<Commit> {
        let owed = |slot: &&Slot| slot.ledger.as_ref().is_some_and(Ledger::owes);
        let all = self.slots.iter().filter(owed);
        all.filter_map(|slot| self.commit_of(&slot.place, &[])).collect()
    }

    /// Checks that all of these are handed out; otherwise returns those that are not.
    pub(crate) fn stand(&self, receipts: &[Receipt]) -> Result<(), Vec<Receipt>> {
        let gone = receipts.iter().filter(|receipt| !self.messages.stands(**receipt));
        let gone: Vec<Receipt> = gone.copied().collect();
        if gone.is_empty() { Ok(()) } else { Err(gone) }
    }

    /// What would have to be committed if these were resolved too.
    pub(crate) fn to_commit_with(&self, receipts: &[Receipt]) -> Vec<Commit> {
        let mut slots: Vec<usize> = receipts.iter().map(|r| slot_of(r.position)).collect();
        slots.sort_unstable();
        slots.dedup();
        let places = slots.iter().filter_map(|slot| self.slots.get(*slot)).map(|slot| &slot.place);
        places.filter_map(|place| self.commit_of(place, receipts)).collect()
    }

    fn commit_of(&self, place: &Place, receipts: &[Receipt]) -> Option<Commit> {
        let slot = *self.by_place.get(place)?;
        let ledger = self.slots[slot].ledger.as_ref()?;
        let of_slot = receipts.iter().filter(|receipt| slot_of(receipt.position) == slot);
        let (watermark, resolved) = ledger.with(of_slot.map(|receipt| offset_of(receipt.position)));
        Some(Commit {
            place: place.clone(),
            offset: i64::try_from(watermark.low()).unwrap_or(i64::MAX),
            metadata: metadata::encode(&watermark),
            slot,
            epoch: self.slots[slot].epoch,
            resolved,
        })
    }

    /// Those commits whose partitions have not gone to another member since.
    pub(crate) fn still_ours(&self, commits: &[Commit]) -> Vec<Commit> {
        let slot = |commit: &Commit| &self.slots[commit.slot];
        let is = |one: &&Commit| slot(one).ledger.is_some() && slot(one).epoch == one.epoch;
        commits.iter().filter(is).cloned().collect()
    }

    /// Records that the broker has these commits. They say nothing about a partition that has been
    /// lost and come back since.
    pub(crate) fn committed(&mut self, commits: &[Commit]) {
        for commit in commits {
            let slot = &mut self.slots[commit.slot];
            let of_now = slot.epoch == commit.epoch;
            if let Some(ledger) = slot.last_mut().filter(|_| of_now) {
                let low = u64::try_from(commit.offset).unwrap_or_default();
                ledger.committed(commit.resolved, low, &commit.metadata);
            }
        }
    }

    /// How many messages of these partitions are handed out.
    pub(crate) fn held_of(&self, places: &[Place]) -> usize {
        let slots: Vec<usize> =
            places.iter().filter_map(|place| self.by_place.get(place).copied()).collect();
        self.messages.held_at(|position| slots.contains(&slot_of(position)))
    }

    /// Stops handing out messages of these partitions.
    pub(crate) fn stop_handing_out(&mut self, places: &[Place]) {
        let slots: Vec<usize> =
            places.iter().filter_map(|place| self.by_place.get(place).copied()).collect();
        self.messages.withdraw_waiting(|position| slots.contains(&slot_of(position)));
    }

    /// The topics with partitions that are, or have been, ours.
    pub(crate) fn topics(&self) -> BTreeSet<String> {
        self.slots.iter().map(|slot| slot.place.0.to_string()).collect()
    }

    /// The progress of the partitions that are ours.
    pub(crate) fn progress(&self) -> Vec<Progress> {
        let ours = self.slots.iter().enumerate();
        let ours = ours.filter_map(|(at, slot)| Some((at, slot, slot.ledger.as_ref()?)));
        let progress = |(at, slot, ledger): (usize, &Slot, &Ledger)| {
            let of = |position| slot_of(position) == at;
            let progress = Progress::of_others(slot.place.clone(), &ledger.with_empty());
            let (stored, held) = (self.messages.stored_at(of), self.messages.held_at(of));
            let delayed = self.messages.delayed().filter(|(position, _)| of(*position)).count();
            Progress { stored, held, delayed, ..progress }
        };
        ours.map(progress).collect()
    }

    /// The number of ready messages, and the bytes of all that came and are not delayed.
    pub(crate) fn ready(&self) -> (u64, u64) {
        let delayed: u64 = self.messages.delayed().map(|(_, bytes)| bytes).sum();
        (self.messages.counts().0, self.messages.bytes() - delayed)
    }

    /// The partitions from which no more should be fetched for now, since enough of their messages
    /// are delayed: by number, by bytes, or by their distance from the committed offset.
    pub(crate) fn resting(&self, span_max: u64) -> Vec<Place> {
        let mut delayed: FxHashMap<usize, (usize, u64)> = FxHashMap::default();
        for (position, size) in self.messages.delayed() {
            let (count, bytes) = delayed.entry(slot_of(position)).or_default();
            (*count, *bytes) = (*count + 1, *bytes + size);
        }
        let rests = |(slot, (count, bytes)): (usize, (usize, u64))| {
            let slot = self.slots.get(slot)?;
            let far = slot.ledger.as_ref()?.span() >= span_max;
            let enough = count >= DELAYED_MAX || bytes >= DELAYED_BYTES_MAX || far;
            enough.then(|| slot.place.clone())
        };
        delayed.into_iter().filter_map(rests).collect()
    }

    /// How many messages can be handed out so that what is resolved of a partition always fits into
    /// its commit: either all of it within `span` of the committed offset, or in at most `ranges`
    /// ranges. Each resolved message adds at most one range; a partition's first unresolved message
    /// adds none, and is handed out next if there is no room for any other.
    pub(crate) fn room(&mut self, span: u64, ranges: usize, now: Instant) -> usize {
        self.messages.wake(now);
        let mut room = usize::MAX;
        for (at, slot) in self.slots.iter().enumerate() {
            let Some(ledger) = slot.ledger.as_ref().filter(|ledger| ledger.reach() > span) else {
                continue;
            };
            let held = self.messages.held_at(|position| slot_of(position) == at);
            let left = match ranges.saturating_sub(ledger.ranges() + held) {
                0 if held == 0 => {
                    usize::from(self.messages.put_first(position_of(at, ledger.low())))
                }
                left => left,
            };
            room = room.min(left);
        }
        room
    }

    /// The position of a message, in readable form.
    pub(crate) fn locate(&self, position: u64) -> String {
        if let Some(origin) = self.origins.get(&position) {
            return origin.clone();
        }
        match self.slots.get(slot_of(position)) {
            Some(Slot { place: (topic, partition), .. }) => {
                let (topic, partition) = (topic.to_string(), *partition);
                Position { topic, partition, offset: offset_of(position) }.to_string()
            }
            None => format!("?@{}", offset_of(position)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use brigade_core::Message;
    use brigade_core::connector::FailedReason;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Kind {
        Plain,
        /// Not handed out before [`LATER`].
        Delayed,
        /// Another group's.
        Foreign,
    }

    const LATER: Duration = Duration::from_secs(1);

    #[derive(Debug, Clone)]
    enum Step {
        /// A record arrives, after `skipped` offsets that do not exist.
        Arrive {
            skipped: u64,
            kind: Kind,
        },
        Take(usize),
        Done(usize),
        Fail(usize),
        /// The broker takes what is to be committed.
        Commit,
        /// The partition goes to another member, which begins where the last commit ended.
        MoveOn,
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![6 => Just(Kind::Plain), 1 => Just(Kind::Delayed), 1 => Just(Kind::Foreign)]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            5 => (prop_oneof![4 => Just(0), 1 => 1_u64..4], kind())
                .prop_map(|(skipped, kind)| Step::Arrive { skipped, kind }),
            3 => (1_usize..5).prop_map(Step::Take),
            4 => any::<usize>().prop_map(Step::Done),
            1 => any::<usize>().prop_map(Step::Fail),
            2 => Just(Step::Commit),
            1 => Just(Step::MoveOn),
        ]
    }

    /// A member, and the log that it reads.
    struct World {
        assignment: Assignment,
        place: Place,
        log: BTreeSet<u64>,
        done: BTreeSet<u64>,
        held: Vec<Incoming>,
        /// What this member resolved.
        acked: Vec<Receipt>,
        committed: Option<(u64, String)>,
        done_by_commit: BTreeSet<u64>,
        kinds: BTreeMap<u64, Kind>,
        begun: Instant,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let place: Place = ("topic".into(), 3);
            let mut assignment = Assignment::default();
            assert!(assignment.assign(place.clone(), None));
            let (log, done, done_by_commit, kinds) = Default::default();
            let (held, acked, committed, begun) = (Vec::new(), Vec::new(), None, Instant::now());
            Self {
                assignment,
                place,
                log,
                done,
                held,
                acked,
                committed,
                done_by_commit,
                kinds,
                begun,
                now: begun,
            }
        }

        fn arrive(&mut self, offset: u64) {
            let kind = self.kinds.get(&offset).copied().unwrap_or(Kind::Plain);
            let mut arrival = Arrival::plain(Message::new("x"));
            match (kind, &mut arrival) {
                (Kind::Delayed, Arrival::Message { due, origin, .. }) => {
                    (*due, *origin) = (Some(self.begun + LATER), Some("first[1]@2".to_owned()));
                }
                (Kind::Foreign, _) => arrival = Arrival::Nothing,
                _ => {}
            }
            if let Kind::Foreign = kind {
                self.done.insert(offset);
            }
            assert!(self.assignment.arrive(&self.place, offset, arrival));
        }

        fn take(&mut self, messages: usize) {
            let want = Want { messages, bytes: usize::MAX };
            let taken = self.assignment.take(want, Order::None, self.now);
            for incoming in &taken {
                let offset = offset_of(incoming.receipt.position);
                assert!(self.log.contains(&offset) && !self.done.contains(&offset), "{offset}");
                let place = self.assignment.locate(incoming.receipt.position);
                match self.kinds.get(&offset) {
                    Some(Kind::Delayed) => {
                        assert!(self.now >= self.begun + LATER, "too early");
                        assert_eq!(place, "first[1]@2");
                    }
                    _ => assert_eq!(place, format!("topic[3]@{offset}")),
                }
            }
            self.held.extend(taken);
        }

        fn commit(&mut self) {
            for commit in self.assignment.to_commit() {
                let offset = u64::try_from(commit.offset).unwrap();
                let unresolved = self.log.difference(&self.done).next();
                assert!(
                    unresolved.is_none_or(|first| offset <= *first),
                    "it passes {unresolved:?}"
                );
                self.assignment.committed(std::slice::from_ref(&commit));
                self.committed = Some((offset, commit.metadata));
                self.done_by_commit = self.done.clone();
            }
            assert!(self.assignment.to_commit().is_empty());
            self.lost_are_told();
        }

        /// This also covers what it resolved before the partition was lost.
        fn lost_are_told(&self) {
            let known =
                |receipt: &&Receipt| self.done_by_commit.contains(&offset_of(receipt.position));
            let lost: Vec<Receipt> =
                self.acked.iter().filter(|receipt| !known(receipt)).copied().collect();
            assert_eq!(self.assignment.uncommitted(&self.acked, &[]), lost);
        }

        /// What was resolved after the last commit comes again, and nothing else that was resolved.
        fn move_on(&mut self) {
            let receipts: Vec<Receipt> = self.held.drain(..).map(|held| held.receipt).collect();
            self.lost_are_told();
            self.assignment.revoke(&self.place.clone());
            self.lost_are_told();
            self.acked.clear();
            let fenced = self.assignment.fenced(&receipts);
            assert_eq!(fenced.len(), receipts.len(), "a late ack does nothing");
            let known = self.committed.as_ref();
            let known = known.map(|(offset, text)| metadata::decode(*offset, text));
            let from = known.as_ref().map_or(0, Watermark::low);
            assert!(self.assignment.assign(self.place.clone(), known));
            self.done = self.done_by_commit.clone();
            let again: Vec<u64> = self.log.range(from..).copied().collect();
            again.into_iter().for_each(|offset| self.arrive(offset));
        }
    }

    proptest! {
        #[test]
        fn commits_pass_nothing_that_is_unresolved_and_nothing_resolved_comes_again(
            steps in prop::collection::vec(step(), 1..150),
        ) {
            let mut world = World::new();
            let mut next = 100;
            for step in steps {
                match step {
                    Step::Arrive { skipped, kind } => {
                        next += skipped;
                        world.kinds.insert(next, kind);
                        world.log.insert(next);
                        world.arrive(next);
                        next += 1;
                    }
                    Step::Take(messages) => world.take(messages),
                    Step::Done(at) if !world.held.is_empty() => {
                        let receipt = world.held.swap_remove(at % world.held.len()).receipt;
                        prop_assert!(world.assignment.fenced(&[receipt]).is_empty());
                        world.assignment.resolve(&[receipt]);
                        world.acked.push(receipt);
                        prop_assert!(world.assignment.fenced(&[receipt]).is_empty(), "once more is harmless");
                        world.done.insert(offset_of(receipt.position));
                    }
                    Step::Fail(at) if !world.held.is_empty() => {
                        let receipt = world.held.swap_remove(at % world.held.len()).receipt;
                        let (reason, delay) = (FailedReason::Released, Duration::ZERO);
                        let failed = Failed { receipt, reason, delay };
                        prop_assert!(world.assignment.fail(&[failed], Instant::now()).is_empty());
                        prop_assert_eq!(world.assignment.fenced(&[receipt]), [receipt]);
                    }
                    Step::Commit => world.commit(),
                    Step::MoveOn => world.move_on(),
                    Step::Done(_) | Step::Fail(_) => {}
                }
            }
            // In the end everything can be resolved, and is committed.
            world.now += LATER;
            world.take(usize::MAX);
            let receipts: Vec<Receipt> = world.held.drain(..).map(|held| held.receipt).collect();
            world.assignment.resolve(&receipts);
            world.acked.extend(&receipts);
            world.done.extend(receipts.iter().map(|receipt| offset_of(receipt.position)));
            prop_assert_eq!(&world.done, &world.log);
            world.commit();
            prop_assert_eq!(world.assignment.ready(), (0, 0));
            prop_assert!(world.assignment.origins.is_empty());
        }
    }

    #[test]
    fn a_partition_rests_while_many_of_its_messages_wait_for_their_time() {
        let mut world = World::new();
        for offset in 0..DELAYED_MAX as u64 {
            assert!(world.assignment.resting(u64::MAX).is_empty(), "{offset}");
            world.kinds.insert(offset, Kind::Delayed);
            world.log.insert(offset);
            world.arrive(offset);
        }
        assert_eq!(world.assignment.resting(u64::MAX), [world.place.clone()]);
        assert_eq!(world.assignment.ready(), (0, 0));
        world.now += LATER;
        world.take(1);
        assert!(world.assignment.resting(u64::MAX).is_empty(), "they are due");
    }

    #[test]
    fn a_topic_that_is_made_anew_is_read_from_its_beginning() {
        let mut world = World::new();
        (500..505).for_each(|offset| {
            world.log.insert(offset);
            world.arrive(offset);
        });
        world.take(5);
        let late = world.held[0].receipt;
        world.log = BTreeSet::from([0, 1]);
        world.held.clear();
        world.arrive(0);
        world.arrive(1);
        assert_eq!(world.assignment.fenced(&[late]), [late]);
        world.take(5);
        assert_eq!(world.held.len(), 2);
    }
}
