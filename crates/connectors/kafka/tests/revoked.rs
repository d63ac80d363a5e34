//! What becomes of the messages that a member has in hand when their partition goes to another.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{
    Consumer, Failed, FailedReason, Guarantee, Incoming, Outgoing, Producer, QueueSpec, Receipt,
};
use brigade_kafka::Position;
use brigade_testkit::servers::{Kafka, KafkaDoor};
use common::{
    PATIENCE, consumer, newer, number, numbered, producer, put, queue, settle, take, take_all, with,
};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const MESSAGES: u64 = 1000;
/// Longer than a test has patience, and soon over.
const LONG: &str = "10m";
const SHORT: &str = "500ms";

/// A queue of two partitions, so that a second member gets one of them.
fn shared_out(revoke_within: &str) -> QueueSpec {
    let mut queue = queue(2, &Kafka::shared().servers());
    queue.settings["revoke_within"] = revoke_within.into();
    queue
}

fn exactly_once(revoke_within: &str) -> QueueSpec {
    QueueSpec { guarantee: Guarantee::ExactlyOnce, ..shared_out(revoke_within) }
}

/// A member that has all messages in hand.
async fn with_all_in_hand(queue: &QueueSpec) -> (Arc<dyn Consumer>, Vec<Incoming>) {
    put(&producer(queue).await, 0..MESSAGES).await;
    let member = consumer(queue).await;
    let taken = take_all(&member, MESSAGES as usize).await;
    (member, taken)
}

fn partition(member: &Arc<dyn Consumer>, incoming: &Incoming) -> i32 {
    member.locate(incoming.receipt).parse::<Position>().unwrap().partition
}

fn numbers(taken: &[Incoming]) -> BTreeSet<u64> {
    taken.iter().map(number).collect()
}

fn receipts(taken: &[Incoming]) -> BTreeSet<Receipt> {
    taken.iter().map(|incoming| incoming.receipt).collect()
}

/// Acks, with each message as an output in the same transaction if there is a producer for it.
/// Answers with what does not stand.
async fn hand_on(
    member: &Arc<dyn Consumer>,
    outputs: Option<&Arc<dyn Producer>>,
    taken: &[Incoming],
) -> BTreeSet<Receipt> {
    let copies: Vec<Outgoing> = taken.iter().map(|incoming| numbered(number(incoming))).collect();
    let ops = match outputs {
        Some(outputs) => outputs.stage(&copies).await.unwrap().ops,
        None => Vec::new(),
    };
    let settled = tokio::time::timeout(PATIENCE, settle(member, taken, ops)).await;
    settled.expect("it is answered").into_iter().collect()
}

/// Waits until a partition is about to go. Until then what is given back is handed out again, and
/// from then on no longer: answers with the partition, and with its message that was given back and
/// did not come again.
async fn until_one_goes(member: &Arc<dyn Consumer>, held: &mut Vec<Incoming>) -> (i32, u64) {
    let mut met = BTreeSet::new();
    let one_of_each = held.extract_if(.., |incoming| met.insert(partition(member, incoming)));
    let (mut given, begun) = (one_of_each.collect::<Vec<_>>(), Instant::now());
    assert_eq!(given.len(), 2, "there are messages in both partitions");
    loop {
        assert!(begun.elapsed() < PATIENCE, "none goes");
        let failed = given.iter().map(|incoming| Failed {
            receipt: incoming.receipt,
            reason: FailedReason::Released,
            delay: Duration::ZERO,
        });
        let released = member.on_fail(failed.collect()).await.unwrap();
        assert_eq!(released.fenced, [], "the partition is still its own");
        let mut again = Vec::new();
        while again.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "nothing comes again");
            again = take(member, 2).await;
        }
        if again.len() < 2 {
            let back = numbers(&again);
            given.retain(|incoming| !back.contains(&number(incoming)));
            held.extend(again);
            assert_eq!(given.len(), 1, "one partition goes, and one stays");
            return (partition(member, &given[0]), number(&given[0]));
        }
        given = again;
    }
}

/// What comes up to a message that is put when all others are there.
async fn up_to(member: &Arc<dyn Consumer>, last: u64) -> BTreeSet<u64> {
    let (mut came, begun) = (BTreeSet::new(), Instant::now());
    while !came.contains(&last) {
        assert!(begun.elapsed() < PATIENCE, "{came:?} and not {last}");
        came.extend(numbers(&take(member, 1000).await));
    }
    came
}

/// A second member comes while the first works. What that one acks stands, and the partition waits
/// for it.
async fn acked_in_time(queue: &QueueSpec, outputs: Option<&Arc<dyn Producer>>) {
    let (first, mut held) = with_all_in_hand(queue).await;
    // A new message goes where another with its key is.
    let last_of: BTreeMap<i32, u64> = held
        .iter()
        .map(|incoming| (partition(&first, incoming), MESSAGES + number(incoming)))
        .collect();
    let second = consumer(queue).await;
    let (goes, given_back) = until_one_goes(&first, &mut held).await;
    assert_eq!(hand_on(&first, outputs, &held).await, BTreeSet::new(), "all acks stand");
    let producer = producer(queue).await;
    for last in last_of.values() {
        put(&producer, *last..*last + 1).await;
    }
    let (goes, stays) = (last_of[&goes], last_of[&(1 - goes)]);
    assert_eq!(up_to(&second, goes).await, [given_back, goes].into(), "nothing that was acked");
    assert_eq!(up_to(&first, stays).await, [stays].into());
}

