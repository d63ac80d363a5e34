//! Clocks that are set back: only what is delayed waits for its time.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod common;

use std::time::Duration;

use brigade_core::connector::{Consumer, Failed, FailedReason, Incoming, Order, Outgoing, Want};
use brigade_core::{Message, MessageId};
use common::Place;
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3600);

impl Place {
    async fn with(batch: &[Outgoing]) -> Self {
        let place = Self::new(json!({}));
        place.put_all(batch).await;
        place
    }

    /// The clock is an hour earlier than it was for what is in the queue.
    fn set_back(&self) {
        let db = self.database();
        let sql =
            "UPDATE messages SET enqueued_at = enqueued_at + ?1, visible_at = visible_at + ?1";
        assert!(db.execute(sql, [i64::try_from(HOUR.as_millis()).unwrap()]).unwrap() > 0);
    }
}

fn of_key(n: u128) -> Outgoing {
    Message::new("{}").with_id(MessageId(n)).with_key("k").into()
}

/// What can be taken now: nothing here waits for anything that comes later.
async fn taken(consumer: &dyn Consumer, messages: usize) -> Vec<Incoming> {
    let lag = consumer.lag().await.unwrap();
    assert!(lag.delayed == Some(0) && lag.ready > Some(0), "{lag:?}");
    consumer.consume(Want { messages, bytes: usize::MAX }).await.unwrap()
}

fn numbers(taken: &[Incoming]) -> Vec<u128> {
    taken.iter().map(|incoming| incoming.message.id.0).collect()
}

async fn ack(consumer: &dyn Consumer, taken: &[Incoming]) {
    let receipts = taken.iter().map(|incoming| incoming.receipt).collect();
    assert!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced.is_empty());
}

#[tokio::test]
async fn a_key_goes_on_when_the_clock_is_set_back() {
    let place = Place::with(&[1, 2, 3, 4].map(of_key)).await;
    place.set_back();
    let consumer = place.only_consumer(Order::Key).await;
    let first = taken(consumer.as_ref(), 1).await;
    ack(consumer.as_ref(), &first).await;
    let run = taken(consumer.as_ref(), 2).await;
    assert_eq!(numbers(&run), [2, 3], "a run is not cut short");
    ack(consumer.as_ref(), &run).await;
    assert_eq!(numbers(&taken(consumer.as_ref(), 9).await), [4]);
}

#[tokio::test]
async fn what_was_given_back_goes_on_when_the_clock_is_set_back() {
    let place = Place::with(&[1, 2, 3].map(of_key)).await;
    let consumer = place.only_consumer(Order::Key).await;
    let run = taken(consumer.as_ref(), 9).await;
    let failed =
        |at: usize, reason| Failed { receipt: run[at].receipt, reason, delay: Duration::ZERO };
    let attempt = FailedReason::Attempt { attempts: 1, error: "no luck".to_owned() };
    consumer.on_fail(vec![failed(1, attempt), failed(2, FailedReason::Released)]).await.unwrap();
    place.set_back();
    ack(consumer.as_ref(), &run[..1]).await;
    assert_eq!(numbers(&taken(consumer.as_ref(), 9).await), [2, 3]);
}

#[tokio::test]
async fn keys_that_are_kept_in_order_no_more_go_on_when_the_clock_is_set_back() {
    let place = Place::with(&[1, 2, 3].map(of_key)).await;
    drop(place.only_consumer(Order::Key).await);
    place.set_back();
    let consumer = place.only_consumer(Order::None).await;
    assert_eq!(numbers(&taken(consumer.as_ref(), 9).await), [1, 2, 3]);
}

#[tokio::test]
async fn what_is_delayed_behind_its_key_waits_for_its_time() {
    let delayed = Outgoing { delay: Some(HOUR), ..of_key(2) };
    let place = Place::with(&[of_key(1), delayed, of_key(3)]).await;
    let consumer = place.only_consumer(Order::Key).await;
    let first = taken(consumer.as_ref(), 9).await;
    assert_eq!(numbers(&first), [1]);
    ack(consumer.as_ref(), &first).await;
    let lag = consumer.lag().await.unwrap();
    assert_eq!(lag.delayed, Some(1), "{lag:?}");
}
