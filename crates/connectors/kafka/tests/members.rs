//! Members of a group: they come, go, work slowly, hang and are killed.
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
    Connector as _, ConnectorError, Consumer, ErrorKind, Guarantee, Incoming, Outgoing, Produced,
    Producer, QueueSpec, Want,
};
use brigade_kafka::Position;
use brigade_testkit::servers::Kafka;
use common::{
    PATIENCE, ack, consumer, lag, newer, number, numbered, producer, put, queue, settle, take,
    take_all, with,
};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// What is resolved beyond the committed offset is known to the next member: it is not handled again
/// though a message before it is unresolved.
#[tokio::test]
async fn only_what_is_unresolved_comes_again_to_the_next_member() {
    let queue = queue(1, &Kafka::shared().servers());
    let producer = producer(&queue).await;
    put(&producer, 0..1000).await;
    let first = consumer(&queue).await;
    let taken = take_all(&first, 1000).await;
    let (left, done): (Vec<Incoming>, Vec<Incoming>) =
        taken.into_iter().partition(|incoming| number(incoming) % 100 == 7);
    assert_eq!(ack(&first, &done).await, 990);
    // Killed, not stopped.
    drop(first);
    let next = consumer(&queue).await;
    // What is resolved would come before what is put now.
    put(&producer, 1000..1001).await;
    let again = take_all(&next, left.len() + 1).await;
    let wanted: Vec<u64> = left.iter().map(number).chain([1000]).collect();
    assert_eq!(again.iter().map(number).collect::<Vec<_>>(), wanted);
}

/// Others may be asking the broker something at that moment.
#[tokio::test]
async fn who_has_shut_down_is_no_member_any_more() {
    // Of so many partitions, an answer takes its time.
    let queue = queue(60, &Kafka::shared().servers());
    put(&producer(&queue).await, 0..10).await;
    let member = consumer(&queue).await;
    let begun = Instant::now();
    while take(&member, 10).await.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "nothing came");
    }
    let asking = |_| {
        let member = Arc::clone(&member);
        tokio::spawn(async move { while member.lag().await.is_ok() {} })
    };
    let asking: Vec<_> = (0..4).map(asking).collect();
    lag(&member).await;
    member.shutdown().await.unwrap();
    // The broker takes this from one who is no member only if nobody is.
    let settings = &queue.settings;
    let group = settings["group"].as_str().unwrap();
    let outsider: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", Kafka::shared().servers())
        .set("group.id", group)
        .create()
        .unwrap();
    let mut offsets = TopicPartitionList::new();
    let topic = settings["topic"].as_str().unwrap();
    offsets.add_partition_offset(topic, 0, Offset::Offset(0)).unwrap();
    outsider.commit(&offsets, CommitMode::Sync).unwrap();
    for asked in asking {
        asked.await.unwrap();
    }
}

/// Members join and leave: no message is lost, what a leaving member had in flight is resolved before
/// its partitions go, and each key's first occurrences are in order.
#[tokio::test]
async fn members_come_and_go_and_nothing_is_lost() {
    // One that goes while it joins cannot say so, and the others wait for the end of its session.
    let queue = with(&queue(8, &Kafka::shared().servers()), "session.timeout.ms", 8000);
    come_and_go(&queue, None).await;
}

/// The same where the broker assigns, step by step.
#[tokio::test]
async fn members_of_the_newer_protocol_come_and_go_and_nothing_is_lost() {
    let queue = newer(&queue(8, &Kafka::shared().servers()));
    assert_eq!(brigade_kafka::Kafka.check(&queue), []);
    come_and_go(&queue, None).await;
}

/// And where outputs and offsets are one transaction, fenced by the member's epoch: each output once.
#[tokio::test]
async fn members_of_the_newer_protocol_come_and_go_with_transactions() {
    let mut input = newer(&queue(4, &Kafka::shared().servers()));
    input.guarantee = Guarantee::ExactlyOnce;
    let output = queue(1, &Kafka::shared().servers());
    come_and_go(&input, Some(&producer(&output).await)).await;
    let (reader, mut came) = (consumer(&output).await, Vec::new());
    let begun = Instant::now();
    while (came.len() as u64) < MESSAGES {
        assert!(begun.elapsed() < PATIENCE, "{} of {MESSAGES}", came.len());
        let taken = take(&reader, 1000).await;
        came.extend(taken.iter().map(number));
        ack(&reader, &taken).await;
    }
    came.sort_unstable();
    assert_eq!(came, (0..MESSAGES).collect::<Vec<_>>());
}

