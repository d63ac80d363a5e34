//! What is deleted from a topic, how it is counted, and when it cannot be.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use brigade_core::connector::{ErrorKind, QueueSpec};
use brigade_testkit::servers::Kafka;
use common::{PATIENCE, admin, consumer, numbered, patiently, producer, put, queue, take_all};
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
    let letters = async |n: usize| -> Vec<u64> {
        let to = queue.clone();
        tokio::task::spawn_blocking(move || put_in_transactions(&to, n)).await.unwrap();
        let peeked = patiently(async || admin.peek(0, 10).await).await;
        assert_eq!(peeked.len(), n);
        peeked.iter().map(|peeked| peeked.position).collect()
    };
    let delete = async |positions: &[u64]| patiently(async || admin.delete(positions).await).await;
    let only = letters(1).await;
    assert_eq!(delete(&only).await, 1, "the marker after it is not there to be deleted");
    assert_eq!(delete(&only).await, 0, "it is gone");
    let three = letters(3).await;
    assert_eq!(delete(&three[2..]).await, 1);
    assert_eq!(delete(&three).await, 2);
    assert!(patiently(async || admin.peek(0, 10).await).await.is_empty());
}

/// Its members may read another topic: the broker asks only whether there are any.
#[tokio::test]
async fn that_nothing_can_be_deleted_is_told_before_it_is_tried() {
    let letters = queue(1, &Kafka::shared().servers());
    let mut read = queue(1, &Kafka::shared().servers());
    read.settings["group"] = letters.settings["group"].clone();
    put(&producer(&letters).await, 0..3).await;
    let producing = producer(&read).await;
    let outcomes = producing.produce(&[numbered(7)]).await.unwrap();
    outcomes.into_iter().for_each(|one| one.confirmed().unwrap());
    let admin = admin(&letters).await;
    let member = consumer(&read).await;
    take_all(&member, 1).await;
    let error = patiently(async || match admin.can_delete().await {
        Err(error) if error.kind() == ErrorKind::Permanent => Ok(error),
        Err(error) => Err(error),
        Ok(()) => panic!("the group has a member"),
    });
    let error = error.await;
    let group = letters.settings["group"].as_str().unwrap();
    let told = format!("the group has members (`{group}`)");
    assert!(error.to_string().contains(&told), "{error}");
    member.shutdown().await.unwrap();
    drop(member);
    patiently(async || admin.can_delete().await).await;
    assert_eq!(patiently(async || admin.peek(0, 10).await).await.len(), 3, "all are there");
    assert_eq!(patiently(async || admin.purge().await).await, 3);
}
