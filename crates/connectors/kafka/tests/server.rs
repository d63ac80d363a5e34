//! What the suite does not ask: members that come and go, what is wrong with a broker or a queue,
//! TLS and passwords.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::Message;
use brigade_core::connector::{
    Connector as _, ConnectorEnv, ConnectorError, Consumer, Incoming, Order, Outgoing, Produced,
    Producer, QueueSpec, Reader, Want,
};
use brigade_kafka::Kafka as Connector;
use brigade_memory::MemoryState;
use brigade_testkit::servers::Kafka;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

fn queue(partitions: u32, servers: &str) -> QueueSpec {
    let topic = format!("queue-{:016x}", fastrand::u64(..));
    let settings = json!({
        "topic": topic,
        "group": topic,
        "create": { "partitions": partitions },
        "revoke_within": "2s",
        "config": {
            "bootstrap.servers": servers,
            "session.timeout.ms": 3000,
            "heartbeat.interval.ms": 200,
        },
    });
    QueueSpec::new("suite", "queue", settings)
}

fn with(queue: &QueueSpec, name: &str, value: impl Into<Value>) -> QueueSpec {
    let mut queue = queue.clone();
    queue.settings["config"][name] = value.into();
    queue
}

fn env() -> ConnectorEnv {
    ConnectorEnv { state: MemoryState::new() }
}

async fn consumer(queue: &QueueSpec) -> Result<Arc<dyn Consumer>, ConnectorError> {
    let reader = Reader { stage: "suite".into(), group: "".into(), order: Order::None };
    Connector.consumer(queue, &reader, &env()).await
}

async fn producer(queue: &QueueSpec) -> Arc<dyn Producer> {
    Connector.producer(queue, &env()).await.unwrap()
}

fn numbered(n: u64) -> Outgoing {
    Message::new(n.to_string()).with_key(format!("k{}", n % 50)).into()
}

fn number(incoming: &Incoming) -> u64 {
    std::str::from_utf8(incoming.message.payload.as_deref().unwrap()).unwrap().parse().unwrap()
}

async fn put(producer: &Arc<dyn Producer>, numbers: std::ops::Range<u64>) {
    let batch: Vec<Outgoing> = numbers.map(numbered).collect();
    for outcome in producer.produce(&batch).await.unwrap() {
        assert!(matches!(outcome, Produced::Confirmed), "{outcome:?}");
    }
}

/// What comes within a moment.
async fn take(consumer: &Arc<dyn Consumer>, max: usize) -> Vec<Incoming> {
    let want = Want { messages: max, bytes: usize::MAX };
    let taken = tokio::time::timeout(Duration::from_millis(200), consumer.consume(want)).await;
    taken.unwrap_or(Ok(Vec::new())).unwrap()
}

