//! What is resolved in one partition, and how much of that is committed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use brigade_core::watermark::Watermark;

use crate::metadata;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Ledger {
    watermark: Watermark,
    /// Offsets without a message that follow an unresolved one, from the first to one past the
    /// last: they are resolved together with it. By themselves they would be one range per
    /// transaction written to the log, and all ranges have to fit into the commit.
    empty: BTreeMap<u64, u64>,
    /// The offset that comes next, if nothing is missing.
    next: u64,
    /// One past the farthest offset that came or is resolved.
    past: u64,
    /// How often something was resolved, and the value of that count that is committed.
    resolved: u64,
    committed: u64,
    /// What the broker knows to be resolved, according to the last commit. An abbreviated commit
    /// tells it less than is committed.
    known: Watermark,
}

impl Ledger {
    pub(crate) fn starting_at(watermark: Watermark) -> Self {
        let next = watermark.low();
        let past = watermark.beyond().last().map_or(next, |(_, past)| past);
        let (empty, known) = (BTreeMap::new(), watermark.clone());
        Self { watermark, empty, next, past, resolved: 0, committed: 0, known }
    }

    /// Records an arrival; returns whether the record is unresolved.
    pub(crate) fn arrive(&mut self, offset: u64) -> bool {
        // Skipped offsets were compacted away or are transaction markers.
        self.pass(self.next, offset);
        self.next = offset + 1;
        self.past = self.past.max(self.next);
        !self.watermark.is_resolved(offset)
    }

    /// Skips the record that came last, which means nothing to this consumer.
    pub(crate) fn pass_over(&mut self, offset: u64) {
        self.pass(offset, offset + 1);
        self.resolved += 1;
    }

    fn pass(&mut self, first: u64, past: u64) {
        if first >= past {
            return;
        }
        let behind_resolved = first.checked_sub(1).is_none_or(|at| self.watermark.is_resolved(at));
        if behind_resolved {
            self.watermark.resolve_range(first, past);
            return;
        }
        match self.empty.last_entry() {
            Some(mut last) if *last.get() == first => *last.get_mut() = past,
            _ => {
                self.empty.insert(first, past);
            }
        }
    }

    /// Marks a message as done.
    pub(crate) fn resolve(&mut self, offset: u64) {
        let past = self.empty.remove(&(offset + 1)).unwrap_or(offset + 1);
        self.watermark.resolve_range(offset, past);
        self.resolved += 1;
    }

    /// What would be resolved if these were too, and the count of resolutions in that case.
    pub(crate) fn with(&self, offsets: impl Iterator<Item = u64>) -> (Cow<'_, Watermark>, u64) {
        let (mut watermark, mut resolved) = (Cow::Borrowed(&self.watermark), self.resolved);
        for offset in offsets {
            let past = self.empty.get(&(offset + 1)).copied().unwrap_or(offset + 1);
            watermark.to_mut().resolve_range(offset, past);
            resolved += 1;
        }
        (watermark, resolved)
    }

