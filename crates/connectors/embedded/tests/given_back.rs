//! What a consumer gives back when it ends, though the store takes nothing at that moment.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{
    Connector, ConnectorEnv, Consumer, Incoming, Order, QueueSpec, Reader, Want,
};
use brigade_core::{Message, MessageId};
use brigade_embedded::{Embedded, Options, Store};
use serde_json::json;

struct Place {
    env: ConnectorEnv,
    queue: QueueSpec,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = Store::open(directory.path(), Options::default()).unwrap();
        let queue = QueueSpec::new("p", "q", json!({}));
        Self { env: ConnectorEnv { state }, queue, directory }
    }

    async fn consumer(&self, order: Order) -> Arc<dyn Consumer> {
        let reader = Reader { stage: "s".into(), group: "".into(), order };
        Embedded.consumer(&self.queue, &reader, &self.env).await.unwrap()
    }

    async fn put(&self, n: u128) {
        let producer = Embedded.producer(&self.queue, &self.env).await.unwrap();
        let message = Message::new("{}").with_id(MessageId(n)).with_key("k");
        producer.produce(&[message.into()]).await.unwrap().remove(0).confirmed().unwrap();
    }

    fn change(&self, sql: &str) {
        let db = rusqlite::Connection::open(self.directory.path().join("brigade.db")).unwrap();
        db.execute_batch(sql).unwrap();
    }
}

const REFUSE: &str = "CREATE TRIGGER refuse BEFORE UPDATE ON messages WHEN OLD.state = 2
                      BEGIN SELECT RAISE(ABORT, 'not now'); END";

async fn taken(consumer: &dyn Consumer) -> Vec<Incoming> {
    let taken = consumer.consume(Want { messages: 1, bytes: usize::MAX });
    tokio::time::timeout(Duration::from_secs(60), taken).await.expect("it is handed out").unwrap()
}

/// Nobody else would: its process lives, so others leave its leases alone.
#[tokio::test]
async fn what_could_not_be_given_back_is_given_back_later() {
    for (order, shuts_down) in [(Order::None, true), (Order::Key, true), (Order::Queue, false)] {
        let place = Place::new();
        place.put(1).await;
        let consumer = place.consumer(order).await;
        assert_eq!(taken(consumer.as_ref()).await[0].message.id, MessageId(1));
        place.change(REFUSE);
        if shuts_down {
            consumer.shutdown().await.unwrap_err();
        }
        drop(consumer);
        // It comes after what the consumer gave back when it was dropped.
        place.put(2).await;
        let next = place.consumer(order).await;
        place.change("DROP TRIGGER refuse");
        // Without an order the second may come first.
        let mut first = taken(next.as_ref()).await[0].message.id;
        if order == Order::None && first == MessageId(2) {
            first = taken(next.as_ref()).await[0].message.id;
        }
        assert_eq!(first, MessageId(1));
    }
}
