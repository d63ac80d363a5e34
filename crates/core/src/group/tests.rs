use proptest::prelude::*;

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

/// Parts stand in the upper bits, as partitions do.
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

/// Takes so many; answers with where they stood.
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

proptest! {
    /// Against a plain list of what is there: nothing is lost, nothing comes twice, a key is
    /// handed out in order and never beyond what is unresolved of it, and in the end all of it
    /// can be taken.
    #[test]
    fn what_is_there_is_handed_out_once_and_by_key_in_order(
        steps in prop::collection::vec(step(), 1..200),
        ordered in any::<bool>(),
    ) {
        let order = if ordered { Order::Key } else { Order::None };
        let mut group = Group::<Duration>::default();
        let (mut now, mut next) = (Duration::ZERO, 0_u64);
        let mut there: BTreeMap<u64, Bytes> = BTreeMap::new();
        let mut held: Vec<Incoming> = Vec::new();
        let mut due: BTreeMap<u64, Duration> = BTreeMap::new();
        let last = Step::Wait(10);
        let drain = std::iter::repeat_n([Step::Take { messages: 5 }, Step::Done(0)], 400);
        for step in steps.into_iter().chain([last]).chain(drain.flatten()) {
            match step {
                Step::Put { key, part, delay } => {
                    let position = part << 32 | next;
                    next += 1;
                    let key = Bytes::from(vec![key]);
                    there.insert(position, key.clone());
                    let receipt = Receipt { position, fence: 0 };
                    let incoming = Incoming::new(Message::new("x").with_key(key), receipt);
                    let at = delay.map(|delay| now + Duration::from_millis(delay));
                    group.put_at(incoming, at);
                    due.extend(at.map(|at| (position, at)));
                }
                Step::Take { messages } => {
                    let want = Want { messages, bytes: usize::MAX };
                    let taken = group.take(want, order, 0, now);
                    prop_assert!(taken.len() <= messages);
                    for (at, incoming) in taken.iter().enumerate() {
                        let position = incoming.receipt.position;
                        prop_assert!(there.contains_key(&position), "it was done or withdrawn");
                        prop_assert!(due.get(&position).is_none_or(|due| *due <= now));
                        let is_held = |h: &Incoming| h.receipt.position == position;
                        prop_assert!(!held.iter().any(is_held), "it is handed out already");
                        let other = |h: &&Incoming| h.message.key == incoming.message.key;
                        prop_assert!(!ordered || !held.iter().any(|h| other(&h)));
                        // What was put with a delay has its place when that is over.
                        let is_out = |of: &u64| {
                            taken[..at].iter().any(|before| before.receipt.position == *of)
                        };
                        let skipped = there.range(position >> 32 << 32..position).find(|(of, key)| {
                            Some(*key) == incoming.message.key.as_ref()
                                && !due.contains_key(of) && !is_out(of)
                        });
                        let in_turn = due.contains_key(&position) || skipped.is_none();
                        prop_assert!(!ordered || in_turn, "{skipped:?} goes before {position}");
                    }
                    held.extend(taken);
                }
                Step::Done(at) if !held.is_empty() => {
                    let incoming = held.swap_remove(at % held.len());
                    prop_assert!(group.done(incoming.receipt));
                    prop_assert!(!group.done(incoming.receipt));
                    there.remove(&incoming.receipt.position);
                }
                Step::Fail(at, delay) if !held.is_empty() => {
                    let incoming = held.swap_remove(at % held.len());
                    prop_assert!(group.fail(&failed(incoming.receipt, delay), now));
                    prop_assert!(!group.stands(incoming.receipt));
                }
                Step::Withdraw(part) => {
                    group.withdraw(|position| part_of(position) == part);
                    there.retain(|position, _| part_of(*position) != part);
                    for incoming in held.extract_if(.., |h| part_of(h.receipt.position) == part) {
                        prop_assert!(!group.stands(incoming.receipt));
                    }
                }
                // As a consumer does that has room for no other of a part.
                Step::PutFirst(part) => {
                    let first = there.range(part << 32..(part + 1) << 32).next();
                    let is_out = held.iter().any(|h| part_of(h.receipt.position) == part);
                    if let Some((first, _)) = first.filter(|_| !is_out) {
                        let is_ready = group.put_first(*first);
                        prop_assert!(is_ready || !held.is_empty() || group.due().is_some());
                    }
                }
                Step::Drain => {
                    prop_assert_eq!(group.drain().len(), there.len() - held.len());
                    let is_held = |at| held.iter().any(|h| h.receipt.position == at);
                    there.retain(|position, _| is_held(*position));
                }
                Step::Wait(time) => now += Duration::from_millis(time),
                Step::Done(_) | Step::Fail(..) => {}
            }
            prop_assert_eq!(group.stored(), there.len());
        }
        prop_assert_eq!(group.stored(), 0, "all of it could be taken");
        prop_assert_eq!(group.bytes(), 0);
        prop_assert!(group.busy.is_empty(), "nothing is kept of a key that is gone");
    }
}
