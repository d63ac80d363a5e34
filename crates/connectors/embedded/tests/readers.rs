//! Queues whose readers become other ones: what is there goes along, in the order of its keys.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{
    Connector, ConnectorEnv, Consumer, Failed, FailedReason, Incoming, Order, QueueAdmin,
    QueueSpec, Reader, Want,
};
use brigade_core::{Message, MessageId};
use brigade_embedded::{Embedded, Options, Store};
use serde_json::json;

struct Place {
    env: ConnectorEnv,
    queue: QueueSpec,
    _directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = Store::open(directory.path(), Options::default()).unwrap();
        let queue = QueueSpec::new("p", "q", json!({}));
        Self { env: ConnectorEnv { state }, queue, _directory: directory }
    }

    /// The queue as a file has it in which these stages read it.
    fn read_by(&self, stages: &[&str]) -> QueueSpec {
        let mut queue = self.queue.clone();
        if stages.len() > 1 {
            queue.groups = stages.iter().map(|stage| (*stage).into()).collect();
        }
        queue
    }

    async fn consumer(&self, stage: &str, stages: &[&str], order: Order) -> Arc<dyn Consumer> {
        let queue = self.read_by(stages);
        let group = if stages.len() > 1 { stage.into() } else { "".into() };
        let reader = Reader { stage: stage.into(), group, order };
        Embedded.consumer(&queue, &reader, &self.env).await.unwrap()
    }

    async fn admin(&self) -> Arc<dyn QueueAdmin> {
        Embedded.admin(&self.queue, &self.env).await.unwrap()
    }

    /// Messages by the only reader, each with its key.
    async fn put(&self, messages: &[(u128, &'static str)]) {
        let producer = Embedded.producer(&self.queue, &self.env).await.unwrap();
        let batch: Vec<_> = messages
            .iter()
            .map(|(n, key)| Message::new("{}").with_id(MessageId(*n)).with_key(*key).into())
            .collect();
        for produced in producer.produce(&batch).await.unwrap() {
            produced.confirmed().unwrap();
        }
    }

    /// Two stages that read it by key, then only one of them, to which three messages come.
    async fn two_then_one() -> (Self, Arc<dyn Consumer>) {
        let place = Self::new();
        for stage in BOTH {
            place.consumer(stage, BOTH, Order::Key).await.shutdown().await.unwrap();
        }
        let only = place.consumer("a", &["a"], Order::Key).await;
        place.put(&[(1, "x"), (2, "x"), (3, "y")]).await;
        (place, only)
    }

    /// The same, where the only reader has parked the first message and is gone.
    async fn parked() -> Self {
        let (place, only) = Self::two_then_one().await;
        let first = taken(only.as_ref(), 1).await;
        let reason = FailedReason::Parked { attempts: 3, error: "no luck".to_owned() };
        let parked = Failed { receipt: first[0].receipt, reason, delay: Duration::ZERO };
        only.on_fail(vec![parked]).await.unwrap();
        only.shutdown().await.unwrap();
        place
    }
}

const BOTH: &[&str] = &["a", "b"];

async fn taken(consumer: &dyn Consumer, messages: usize) -> Vec<Incoming> {
    consumer.consume(Want { messages, bytes: usize::MAX }).await.unwrap()
}

fn numbers(taken: &[Incoming]) -> Vec<u128> {
    taken.iter().map(|incoming| incoming.message.id.0).collect()
}

#[tokio::test]
async fn what_is_shared_out_again_keeps_the_order_of_its_keys() {
    let (place, only) = Place::two_then_one().await;
    only.shutdown().await.unwrap();
    for stage in BOTH {
        let first = place.consumer(stage, BOTH, Order::Key).await;
        assert_eq!(numbers(&taken(first.as_ref(), 1).await), [1]);
        let second = place.consumer(stage, BOTH, Order::Key).await;
        assert_eq!(numbers(&taken(second.as_ref(), 9).await), [3], "somebody works on `x`");
    }
}

#[tokio::test]
async fn what_is_parked_stays_so_when_it_is_shared_out() {
    let place = Place::parked().await;
    let consumer = place.consumer("a", BOTH, Order::Key).await;
    assert_eq!(numbers(&taken(consumer.as_ref(), 9).await), [3]);
    let peeked = place.admin().await.peek(0, 9).await.unwrap();
    let parked = peeked.iter().filter(|peeked| peeked.parked.as_deref() == Some("no luck"));
    assert_eq!(parked.map(|peeked| peeked.message.id.0).collect::<Vec<_>>(), [1, 1], "one a stage");
    assert_eq!(place.admin().await.release(None).await.unwrap(), 2);
    assert_eq!(numbers(&taken(consumer.as_ref(), 9).await), [1, 2]);
    // Without the order of keys nothing is parked.
    let place = Place::parked().await;
    let consumer = place.consumer("a", BOTH, Order::None).await;
    assert_eq!(numbers(&taken(consumer.as_ref(), 9).await), [1, 2, 3]);
}
