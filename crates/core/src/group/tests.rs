use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;

/// What is done to a group; numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    Put { key: u8, part: u64, delay: Option<u64> },
    Take { messages: usize },
    Done(usize),
    Fail(usize, u64),
    Withdraw(u64),
    PutFirst(u64),
    Drain,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..4, 0_u64..3, prop::option::weighted(0.2, 0_u64..4))
            .prop_map(|(key, part, delay)| Step::Put { key, part, delay }),
        3 => (1_usize..5).prop_map(|messages| Step::Take { messages }),
        3 => any::<usize>().prop_map(Step::Done),
        2 => (any::<usize>(), 0_u64..4).prop_map(|(at, delay)| Step::Fail(at, delay)),
        1 => (0_u64..3).prop_map(Step::Withdraw),
        1 => (0_u64..3).prop_map(Step::PutFirst),
        1 => Just(Step::Drain),
        1 => (1_u64..5).prop_map(Step::Wait),
    ]
}

/// The part is in the upper bits, like a partition.
fn part_of(position: u64) -> u64 {
    position >> 32
}

fn failed(receipt: Receipt, delay: u64) -> Failed {
    let reason = FailedReason::Attempt { attempts: 1, error: "no luck".to_owned() };
    Failed { receipt, reason, delay: Duration::from_millis(delay) }
}

#[test]
fn a_key_is_free_when_what_held_it_is_drained() {
    let (mut group, now) = (Group::<Duration>::default(), Duration::ZERO);
    let want = Want { messages: 9, bytes: 9 };
    group.put(Message::new("1").with_key("k"), None);
    let taken = group.take(want, Order::Key, 0, now);
    group.fail(&failed(taken[0].receipt, 1000), now);
    assert_eq!(group.drain().len(), 1);
    group.put(Message::new("2").with_key("k"), None);
    assert_eq!(group.take(want, Order::Key, 0, now).len(), 1);
}

/// The order in which former holders report is unknown.
#[test]
fn what_goes_back_comes_in_its_place_whichever_goes_first() {
    let (mut group, now) = (Group::<Duration>::default(), Duration::ZERO);
    let want = |messages| Want { messages, bytes: usize::MAX };
    for at in 0..8 {
        group.put(Message::new(at.to_string()), None);
    }
    let taken = group.take(want(6), Order::None, 0, now);
    for at in [3, 0, 5, 1, 4, 2] {
        group.fail(&failed(taken[at].receipt, 0), now);
    }
    let again = group.take(want(8), Order::None, 0, now);
    let positions = again.iter().map(|incoming| incoming.receipt.position);
    assert!(positions.eq(0..8));
}

#[test]
fn a_long_line_of_one_key_goes_on_from_where_it_stands() {
    let (mut group, now) = (Group::<Duration>::default(), Duration::ZERO);
    for at in 0..6 {
        group.put(Message::new(at.to_string()).with_key("hot"), None);
    }
    group.put(Message::new("other").with_key("cold"), None);
    let mut take = |messages| {
        let taken = group.take(Want { messages, bytes: usize::MAX }, Order::Key, 0, now);
        let text = |incoming: &Incoming| incoming.message.payload.clone().unwrap_or_default();
        let texts: Vec<Bytes> = taken.iter().map(text).collect();
        // While some of it is out, nothing more of it comes.
        let next = group.take(Want { messages: 9, bytes: usize::MAX }, Order::Key, 0, now);
        let all = taken.into_iter().chain(next.clone());
        all.for_each(|incoming| assert!(group.done(incoming.receipt)));
        (texts, next.iter().map(text).collect::<Vec<_>>())
    };
    assert_eq!(take(2), (vec!["0".into(), "1".into()], vec!["other".into()]));
    assert_eq!(take(3), (vec!["2".into(), "3".into(), "4".into()], vec![]));
    assert_eq!(take(9), (vec!["5".into()], vec![]));
    assert_eq!(group.stored(), 0);
}

#[test]
fn a_line_whose_first_is_withdrawn_goes_on() {
    let (mut group, now) = (Group::<Duration>::default(), Duration::ZERO);
    let put = |group: &mut Group<_>, position| {
        let receipt = Receipt { position, fence: 0 };
        group.put_at(Incoming::new(Message::new("x").with_key("k"), receipt), None);
    };
    (1..=4).for_each(|position| put(&mut group, position));
    let one = Want { messages: 1, bytes: usize::MAX };
    let all = Want { messages: 9, bytes: usize::MAX };
    let taken = group.take(one, Order::Key, 0, now);
    assert!(group.take(all, Order::Key, 0, now).is_empty(), "the rest waits behind it");
    assert!(group.done(taken[0].receipt));
    put(&mut group, 5);
    group.withdraw(|position| position == 2);
    let taken = group.take(all, Order::Key, 0, now);
    let positions: Vec<u64> = taken.iter().map(|one| one.receipt.position).collect();
    assert_eq!(positions, [3, 4, 5]);
}

