//! Queues with a retention: only what somebody could have taken for so long goes.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod common;

use std::time::Duration;

use brigade_core::connector::{
    Connector, Consumer, Failed, FailedReason, Incoming, Order, Outgoing, Receipt, Want,
};
use brigade_core::{Message, MessageId};
use brigade_embedded::Embedded;
use common::Place;
use serde_json::json;

const HOUR: Duration = Duration::from_secs(3600);

impl Place {
    /// So much time goes by for what is in the queue.
    fn later(&self, by: Duration) {
        let db = self.database();
        let sql =
            "UPDATE messages SET enqueued_at = enqueued_at - ?1, visible_at = visible_at - ?1";
        assert!(db.execute(sql, [i64::try_from(by.as_millis()).unwrap()]).unwrap() > 0);
    }

    /// What is in the queue, taken or not.
    async fn held(&self) -> Vec<u128> {
        let admin = Embedded.admin(&self.queue, &self.env).await.unwrap();
        let held = admin.peek(0, 100).await.unwrap();
        held.iter().map(|peeked| peeked.message.id.0).collect()
    }
}

/// A queue that keeps messages for a minute.
fn keeping_a_minute() -> Place {
    Place::new(json!({ "retention": "1m" }))
}

fn numbered(n: u128) -> Outgoing {
    Message::new("{}").with_id(MessageId(n)).into()
}

fn of_key(n: u128, key: &'static str) -> Outgoing {
    Message::new("{}").with_id(MessageId(n)).with_key(key).into()
}

async fn taken(consumer: &dyn Consumer, messages: usize) -> Vec<Incoming> {
    consumer.consume(Want { messages, bytes: usize::MAX }).await.unwrap()
}

fn receipts(taken: &[Incoming]) -> Vec<Receipt> {
    taken.iter().map(|incoming| incoming.receipt).collect()
}

#[tokio::test]
async fn what_nobody_took_for_so_long_goes() {
    let place = keeping_a_minute();
    place.put_all(&[numbered(1), numbered(2)]).await;
    place.later(HOUR);
    place.put_all(&[numbered(3)]).await;
    assert_eq!(place.held().await, [3]);
}

#[tokio::test]
async fn what_was_delayed_for_longer_does_not_go_when_it_is_due() {
    let place = keeping_a_minute();
    let delayed = |n| Outgoing { delay: Some(HOUR), ..numbered(n) };
    place.put_all(&[1, 2, 3].map(delayed)).await;
    place.later(HOUR);
    let consumer = place.only_consumer(Order::None).await;
    assert_eq!(taken(consumer.as_ref(), 1).await.len(), 1);
    place.put_all(&[numbered(4)]).await;
    assert_eq!(place.held().await, [1, 2, 3, 4]);
    // It goes when nobody took it for so long from then on.
    place.later(HOUR);
    place.put_all(&[numbered(5)]).await;
    assert_eq!(place.held().await, [1, 5]);
}

#[tokio::test]
async fn what_failed_does_not_go_when_it_comes_back_after_a_longer_back_off() {
    let place = keeping_a_minute();
    place.put_all(&[numbered(1), numbered(2)]).await;
    let consumer = place.only_consumer(Order::None).await;
    let failed = |receipt| Failed {
        receipt,
        reason: FailedReason::Attempt { attempts: 1, error: "no luck".to_owned() },
        delay: HOUR,
    };
    let failed = receipts(&taken(consumer.as_ref(), 2).await).into_iter().map(failed);
    consumer.on_fail(failed.collect()).await.unwrap();
    place.later(HOUR);
    assert_eq!(taken(consumer.as_ref(), 1).await.len(), 1);
    place.put_all(&[numbered(3)]).await;
    assert_eq!(place.held().await, [1, 2, 3]);
}

#[tokio::test]
async fn what_was_worked_on_for_longer_does_not_go_when_it_is_given_back() {
    let place = keeping_a_minute();
    place.put_all(&[numbered(1), numbered(2)]).await;
    let consumer = place.only_consumer(Order::None).await;
    assert_eq!(taken(consumer.as_ref(), 2).await.len(), 2);
    place.later(HOUR);
    consumer.shutdown().await.unwrap();
    place.put_all(&[numbered(3)]).await;
    assert_eq!(place.held().await, [1, 2, 3]);
}

#[tokio::test]
async fn what_waited_behind_its_key_for_longer_does_not_go_when_it_is_its_turn() {
    let place = keeping_a_minute();
    place.put_all(&[1, 2].map(|n| of_key(n, "k"))).await;
    let consumer = place.only_consumer(Order::Key).await;
    let first = taken(consumer.as_ref(), 1).await;
    place.later(HOUR);
    consumer.ack(receipts(&first), Vec::new()).await.unwrap();
    place.put_all(&[of_key(3, "l")]).await;
    assert_eq!(place.held().await, [2, 3]);
}