#[tokio::test]
async fn what_is_acked_while_its_partition_goes_does_not_come_to_the_other() {
    acked_in_time(&shared_out(LONG), None).await;
}

#[tokio::test]
async fn nor_does_it_where_the_broker_assigns() {
    acked_in_time(&newer(&shared_out(LONG)), None).await;
}

#[tokio::test]
async fn nor_does_it_with_transactions() {
    let outputs = producer(&queue(1, &Kafka::shared().servers())).await;
    acked_in_time(&exactly_once(LONG), Some(&outputs)).await;
}

/// How far the group is in a partition, if it has committed anything.
fn committed(queue: &QueueSpec, partition: i32) -> Option<i64> {
    let text = |name: &str| queue.settings[name].as_str().unwrap();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", Kafka::shared().servers()).set("group.id", text("group"));
    let outsider: BaseConsumer = config.create().unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition(text("topic"), partition);
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "nobody says");
        // Not while a transaction ends.
        let Ok(found) = outsider.committed_offsets(asked.clone(), PATIENCE) else { continue };
        let Ok(found) = found.elements()[0].error().map(|()| found.elements()[0].offset()) else {
            continue;
        };
        let Offset::Offset(offset) = found else { return None };
        return Some(offset);
    }
}

/// A second member comes, and the first works for too long: the other handles the messages, and the
/// late acks of those, and only of those, do nothing.
async fn acked_too_late(queue: &QueueSpec, outputs: Option<&Arc<dyn Producer>>) {
    let (first, held) = with_all_in_hand(queue).await;
    let second = consumer(queue).await;
    let (mut taken, mut late, begun) = (Vec::new(), Vec::new(), Instant::now());
    while taken.is_empty() || taken.len() < late.len() {
        assert!(begun.elapsed() < PATIENCE, "{} of {}", taken.len(), late.len());
        taken.extend(take(&second, 1000).await);
        if let Some(one) = taken.first() {
            let goes = partition(&second, one);
            late = held.iter().filter(|one| partition(&first, one) == goes).cloned().collect();
        }
    }
    assert_eq!(numbers(&taken), numbers(&late), "what the first has of one partition");
    assert_eq!(hand_on(&first, outputs, &held).await, receipts(&late));
    let of_late = receipts(&late);
    let stay: Vec<Incoming> =
        held.into_iter().filter(|incoming| !of_late.contains(&incoming.receipt)).collect();
    // In transactions it was all or nothing; else it is harmless.
    assert_eq!(hand_on(&first, outputs, &stay).await, BTreeSet::new());
    let (goes, stays) = (partition(&second, &taken[0]), partition(&first, &stay[0]));
    assert_eq!(committed(queue, goes), None, "late acks are not committed");
    assert_eq!(committed(queue, stays), Some(stay.len() as i64));
    assert_eq!(hand_on(&second, outputs, &taken).await, BTreeSet::new());
    assert_eq!(committed(queue, goes), Some(taken.len() as i64));
}

#[tokio::test]
async fn what_is_acked_after_its_partition_went_is_refused() {
    acked_too_late(&shared_out(SHORT), None).await;
}

#[tokio::test]
async fn so_it_is_where_the_broker_assigns() {
    acked_too_late(&newer(&shared_out(SHORT)), None).await;
}

/// And the outputs of what is refused are not put.
#[tokio::test]
async fn so_it_is_with_transactions() {
    let output = queue(1, &Kafka::shared().servers());
    acked_too_late(&exactly_once(SHORT), Some(&producer(&output).await)).await;
    let (reader, mut came, begun) = (consumer(&output).await, Vec::new(), Instant::now());
    while (came.len() as u64) < MESSAGES {
        assert!(begun.elapsed() < PATIENCE, "{} of {MESSAGES}", came.len());
        came.extend(take(&reader, 1000).await.iter().map(number));
    }
    came.sort_unstable();
    assert_eq!(came, (0..MESSAGES).collect::<Vec<_>>());
}

/// It does not hear that the group gave its partition to another: the broker refuses its commits.
#[tokio::test]
async fn a_member_that_was_away_for_longer_than_its_session_acks_in_vain() {
    let door = KafkaDoor::open(Kafka::shared());
    let queue = queue(1, &Kafka::shared().servers());
    let before = with(&queue, "bootstrap.servers", door.servers());
    let before = with(&before, "reconnect.backoff.max.ms", 300);
    // The second waits for its end; before that, no stall may be as long.
    let before = with(&before, "session.timeout.ms", 15_000);
    let (first, held) = with_all_in_hand(&before).await;
    door.cut(u32::MAX);
    let second = consumer(&queue).await;
    let taken = take_all(&second, MESSAGES as usize).await;
    door.cut(0);
    assert_eq!(hand_on(&first, None, &held).await, receipts(&held), "none stands");
    assert_eq!(committed(&queue, 0), None);
    assert_eq!(hand_on(&second, None, &taken).await, BTreeSet::new());
    assert_eq!(committed(&queue, 0), Some(MESSAGES as i64));
}