    /// What is resolved, including all offsets that are known to have no message.
    pub(crate) fn with_empty(&self) -> Cow<'_, Watermark> {
        let mut watermark = Cow::Borrowed(&self.watermark);
        for (first, past) in &self.empty {
            watermark.to_mut().resolve_range(*first, *past);
        }
        watermark
    }

    /// Records that the broker has this commit, made when `resolved` was the count of resolutions.
    pub(crate) fn committed(&mut self, resolved: u64, low: u64, metadata: &str) {
        if resolved > self.committed {
            self.committed = resolved.min(self.resolved);
            self.known = metadata::decode(low, metadata);
        }
    }

    /// Whether the broker knows that an offset is resolved.
    pub(crate) fn is_known(&self, offset: u64) -> bool {
        self.known.is_resolved(offset)
    }

    /// How often something was resolved.
    pub(crate) fn resolved(&self) -> u64 {
        self.resolved
    }

    /// Whether an offset is resolved, and the broker has taken a commit since `resolved`
    /// resolutions.
    pub(crate) fn is_committed(&self, offset: u64, resolved: u64) -> bool {
        self.committed >= resolved && self.is_resolved(offset)
    }

    /// Whether something is resolved but not committed.
    pub(crate) fn owes(&self) -> bool {
        self.committed < self.resolved
    }

    pub(crate) fn is_resolved(&self, offset: u64) -> bool {
        self.watermark.is_resolved(offset)
    }

    /// The smallest unresolved offset.
    pub(crate) fn low(&self) -> u64 {
        self.watermark.low()
    }

    /// How many ranges are resolved beyond that.
    pub(crate) fn ranges(&self) -> usize {
        self.watermark.ranges()
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The distance of the farthest message that came from the committed offset.
    pub(crate) fn span(&self) -> u64 {
        self.next.saturating_sub(self.low())
    }

    /// The same, including what another member has resolved beyond.
    pub(crate) fn reach(&self) -> u64 {
        self.past.saturating_sub(self.low())
    }
}

