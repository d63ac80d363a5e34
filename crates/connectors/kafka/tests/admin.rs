//! What is deleted from a topic, and how it is counted.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use brigade_core::connector::QueueSpec;
use brigade_testkit::servers::Kafka;
use common::{PATIENCE, admin, patiently, queue};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

/// Puts records on the queue's topic, each in a transaction of its own: a marker follows each.
fn put_in_transactions(queue: &QueueSpec, n: usize) {
    let topic = queue.settings["topic"].as_str().unwrap();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", Kafka::shared().servers()).set("transactional.id", topic);
    let client: BaseProducer = config.create().unwrap();
    client.init_transactions(PATIENCE).unwrap();
    for n in 0..n {
        client.begin_transaction().unwrap();
        let payload = n.to_string();
        client.send(BaseRecord::<(), str>::to(topic).payload(&payload)).unwrap();
        client.commit_transaction(PATIENCE).unwrap();
    }
}

/// A marker is at an offset of its own, which nobody deletes and nobody waits for.
#[tokio::test]
async fn what_was_put_in_transactions_counts_once_when_it_is_deleted() {
    let queue = queue(1, &Kafka::shared().servers());
    let admin = admin(&queue).await;
    let to = queue.clone();
    tokio::task::spawn_blocking(move || put_in_transactions(&to, 3)).await.unwrap();
    let peeked = patiently(async || admin.peek(0, 10).await).await;
    let positions: Vec<u64> = peeked.iter().map(|peeked| peeked.position).collect();
    assert_eq!(positions.len(), 3);
    assert_eq!(patiently(async || admin.delete(&positions[2..]).await).await, 1);
    assert_eq!(patiently(async || admin.delete(&positions[2..]).await).await, 0, "it is gone");
    assert_eq!(patiently(async || admin.delete(&positions[..1]).await).await, 1);
    let left = patiently(async || admin.peek(0, 10).await).await;
    assert_eq!(left.iter().map(|peeked| peeked.position).collect::<Vec<_>>(), positions[1..2]);
    assert_eq!(patiently(async || admin.delete(&positions).await).await, 1);
    assert!(patiently(async || admin.peek(0, 10).await).await.is_empty());
}