#[tokio::test]
async fn what_was_given_back_behind_its_key_does_not_go_when_it_is_its_turn() {
    let place = keeping_a_minute();
    place.put_all(&[1, 2].map(|n| of_key(n, "k"))).await;
    let consumer = place.only_consumer(Order::Key).await;
    let run = taken(consumer.as_ref(), 2).await;
    place.later(HOUR);
    let reason = FailedReason::Released;
    let released = Failed { receipt: run[1].receipt, reason, delay: Duration::ZERO };
    consumer.on_fail(vec![released]).await.unwrap();
    consumer.ack(receipts(&run[..1]), Vec::new()).await.unwrap();
    place.put_all(&[of_key(3, "l")]).await;
    assert_eq!(place.held().await, [2, 3]);
}

/// Two messages of a key, of which the first was parked for longer than the queue keeps messages.
async fn parked() -> Place {
    let place = keeping_a_minute();
    place.put_all(&[1, 2].map(|n| of_key(n, "k"))).await;
    let consumer = place.only_consumer(Order::Key).await;
    let first = taken(consumer.as_ref(), 1).await;
    let reason = FailedReason::Parked { attempts: 3, error: "no luck".to_owned() };
    let parked = Failed { receipt: first[0].receipt, reason, delay: Duration::ZERO };
    consumer.on_fail(vec![parked]).await.unwrap();
    place.later(HOUR);
    place
}

#[tokio::test]
async fn what_was_parked_for_longer_does_not_go_when_it_is_released() {
    let place = parked().await;
    let admin = Embedded.admin(&place.queue, &place.env).await.unwrap();
    assert_eq!(admin.release(None).await.unwrap(), 1);
    place.put_all(&[of_key(3, "l")]).await;
    assert_eq!(place.held().await, [1, 2, 3]);
}

#[tokio::test]
async fn what_waited_behind_a_parked_one_does_not_go_when_that_is_deleted() {
    let place = parked().await;
    let admin = Embedded.admin(&place.queue, &place.env).await.unwrap();
    let position = admin.peek(0, 1).await.unwrap()[0].position;
    assert_eq!(admin.delete(&[position]).await.unwrap(), 1);
    place.put_all(&[of_key(3, "l")]).await;
    assert_eq!(place.held().await, [2, 3]);
}

#[tokio::test]
async fn what_nobody_could_take_does_not_go_when_keys_are_kept_in_order_no_more() {
    let place = parked().await;
    let consumer = place.only_consumer(Order::None).await;
    assert_eq!(place.held().await, [1, 2]);
    assert_eq!(taken(consumer.as_ref(), 9).await.len(), 2);
}

#[tokio::test]
async fn what_was_given_back_keeps_nothing_behind_it_from_going() {
    let place = keeping_a_minute();
    place.put_all(&[1, 2, 3].map(numbered)).await;
    let consumer = place.only_consumer(Order::None).await;
    assert_eq!(taken(consumer.as_ref(), 1).await.len(), 1);
    place.later(HOUR);
    consumer.shutdown().await.unwrap();
    place.put_all(&[numbered(4)]).await;
    assert_eq!(place.held().await, [1, 4]);
}

/// However many they are, whatever they wait for, and whichever of them came later.
#[tokio::test]
async fn of_what_nobody_took_for_so_long_a_stage_that_begins_to_read_gets_nothing() {
    const MANY: u128 = 2500;
    let one_key: fn(u128) -> Outgoing = |n| of_key(n, "k");
    let some_keys: fn(u128) -> Outgoing =
        |n| of_key(n, ["a", "b", "c"][usize::try_from(n % 3).unwrap()]);
    let delayed: fn(u128) -> Outgoing =
        |n| Outgoing { delay: Some(Duration::from_secs(60)), ..numbered(n) };
    for (outgoing, order) in [
        (numbered as fn(u128) -> Outgoing, Order::None),
        (delayed, Order::None),
        (some_keys, Order::Key),
        (one_key, Order::Key),
    ] {
        let place = keeping_a_minute();
        place.only_consumer(order).await.shutdown().await.unwrap();
        place.put_all(&(1..=MANY).map(outgoing).collect::<Vec<_>>()).await;
        place.later(HOUR);
        let consumer = place.only_consumer(order).await;
        assert_eq!(place.held().await, [0; 0]);
        place.put_all(&[numbered(MANY + 1)]).await;
        assert_eq!(taken(consumer.as_ref(), 9).await.len(), 1);
    }
}

/// What was in flight comes before it, and is not as old.
#[tokio::test]
async fn what_was_given_back_goes_on_where_a_stage_begins_to_read_and_the_rest_does_not() {
    const GIVEN_BACK: u128 = 1100;
    let place = keeping_a_minute();
    place.put_all(&(1..=2 * GIVEN_BACK).map(numbered).collect::<Vec<_>>()).await;
    let consumer = place.only_consumer(Order::None).await;
    let taken = taken(consumer.as_ref(), usize::try_from(GIVEN_BACK).unwrap()).await;
    assert_eq!(taken.len() as u128, GIVEN_BACK);
    place.later(HOUR);
    consumer.shutdown().await.unwrap();
    place.only_consumer(Order::None).await;
    let admin = Embedded.admin(&place.queue, &place.env).await.unwrap();
    let held = admin.peek(0, 9999).await.unwrap();
    let held: Vec<u128> = held.iter().map(|peeked| peeked.message.id.0).collect();
    assert_eq!(held, (1..=GIVEN_BACK).collect::<Vec<_>>());
}