/// How many messages members hand on while they come and go.
const MESSAGES: u64 = 20_000;

/// Acks, with each message as an output in the same transaction if there is a producer for it. Answers with
/// what is done.
async fn hand_on(
    member: &Arc<dyn Consumer>,
    outputs: Option<&Arc<dyn Producer>>,
    taken: &[Incoming],
) -> Vec<u64> {
    let Some(outputs) = outputs.filter(|_| !taken.is_empty()) else {
        let fenced = settle(member, taken, Vec::new()).await;
        let done = taken.iter().filter(|incoming| !fenced.contains(&incoming.receipt));
        return done.map(number).collect();
    };
    let copies: Vec<Outgoing> = taken.iter().map(|incoming| numbered(number(incoming))).collect();
    let staged = outputs.stage(&copies).await.unwrap();
    match settle(member, taken, staged.ops).await.is_empty() {
        true => taken.iter().map(number).collect(),
        // All or nothing.
        false => Vec::new(),
    }
}

async fn come_and_go(queue: &QueueSpec, outputs: Option<&Arc<dyn Producer>>) {
    let producer = producer(queue).await;
    let mut members = vec![consumer(queue).await];
    let mut random = fastrand::Rng::with_seed(3);
    let (mut put_so_far, mut times) = (0, BTreeMap::<u64, u32>::new());
    let mut settled = BTreeSet::new();
    let mut last_of_key = BTreeMap::<u64, u64>::new();
    let (begun, mut changes) = (Instant::now(), 0);
    while (settled.len() as u64) < MESSAGES {
        assert!(begun.elapsed() < 3 * PATIENCE, "{} of {MESSAGES}", settled.len());
        if put_so_far < MESSAGES {
            put(&producer, put_so_far..put_so_far + 500).await;
            put_so_far += 500;
        }
        for member in &members {
            let taken = take(member, 400).await;
            for incoming in &taken {
                let n = number(incoming);
                assert!(!settled.contains(&n), "{n} came again though it was settled");
                let first = *times.entry(n).and_modify(|times| *times += 1).or_insert(1) == 1;
                if first {
                    let before = last_of_key.insert(n % 50, n);
                    assert!(before.is_none_or(|before| before < n), "{n} after {before:?}");
                }
            }
            for n in hand_on(member, outputs, &taken).await {
                assert!(settled.insert(n), "{n} settled twice");
            }
        }
        match random.u32(..3) {
            0 if members.len() < 4 => members.push(consumer(queue).await),
            1 if members.len() > 1 => {
                let leaving = members.swap_remove(random.usize(..members.len()));
                if random.bool() {
                    leaving.shutdown().await.unwrap();
                }
            }
            _ => continue,
        }
        changes += 1;
    }
    let twice = times.values().filter(|times| **times > 1).count();
    println!("{twice} of {MESSAGES} came again over {changes} members that came or went");
    // Every member acks what it takes before it leaves; only a machine that stands still for longer than a session
    // costs what was taken at that moment. A transaction may be too late, and undone.
    assert!(twice as u64 <= MESSAGES / 10 || outputs.is_some(), "{twice}");
}

/// Time passes, and the processors are left to the broker and the client.
async fn nobody_asks_for_more(time: Duration) {
    let never = std::future::pending::<()>();
    assert!(tokio::time::timeout(time, never).await.is_err(), "it never ends");
}

/// A component that works for longer than the group waits for a poll keeps its partitions.
#[tokio::test]
async fn a_slow_component_does_not_trip_the_poll_interval() {
    // The session's timeout may not be longer.
    let slow = with(&queue(1, &Kafka::shared().servers()), "session.timeout.ms", 20_000);
    let slow = with(&slow, "max.poll.interval.ms", 20_000);
    put(&producer(&slow).await, 0..5000).await;
    let member = consumer(&slow).await;
    let taken = take_all(&member, 10).await;
    // What is fetched ahead fills its bound.
    nobody_asks_for_more(Duration::from_secs(25)).await;
    assert_eq!(ack(&member, &taken).await, taken.len(), "the partition is still its own");
}

