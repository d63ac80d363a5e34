//! What the tests of a real broker share.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::Message;
use brigade_core::connector::{
    Connector as _, ConnectorEnv, ConnectorError, Consumer, Incoming, Lag, Order, Outgoing,
    Produced, Producer, QueueAdmin, QueueSpec, Reader, Receipt, Want,
};
use brigade_core::state::StoreOp;
use brigade_kafka::Kafka as Connector;
use brigade_memory::MemoryState;
use brigade_testkit::servers::Kafka;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use serde_json::{Value, json};

pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn queue(partitions: u32, servers: &str) -> QueueSpec {
    let topic = format!("queue-{:016x}", fastrand::u64(..));
    let settings = json!({
        "topic": topic,
        "group": topic,
        "create": { "partitions": partitions },
        "revoke_within": "10s",
        "config": {
            "bootstrap.servers": servers,
            // Nobody waits for its end, and a machine that stands still for a while takes nothing from a member.
            "session.timeout.ms": 60_000,
            "heartbeat.interval.ms": 200,
        },
    });
    QueueSpec::new("suite", "queue", settings)
}

pub(crate) fn with(queue: &QueueSpec, name: &str, value: impl Into<Value>) -> QueueSpec {
    let mut queue = queue.clone();
    queue.settings["config"][name] = value.into();
    queue
}

/// With the protocol of groups in which the broker assigns; it has the timeouts, too.
pub(crate) fn newer(queue: &QueueSpec) -> QueueSpec {
    let mut queue = with(queue, "group.protocol", "consumer");
    let config = queue.settings["config"].as_object_mut().unwrap();
    config.retain(|name, _| !["session.timeout.ms", "heartbeat.interval.ms"].contains(&&**name));
    queue
}

pub(crate) fn env() -> ConnectorEnv {
    ConnectorEnv { state: MemoryState::new() }
}

pub(crate) async fn consumer(queue: &QueueSpec) -> Arc<dyn Consumer> {
    patiently(async || try_consumer(queue).await).await
}

/// For those who want to know why it cannot be opened.
pub(crate) async fn try_consumer(queue: &QueueSpec) -> Result<Arc<dyn Consumer>, ConnectorError> {
    let reader = Reader { stage: "suite".into(), group: "".into(), order: Order::None };
    Connector.consumer(queue, &reader, &env()).await
}

pub(crate) async fn admin(queue: &QueueSpec) -> Arc<dyn QueueAdmin> {
    patiently(async || Connector.admin(queue, &env()).await).await
}

pub(crate) async fn lag(member: &Arc<dyn Consumer>) -> Lag {
    patiently(async || member.lag().await).await
}

pub(crate) async fn producer(queue: &QueueSpec) -> Arc<dyn Producer> {
    patiently(async || Connector.producer(queue, &env()).await).await
}

/// Makes a topic that takes records of some 2,000 bytes at most.
pub(crate) async fn make_narrow(topic: &str) {
    let servers = Kafka::shared().servers();
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
    let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1)).set("max.message.bytes", "2000");
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for made in admin.create_topics([&new], &options).await.unwrap() {
        made.unwrap();
    }
}

pub(crate) fn numbered(n: u64) -> Outgoing {
    Message::new(n.to_string()).with_key(format!("k{}", n % 50)).into()
}

pub(crate) fn number(incoming: &Incoming) -> u64 {
    std::str::from_utf8(incoming.message.payload.as_deref().unwrap()).unwrap().parse().unwrap()
}

pub(crate) async fn put(producer: &Arc<dyn Producer>, numbers: std::ops::Range<u64>) {
    let batch: Vec<Outgoing> = numbers.map(numbered).collect();
    for outcome in producer.produce(&batch).await.unwrap() {
        assert!(matches!(outcome, Produced::Confirmed), "{outcome:?}");
    }
}

/// A broker that has just started, or a topic that was just made, may not be ready.
pub(crate) async fn patiently<T>(ask: impl AsyncFn() -> Result<T, ConnectorError>) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(error.is_transient() && begun.elapsed() < PATIENCE, "{error}"),
        }
    }
}

/// What comes within a moment. A connection that breaks meanwhile is mended.
pub(crate) async fn take(consumer: &Arc<dyn Consumer>, max: usize) -> Vec<Incoming> {
    let want = Want { messages: max, bytes: usize::MAX };
    let taken = tokio::time::timeout(Duration::from_millis(200), consumer.consume(want)).await;
    match taken.unwrap_or(Ok(Vec::new())) {
        Err(error) if error.is_transient() => Vec::new(),
        taken => taken.unwrap(),
    }
}

/// Takes exactly so many; they have to come.
pub(crate) async fn take_all(consumer: &Arc<dyn Consumer>, n: usize) -> Vec<Incoming> {
    let (begun, mut all) = (Instant::now(), Vec::new());
    while all.len() < n && begun.elapsed() < PATIENCE {
        all.extend(take(consumer, n - all.len()).await);
    }
    assert_eq!(all.len(), n);
    all
}

pub(crate) async fn ack(consumer: &Arc<dyn Consumer>, taken: &[Incoming]) -> usize {
    taken.len() - settle(consumer, taken, Vec::new()).await.len()
}

/// Acks, and answers with what stood no more.
pub(crate) async fn settle(
    consumer: &Arc<dyn Consumer>,
    taken: &[Incoming],
    ops: Vec<StoreOp>,
) -> Vec<Receipt> {
    let receipts: Vec<Receipt> = taken.iter().map(|incoming| incoming.receipt).collect();
    loop {
        match consumer.ack(receipts.clone(), ops.clone()).await {
            Ok(acked) => return acked.fenced,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}