/// Where a group begins that has committed nothing in the log, or only what is deleted by now: at
/// the log's end, or after what it has resolved of the remaining records.
pub(crate) fn begin(known: Option<Watermark>, log: Range<u64>) -> Watermark {
    let mut known = known.unwrap_or_default();
    known.resolve_range(known.low(), log.start);
    match known.low() > log.start && known.low() <= log.end {
        true => known,
        false => Watermark::starting_at(log.end),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};

    use brigade_core::Message;
    use brigade_core::connector::{Failed, FailedReason, Incoming, Order, Receipt, Want};
    use brigade_core::watermark::Watermark;

    use crate::assignment::{Arrival, Assignment, Place};
    use crate::metadata::{self, RANGES_MAX, SPAN_MAX};

    #[test]
    fn a_group_whose_commit_is_deleted_begins_behind_what_it_has_resolved_of_the_rest() {
        let log = || 30_000..50_500;
        let at_end = Watermark::starting_at(50_500);
        assert_eq!(super::begin(None, log()), at_end);
        assert_eq!(super::begin(Some(Watermark::starting_at(100)), log()), at_end);
        let mut known = Watermark::starting_at(100);
        known.resolve_range(101, 20_000);
        assert_eq!(super::begin(Some(known.clone()), log()), at_end, "of what is there nothing");
        known.resolve_range(20_010, 40_000);
        known.resolve_range(45_000, 50_000);
        let begun = super::begin(Some(known.clone()), log());
        assert_eq!(begun.low(), 40_000);
        assert_eq!(begun.beyond().collect::<Vec<_>>(), [(45_000, 50_000)]);
        // A different log, such as that of a recreated topic.
        assert_eq!(super::begin(Some(known), 30_000..30_001), Watermark::starting_at(30_001));
    }

    const RECORDS: u64 = 45_000;
    /// How many come before they are requested.
    const AHEAD: u64 = 2000;
    const LATER: Duration = Duration::from_secs(1);

    /// What becomes of the first message: the others get as far as they can before it is done.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum First {
        Held,
        Delayed,
    }

    /// A member that handles a log in transactions.
    struct Trial {
        assignment: Assignment,
        place: Place,
        done: BTreeSet<u64>,
        now: Instant,
    }

    impl Trial {
        fn new() -> Self {
            let (place, mut assignment): (Place, _) = (("topic".into(), 0), Assignment::default());
            assert!(assignment.assign(place.clone(), None));
            Self { assignment, place, done: BTreeSet::new(), now: Instant::now() }
        }

        fn take(&mut self) -> Vec<Incoming> {
            let room = self.assignment.room(SPAN_MAX, RANGES_MAX, self.now);
            let want = Want { messages: room.min(1000), bytes: usize::MAX };
            self.assignment.take(want, Order::Key, self.now)
        }

        /// A later member of the partition knows of everything that is done.
        fn settle(&mut self, taken: &[Incoming]) {
            let receipts: Vec<Receipt> = taken.iter().map(|incoming| incoming.receipt).collect();
            self.done.extend(receipts.iter().map(|receipt| receipt.position));
            for commit in self.assignment.to_commit_with(&receipts) {
                let low = u64::try_from(commit.offset).expect("it is no logical offset");
                let read = metadata::decode(low, &commit.metadata);
                let lost = self.done.range(low..).find(|offset| !read.is_resolved(**offset));
                assert_eq!(lost, None, "{} ranges from {low} on", read.ranges());
            }
            self.assignment.resolve(&receipts);
        }

        /// Handles the records at these offsets; the first shares its key with one in `every`
        /// records. Returns how many others were done before it.
        fn run(&mut self, offsets: &BTreeSet<u64>, every: u64, first: First) -> usize {
            let (mut coming, mut held) = (offsets.iter().copied().enumerate(), None);
            let mut before = 0;
            let one = offsets.first().copied().expect("there are some");
            while self.done.len() < offsets.len() {
                while self.assignment.ready().0 < AHEAD
                    && let Some((n, offset)) = coming.next()
                {
                    let key = if (n as u64).is_multiple_of(every) { 0 } else { n };
                    let message = Message::new("x").with_key(key.to_string());
                    let arrival = Arrival::plain(message);
                    assert!(self.assignment.arrive(&self.place, offset, arrival));
                }
                let mut taken = self.take();
                let at = taken.iter().position(|incoming| incoming.receipt.position == one);
                if let Some(at) = at.filter(|_| held.is_none()) {
                    let receipt = taken.remove(at).receipt;
                    held = Some(receipt);
                    if first == First::Delayed {
                        let reason =
                            FailedReason::Attempt { attempts: 1, error: "no luck".to_owned() };
                        let failed = Failed { receipt, reason, delay: LATER };
                        assert!(self.assignment.fail(&[failed], self.now).is_empty());
                    }
                } else if taken.is_empty() {
                    // Nothing else can be done.
                    before = self.done.len();
                    assert!(!self.done.contains(&one), "{before} are done");
                    match first {
                        First::Held => taken.extend(held.and_then(|r| self.assignment.held(r))),
                        First::Delayed => self.now += LATER,
                    }
                }
                self.settle(&taken);
            }
            before
        }
    }

    #[test]
    fn what_waits_behind_a_key_keeps_nothing_that_is_resolved_out_of_a_commit() {
        for first in [First::Held, First::Delayed] {
            for every in [2, 20, 200] {
                let mut trial = Trial::new();
                trial.run(&(0..RECORDS).collect(), every, first);
                assert_eq!(trial.assignment.room(SPAN_MAX, RANGES_MAX, trial.now), usize::MAX);
            }
        }
    }

    /// Each record is a transaction of its own.
    #[test]
    fn marks_of_transactions_take_no_room_in_a_commit() {
        let marked: BTreeSet<u64> = (0..RECORDS).map(|n| 2 * n).collect();
        let others = Trial::new().run(&marked, RECORDS, First::Held);
        assert_eq!(others as u64, RECORDS - 1, "one slow message holds none of them up");
        Trial::new().run(&marked, 20, First::Held);
    }

    #[test]
    fn what_the_member_before_has_resolved_stays_in_the_commits() {
        let mut before = Watermark::default();
        for at in 1..=RANGES_MAX as u64 {
            before.resolve_range(at * 99, at * 99 + 1);
        }
        let mut trial = Trial::new();
        let text = metadata::encode(&before);
        assert!(trial.assignment.assign(trial.place.clone(), Some(metadata::decode(0, &text))));
        trial.done = before.beyond().flat_map(|(first, past)| first..past).collect();
        let all: BTreeSet<u64> = (0..RECORDS).collect();
        trial.run(&all, 3, First::Held);
        assert_eq!(trial.done, all);
    }
}