/// Partitions that go while nobody asks for messages, and come back later, are read again.
#[tokio::test]
async fn partitions_that_come_back_are_read_though_they_were_paused() {
    const MESSAGES: u64 = 8000;
    let queue = queue(2, &Kafka::shared().servers());
    put(&producer(&queue).await, 0..MESSAGES).await;
    let first = consumer(&queue).await;
    let mut seen = BTreeSet::new();
    while seen.is_empty() {
        let taken = take(&first, 1).await;
        seen.extend(taken.iter().map(number));
        ack(&first, &taken).await;
    }
    // Long enough for what is fetched ahead to fill its bound, and to be paused.
    let begun = Instant::now();
    nobody_asks_for_more(Duration::from_secs(2)).await;
    let second = consumer(&queue).await;
    while take(&second, 1).await.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "the second gets nothing");
    }
    let only_some = seen.len() + 1000;
    while seen.len() < only_some {
        let taken = take(&first, 500).await;
        seen.extend(taken.iter().map(number));
        ack(&first, &taken).await;
    }
    drop(second);
    while (seen.len() as u64) < MESSAGES {
        assert!(begun.elapsed() < PATIENCE, "{} of {MESSAGES}", seen.len());
        let taken = take(&first, 500).await;
        seen.extend(taken.iter().map(number));
        ack(&first, &taken).await;
    }
}

/// A message for one partition.
fn to(partition: i32, n: u64) -> Outgoing {
    let Outgoing { message, .. } = numbered(n);
    message.with_header("brigade-partition", partition.to_string()).into()
}

fn place(incoming: &Incoming, member: &dyn brigade_core::connector::Consumer) -> i32 {
    member.locate(incoming.receipt).parse::<Position>().unwrap().partition
}

const PARTITIONS: i32 = 4;

/// Which partitions each of two members has, once both have some and all of a round of messages, one in each
/// partition, came to the same members as those of the round before.
async fn shared_out(
    producer: &Arc<dyn Producer>,
    members: [&Arc<dyn Consumer>; 2],
) -> [BTreeSet<i32>; 2] {
    let (begun, mut before) = (Instant::now(), None);
    for round in 0.. {
        let batch: Vec<Outgoing> = (0..PARTITIONS).map(|partition| to(partition, round)).collect();
        let put = producer.produce(&batch).await.unwrap();
        assert!(put.iter().all(|one| matches!(one, Produced::Confirmed)), "{put:?}");
        let mut now = [BTreeSet::new(), BTreeSet::new()];
        while (&now[0] | &now[1]).len() < batch.len() {
            assert!(begun.elapsed() < PATIENCE, "{before:?} and {now:?}");
            for (member, places) in members.into_iter().zip(&mut now) {
                let taken = take(member, 100).await;
                let of_round = taken.iter().filter(|incoming| number(incoming) == round);
                places.extend(of_round.map(|incoming| place(incoming, &**member)));
                ack(member, &taken).await;
            }
        }
        let [one, other] = &now;
        let is_split = !one.is_empty() && !other.is_empty() && one.is_disjoint(other);
        if is_split && before.as_ref() == Some(&now) {
            return now;
        }
        before = Some(now);
    }
    unreachable!("it goes on for ever")
}

/// A member with a `group.instance.id` that is away for less than the session's timeout finds its
/// partitions again, and what came meanwhile; nobody else was given them.
#[tokio::test]
async fn a_static_member_that_comes_back_has_the_partitions_that_it_had() {
    const LATE: u64 = 1_000_000;
    let queue = queue(4, &Kafka::shared().servers());
    let member = |name: &str| with(&queue, "group.instance.id", name);
    let producer = producer(&queue).await;
    let (first, second) = (member("first"), member("second"));
    let mut one = consumer(&first).await;
    let other = consumer(&second).await;
    let begun = Instant::now();
    let [of_one, of_other] = shared_out(&producer, [&one, &other]).await;
    // Killed: it does not say that it goes.
    drop(one);
    let late: Vec<Outgoing> = (0..PARTITIONS).map(|partition| to(partition, LATE)).collect();
    producer.produce(&late).await.unwrap();
    let (mut seen, mut from_one) = (BTreeSet::new(), BTreeSet::new());
    while seen.len() < of_other.len() {
        assert!(begun.elapsed() < PATIENCE, "{seen:?} of {of_other:?}");
        let taken = take(&other, 100).await;
        let late = taken.iter().filter(|incoming| number(incoming) == LATE);
        seen.extend(late.map(|incoming| place(incoming, &*other)));
        ack(&other, &taken).await;
    }
    assert_eq!(seen, of_other, "what the first had is not given away");
    one = consumer(&first).await;
    while from_one.len() < of_one.len() {
        assert!(begun.elapsed() < PATIENCE, "{from_one:?} of {of_one:?}");
        let taken = take(&one, 100).await;
        let late = taken.iter().filter(|incoming| number(incoming) == LATE);
        from_one.extend(late.map(|incoming| place(incoming, &*one)));
        ack(&one, &taken).await;
    }
    assert_eq!(from_one, of_one);
}

