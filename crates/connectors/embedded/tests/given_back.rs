//! What a consumer gives back when it ends, though the store takes nothing at that moment.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod common;

use std::time::Duration;

use brigade_core::connector::{Consumer, Incoming, Order, Want};
use brigade_core::{Message, MessageId};
use common::Place;
use serde_json::json;

impl Place {
    async fn put(&self, n: u128) {
        let message = Message::new("{}").with_id(MessageId(n)).with_key("k");
        self.put_all(&[message.into()]).await;
    }

    fn change(&self, sql: &str) {
        self.database().execute_batch(sql).unwrap();
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
        let place = Place::new(json!({}));
        place.put(1).await;
        let consumer = place.only_consumer(order).await;
        assert_eq!(taken(consumer.as_ref()).await[0].message.id, MessageId(1));
        place.change(REFUSE);
        if shuts_down {
            consumer.shutdown().await.unwrap_err();
        }
        drop(consumer);
        // It comes after what the consumer gave back when it was dropped.
        place.put(2).await;
        let next = place.only_consumer(order).await;
        place.change("DROP TRIGGER refuse");
        // Without an order the second may come first.
        let mut first = taken(next.as_ref()).await[0].message.id;
        if order == Order::None && first == MessageId(2) {
            first = taken(next.as_ref()).await[0].message.id;
        }
        assert_eq!(first, MessageId(1));
    }
}