/// Puts a message of the one key there is.
fn put(group: &mut Group<Duration>, position: u64) {
    let receipt = Receipt { position, fence: 0 };
    group.put_at(Incoming::new(Message::new("x").with_key("k"), receipt), None);
}

/// Takes at most `messages` messages; returns their receipts.
fn take(group: &mut Group<Duration>, messages: usize, order: Order, now: u64) -> Vec<Receipt> {
    let want = Want { messages, bytes: usize::MAX };
    let taken = group.take(want, order, 0, Duration::from_millis(now));
    taken.iter().map(|incoming| incoming.receipt).collect()
}

fn positions(taken: &[Receipt]) -> Vec<u64> {
    taken.iter().map(|receipt| receipt.position).collect()
}

/// The place of an offset in a partition.
const fn at(part: u64, offset: u64) -> u64 {
    part << 32 | offset
}

/// A group whose key has been handed out, with these waiting behind it, and is free again.
fn line(of: u64, behind: &[u64]) -> Group<Duration> {
    let mut group = Group::default();
    put(&mut group, of);
    let taken = take(&mut group, 1, Order::Key, 0);
    behind.iter().for_each(|position| put(&mut group, *position));
    assert_eq!(take(&mut group, 9, Order::Key, 0), []);
    assert!(group.done(taken[0]));
    group
}

#[test]
fn a_line_over_several_partitions_stays_in_order_when_another_goes() {
    let mut group = line(at(2, 0), &[at(1, 0), at(0, 0), at(1, 1)]);
    group.withdraw(|position| part_of(position) == 3);
    let taken = take(&mut group, 9, Order::Key, 0);
    assert_eq!(positions(&taken), [at(1, 0), at(0, 0), at(1, 1)]);
}

#[test]
fn a_line_over_several_partitions_stays_in_order_when_that_of_its_first_goes() {
    let mut group = line(at(1, 0), &[at(1, 1), at(2, 0), at(0, 0)]);
    put(&mut group, at(0, 1));
    group.withdraw(|position| part_of(position) == 1);
    let taken = take(&mut group, 9, Order::Key, 0);
    assert_eq!(positions(&taken), [at(2, 0), at(0, 0), at(0, 1)]);
}

#[test]
fn what_stands_in_a_line_behind_that_of_another_partition_can_be_put_first() {
    let mut group = Group::default();
    put(&mut group, at(0, 0));
    let taken = take(&mut group, 1, Order::Key, 0);
    put(&mut group, at(1, 0));
    assert_eq!(take(&mut group, 9, Order::Key, 0), []);
    assert!(group.fail(&failed(taken[0], 5), Duration::ZERO));
    assert!(!group.put_first(at(1, 0)), "its key waits to be tried again");
    group.wake(Duration::from_millis(5));
    assert!(group.put_first(at(1, 0)));
    assert_eq!(positions(&take(&mut group, 1, Order::Key, 5)), [at(1, 0)]);
}

#[test]
fn a_line_stays_in_order_when_what_came_after_it_is_put_first() {
    let mut group = line(at(0, 0), &[at(0, 1), at(0, 2)]);
    put(&mut group, at(1, 0));
    assert!(group.put_first(at(1, 0)));
    let taken = take(&mut group, 1, Order::Key, 0);
    assert_eq!(positions(&taken), [at(1, 0)]);
    assert_eq!(take(&mut group, 9, Order::Key, 0), []);
    assert!(group.done(taken[0]));
    assert_eq!(positions(&take(&mut group, 9, Order::Key, 0)), [at(0, 1), at(0, 2)]);
}

#[test]
fn a_line_is_handed_out_also_to_who_reads_in_another_order() {
    let mut group = line(0, &[1, 2]);
    let taken = take(&mut group, 1, Order::None, 0);
    assert_eq!(positions(&taken), [1]);
    assert!(group.done(taken[0]));
    assert_eq!(positions(&take(&mut group, 9, Order::None, 0)), [2]);
}

/// A group, with a plain model of what should be there.
#[derive(Default)]
struct World {
    group: Group<Duration>,
    ordered: bool,
    now: Duration,
    next: u64,
    /// The keys of what is not done, by position.
    there: BTreeMap<u64, Bytes>,
    held: Vec<Incoming>,
    /// When what was put with a delay may come.
    due: BTreeMap<u64, Duration>,
}