async fn ack(consumer: &Arc<dyn Consumer>, taken: &[Incoming]) -> usize {
    let receipts = taken.iter().map(|incoming| incoming.receipt).collect();
    loop {
        match consumer.ack(Clone::clone(&receipts), Vec::new()).await {
            Ok(acked) => return taken.len() - acked.fenced.len(),
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}

/// What is resolved beyond the committed offset is known to the next member: it is not handled again
/// though a message before it is unresolved.
#[tokio::test]
async fn only_what_is_unresolved_comes_again_to_the_next_member() {
    let queue = queue(1, &Kafka::shared().servers());
    put(&producer(&queue).await, 0..1000).await;
    let first = consumer(&queue).await.unwrap();
    let mut taken = Vec::new();
    while taken.len() < 1000 {
        taken.extend(take(&first, 1000).await);
    }
    let (left, done): (Vec<Incoming>, Vec<Incoming>) =
        taken.into_iter().partition(|incoming| number(incoming) % 100 == 7);
    assert_eq!(ack(&first, &done).await, 990);
    // Killed, not stopped.
    drop(first);
    let next = consumer(&queue).await.unwrap();
    let mut again = BTreeSet::new();
    while again.len() < left.len() {
        again.extend(take(&next, 1000).await.iter().map(number));
    }
    assert_eq!(again, left.iter().map(number).collect());
    assert!(take(&next, 1).await.is_empty(), "what is resolved came again");
}

/// Members join and leave: no message is lost, what a leaving member had in flight is resolved before
/// its partitions go, and each key's first occurrences are in order.
#[tokio::test]
async fn members_come_and_go_and_nothing_is_lost() {
    const MESSAGES: u64 = 20_000;
    let queue = queue(8, &Kafka::shared().servers());
    let producer = producer(&queue).await;
    let mut members = vec![consumer(&queue).await.unwrap()];
    let mut random = fastrand::Rng::with_seed(3);
    let (mut put_so_far, mut times) = (0, BTreeMap::<u64, u32>::new());
    let mut last_of_key = BTreeMap::<u64, u64>::new();
    let (begun, mut changes) = (Instant::now(), 0);
    while (times.len() as u64) < MESSAGES {
        assert!(begun.elapsed() < 3 * PATIENCE, "{} of {MESSAGES}", times.len());
        if put_so_far < MESSAGES {
            put(&producer, put_so_far..put_so_far + 500).await;
            put_so_far += 500;
        }
        for member in &members {
            let taken = take(member, 400).await;
            for incoming in &taken {
                let n = number(incoming);
                let first = *times.entry(n).and_modify(|times| *times += 1).or_insert(1) == 1;
                if first {
                    let before = last_of_key.insert(n % 50, n);
                    assert!(before.is_none_or(|before| before < n), "{n} after {before:?}");
                }
            }
            ack(member, &taken).await;
        }
        match random.u32(..3) {
            0 if members.len() < 4 => members.push(consumer(&queue).await.unwrap()),
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
    // Every member acks what it takes before it leaves.
    assert_eq!(twice, 0);
}

/// A component that works for longer than the group waits for a poll keeps its partitions.
#[tokio::test]
async fn a_slow_component_does_not_trip_the_poll_interval() {
    let slow = with(&queue(1, &Kafka::shared().servers()), "max.poll.interval.ms", 3000);
    put(&producer(&slow).await, 0..5000).await;
    let member = consumer(&slow).await.unwrap();
    let mut taken = Vec::new();
    while taken.is_empty() {
        taken = take(&member, 10).await;
    }
    let begun = Instant::now();
    // Nobody asks for more; what is fetched ahead fills its bound.
    while begun.elapsed() < Duration::from_secs(5) {
        tokio::task::yield_now().await;
    }
    assert_eq!(ack(&member, &taken).await, taken.len(), "the partition is still its own");
}

/// Partitions that go while nobody asks for messages, and come back later, are read again.
#[tokio::test]
async fn partitions_that_come_back_are_read_though_they_were_paused() {
    const MESSAGES: u64 = 8000;
    let queue = queue(2, &Kafka::shared().servers());
    put(&producer(&queue).await, 0..MESSAGES).await;
    let first = consumer(&queue).await.unwrap();
    let mut seen = BTreeSet::new();
    while seen.is_empty() {
        let taken = take(&first, 1).await;
        seen.extend(taken.iter().map(number));
        ack(&first, &taken).await;
    }
    // Long enough for what is fetched ahead to fill its bound, and to be paused.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        tokio::task::yield_now().await;
    }
    let second = consumer(&queue).await.unwrap();
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

fn told<T>(error: Result<T, ConnectorError>, parts: &[&str]) {
    let error = error.err().expect("it goes wrong");
    for part in parts {
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    }
    assert!(error.is_transient(), "somebody may mend it: {error}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_told_with_its_address() {
    let queue = queue(1, "127.0.0.1:1");
    told(consumer(&queue).await, &["queue `queue`", "127.0.0.1:1", "bootstrap.servers"]);
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_told_with_what_to_do() {
    let mut queue = queue(1, &Kafka::shared().servers());
    queue.settings.as_object_mut().unwrap().remove("create");
    let topic = queue.settings["topic"].as_str().unwrap().to_owned();
    told(consumer(&queue).await, &[&topic, "make the topic", "create:"]);
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused_and_the_others_are_not() {
    let queue = queue(1, &Kafka::shared().servers());
    let large: Outgoing = Message::new(vec![b'x'; 2 << 20]).into();
    let outcomes = producer(&queue).await.produce(&[numbered(1), large, numbered(2)]).await;
    let outcomes = outcomes.unwrap();
    assert!(matches!(outcomes[0], Produced::Confirmed), "{outcomes:?}");
    assert!(matches!(outcomes[2], Produced::Confirmed), "{outcomes:?}");
    let Produced::Rejected(why) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert!(why.message.contains("message.max.bytes"), "{}", why.message);
    // Below the client's limit it is the broker's that counts.
    let wider = with(&queue, "message.max.bytes", 4 << 20);
    let large: Outgoing = Message::new(vec![b'x'; 2 << 20]).into();
    let outcomes = producer(&wider).await.produce(&[large]).await.unwrap();
    assert!(matches!(outcomes[0], Produced::Rejected(_)), "{outcomes:?}");
}

#[tokio::test]
async fn a_topic_that_is_deleted_in_use_is_told_and_read_again_when_it_is_back() {
    let queue = queue(1, &Kafka::shared().servers());
    put(&producer(&queue).await, 0..10).await;
    let member = consumer(&queue).await.unwrap();
    let mut taken = Vec::new();
    while taken.len() < 10 {
        taken.extend(take(&member, 10).await);
    }
    assert_eq!(ack(&member, &taken).await, 10);
    delete_topic(&queue).await;
    // Opening a producer makes it again; the old offsets mean nothing any more.
    let begun = Instant::now();
    let producer = loop {
        match Connector.producer(&queue, &env()).await {
            Ok(producer) => break producer,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    };
    put(&producer, 100..105).await;
    let mut again = BTreeSet::new();
    while again.len() < 5 {
        assert!(begun.elapsed() < PATIENCE, "{again:?}");
        let want = Want { messages: 10, bytes: usize::MAX };
        match tokio::time::timeout(Duration::from_millis(200), member.consume(want)).await {
            Ok(Ok(taken)) => {
                again.extend(taken.iter().map(number));
                ack(&member, &taken).await;
            }
            Ok(Err(error)) => assert!(error.is_transient(), "{error}"),
            Err(_) => {}
        }
    }
    assert_eq!(again, (100..105).collect());
}

async fn delete_topic(queue: &QueueSpec) {
    let mut config = rdkafka::ClientConfig::new();
    config
        .set("bootstrap.servers", queue.settings["config"]["bootstrap.servers"].as_str().unwrap());
    let admin: rdkafka::admin::AdminClient<_> = config.create().unwrap();
    let topic = queue.settings["topic"].as_str().unwrap();
    let options = rdkafka::admin::AdminOptions::new().operation_timeout(Some(PATIENCE));
    admin.delete_topics(&[topic], &options).await.unwrap()[0].as_ref().unwrap();
}

/// A message goes through and back.
async fn works(queue: &QueueSpec) {
    put(&producer(queue).await, 0..10).await;
    let member = consumer(queue).await.unwrap();
    let (mut seen, begun) = (BTreeSet::new(), Instant::now());
    while seen.len() < 10 {
        assert!(begun.elapsed() < PATIENCE, "{seen:?}");
        let taken = take(&member, 10).await;
        seen.extend(taken.iter().map(number));
        ack(&member, &taken).await;
    }
}

#[tokio::test]
async fn tls_and_scram() {
    let server = Kafka::start_secured();
    let ca = server.certificate().display().to_string();
    let tls = queue(1, &server.tls_servers().unwrap());
    let tls = with(&with(&tls, "security.protocol", "ssl"), "ssl.ca.location", ca.clone());
    works(&tls).await;
    let sasl = queue(1, &server.sasl_servers().unwrap());
    let sasl = with(&with(&sasl, "security.protocol", "sasl_ssl"), "ssl.ca.location", ca);
    let sasl = with(&with(&sasl, "sasl.mechanism", "SCRAM-SHA-256"), "sasl.username", "alice");
    works(&with(&sasl, "sasl.password", "secret")).await;
    let wrong = with(&sasl, "sasl.password", "wr0ng-passw0rd");
    let error = consumer(&wrong).await.err().unwrap();
    assert!(!error.to_string().contains("wr0ng"), "no secret is told: {error}");
    told::<()>(Err(error), &["queue `queue`", "sasl.password"]);
}