fn impatient(queue: &QueueSpec) -> QueueSpec {
    let mut queue = queue.clone();
    queue.settings["stall_after"] = "2s".into();
    queue
}

/// Whether this is told, too, when only this machine stood still: nothing was heard of the consumer's thread, or of the
/// broker.
fn may_pass(error: &ConnectorError) -> bool {
    let passes = ["does not poll", "cannot read the group's commits"];
    error.is_transient() || passes.iter().any(|told| error.to_string().contains(told))
}

/// What comes, or why nothing will, as the runtime waits for both.
async fn next(member: &Arc<dyn Consumer>, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
    tokio::select! {
        taken = member.consume(want) => taken,
        error = member.broken() => Err(error),
    }
}

async fn stalls(queue: &QueueSpec, why: &str) {
    let member = consumer(queue).await;
    let want = Want { messages: 10, bytes: usize::MAX };
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "it does not notice");
        match next(&member, want).await {
            Err(error) if error.to_string().contains(why) => {
                assert_eq!(error.kind(), ErrorKind::Stalled, "{error}");
                assert!(error.to_string().contains("stall_after"), "{error}");
                return;
            }
            Err(error) => assert!(may_pass(&error), "{error}"),
            Ok(taken) => assert!(taken.is_empty(), "something came"),
        }
    }
}

/// The broker keeps what is asked for to itself, since it is told to wait for more.
#[tokio::test]
async fn records_that_do_not_come_are_noticed() {
    let queue = queue(1, &Kafka::shared().servers());
    put(&producer(&queue).await, 0..10).await;
    let starved = with(&with(&queue, "fetch.min.bytes", 50_000_000), "fetch.wait.max.ms", 250_000);
    let starved = with(&starved, "socket.timeout.ms", 300_000);
    stalls(&impatient(&starved), "none comes").await;
    // Another gets them.
    take_all(&consumer(&queue).await, 10).await;
}

/// A queue that is empty is not taken for one that does not get on.
#[tokio::test]
async fn an_empty_queue_does_not_count_as_stalled() {
    let queue = impatient(&queue(1, &Kafka::shared().servers()));
    let producer = producer(&queue).await;
    let member = consumer(&queue).await;
    let want = Want { messages: 10, bytes: usize::MAX };
    // Whatever else passes: that the broker has records is not told.
    let told = async {
        loop {
            match next(&member, want).await {
                Err(error) if may_pass(&error) => {}
                other => break other,
            }
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(5), told).await;
    assert!(told.is_err(), "nothing is told: {told:?}");
    put(&producer, 0..1).await;
    take_all(&member, 1).await;
}

/// Keeps the polling thread of the queue `hung` from returning, as a hang in the client would.
struct Hang;

#[derive(Default)]
struct Names(String);

impl tracing::field::Visit for Names {
    fn record_debug(&mut self, _: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{value:?} ");
    }
}

impl tracing::Subscriber for Hang {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("brigade_kafka")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut names = Names::default();
        event.record(&mut names);
        if names.0.contains("hung") && names.0.contains("assigned") {
            loop {
                std::thread::park();
            }
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn a_thread_that_hangs_is_noticed() {
    tracing::subscriber::set_global_default(Hang).unwrap();
    let mut queue = impatient(&queue(1, &Kafka::shared().servers()));
    queue.name = "hung".into();
    stalls(&queue, "does not poll").await;
}