impl World {
    fn run(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Put { key, part, delay } => self.put(key, part, delay),
            Step::Take { messages } => self.take(messages)?,
            Step::Done(at) if !self.held.is_empty() => {
                let Incoming { receipt, .. } = self.held.swap_remove(at % self.held.len());
                prop_assert!(self.group.done(receipt));
                prop_assert!(!self.group.done(receipt));
                self.there.remove(&receipt.position);
            }
            Step::Fail(at, delay) if !self.held.is_empty() => {
                let Incoming { receipt, .. } = self.held.swap_remove(at % self.held.len());
                prop_assert!(self.group.fail(&failed(receipt, delay), self.now));
                prop_assert!(!self.group.stands(receipt));
            }
            Step::Withdraw(part) => {
                let is_gone = |position: u64| part_of(position) == part;
                self.group.withdraw(is_gone);
                self.there.retain(|position, _| !is_gone(*position));
                for incoming in self.held.extract_if(.., |h| is_gone(h.receipt.position)) {
                    prop_assert!(!self.group.stands(incoming.receipt));
                }
            }
            Step::PutFirst(part) => self.put_first(part)?,
            Step::Drain => {
                let drained = self.group.drain().len();
                prop_assert_eq!(drained, self.there.len() - self.held.len());
                let is_held = |at| self.held.iter().any(|h| h.receipt.position == at);
                self.there.retain(|position, _| is_held(*position));
            }
            Step::Wait(time) => self.now += Duration::from_millis(time),
            Step::Done(_) | Step::Fail(..) => {}
        }
        prop_assert_eq!(self.group.stored(), self.there.len());
        Ok(())
    }

    fn put(&mut self, key: u8, part: u64, delay: Option<u64>) {
        let position = at(part, self.next);
        self.next += 1;
        let key = Bytes::from(vec![key]);
        self.there.insert(position, key.clone());
        let receipt = Receipt { position, fence: 0 };
        let due = delay.map(|delay| self.now + Duration::from_millis(delay));
        self.group.put_at(Incoming::new(Message::new("x").with_key(key), receipt), due);
        self.due.extend(due.map(|due| (position, due)));
    }

    fn take(&mut self, messages: usize) -> TestCaseResult {
        let order = if self.ordered { Order::Key } else { Order::None };
        let want = Want { messages, bytes: usize::MAX };
        let taken = self.group.take(want, order, 0, self.now);
        prop_assert!(taken.len() <= messages);
        for (at, incoming) in taken.iter().enumerate() {
            self.check(incoming, &taken[..at])?;
        }
        self.held.extend(taken);
        Ok(())
    }

    /// What is handed out, after these in the same call.
    fn check(&self, incoming: &Incoming, before: &[Incoming]) -> TestCaseResult {
        let position = incoming.receipt.position;
        prop_assert!(self.there.contains_key(&position), "it was done or withdrawn");
        prop_assert!(self.due.get(&position).is_none_or(|due| *due <= self.now));
        let is = |at: u64| move |h: &Incoming| h.receipt.position == at;
        prop_assert!(!self.held.iter().any(is(position)), "it is handed out already");
        if !self.ordered {
            return Ok(());
        }
        prop_assert!(!self.held.iter().any(|h| h.message.key == incoming.message.key));
        // What was put with a delay has its place when that is over.
        let skipped = self.there.range(at(part_of(position), 0)..position).find(|(of, key)| {
            Some(*key) == incoming.message.key.as_ref()
                && !self.due.contains_key(of)
                && !before.iter().any(is(**of))
        });
        let in_turn = self.due.contains_key(&position) || skipped.is_none();
        prop_assert!(in_turn, "{skipped:?} goes before {position}");
        Ok(())
    }

    /// Like a consumer that has room for no other message of a part.
    fn put_first(&mut self, part: u64) -> TestCaseResult {
        let is_out = self.held.iter().any(|h| part_of(h.receipt.position) == part);
        let first = self.there.range(at(part, 0)..at(part + 1, 0)).next();
        if let Some((first, _)) = first.filter(|_| !is_out) {
            let is_ready = self.group.put_first(*first);
            prop_assert!(is_ready || !self.held.is_empty() || self.group.due().is_some());
        }
        Ok(())
    }
}

proptest! {
    /// Nothing is lost, nothing comes twice, a key is handed out in order and never beyond what is
    /// unresolved of it, and in the end all of it can be taken.
    #[test]
    fn what_is_there_is_handed_out_once_and_by_key_in_order(
        steps in prop::collection::vec(step(), 1..200),
        ordered in any::<bool>(),
    ) {
        let mut world = World { ordered, ..World::default() };
        let drain = std::iter::repeat_n([Step::Take { messages: 5 }, Step::Done(0)], 400);
        for step in steps.into_iter().chain([Step::Wait(10)]).chain(drain.flatten()) {
            world.run(step)?;
        }
        prop_assert_eq!(world.group.stored(), 0, "all of it could be taken");
        prop_assert_eq!(world.group.bytes(), 0);
        prop_assert!(world.group.busy.is_empty(), "nothing is kept of a key that is gone");
    }
}
