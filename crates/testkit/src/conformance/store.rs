//! `settle_together`: acks and writes to the same store are one transaction.

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{Consumer, Order, Outgoing};
use brigade_core::state::StoreOp;
use bytes::Bytes;

use super::attempt;
use crate::fixture::{Fixture, ack, expect_nothing, number, numbered, take_all};

const SPACE: &str = "suite";

fn write() -> StoreOp {
    StoreOp::Put { space: SPACE.into(), key: "key".into(), value: Bytes::from_static(b"value") }
}

/// A queue of the same connector that outputs go to.
fn beside(fixture: &Fixture) -> Fixture {
    fixture.with(|queue| {
        queue.name = "beside".into();
        for place in ["path", "topic"] {
            if let Some(place) = queue.settings.get_mut(place).filter(|place| place.is_string()) {
                *place = format!("{}.beside", place.as_str().unwrap_or_default()).into();
            }
        }
    })
}

/// Whether the state is in the consumer's store, so that it can be written with the acks.
fn with_state(fixture: &Fixture, consumer: &Arc<dyn Consumer>) -> bool {
    consumer.store() == Some(fixture.env.state.store_id())
}

/// The ack, a state write (where the state is in the consumer's store) and what a producer staged
/// are all there afterwards.
pub async fn an_ack_and_its_writes_are_one(fixture: &Fixture) {
    if !fixture.features().settle_together {
        return;
    }
    fixture.put(vec![numbered(1)]).await;
    let consumer = fixture.consumer("", Order::None).await;
    if consumer.store().is_none() {
        return;
    }
    let beside = beside(fixture);
    let producer = beside.producer().await;
    assert_eq!(producer.store(), consumer.store(), "one store");
    let taken = take_all(&consumer, 1).await;
    let staged = producer.stage(&[Outgoing::from(numbered(7))]).await.expect("it is prepared");
    let with_state = with_state(fixture, &consumer);
    let ops = staged.ops.into_iter().chain(with_state.then(write)).collect();
    let acked = consumer.ack(vec![taken[0].receipt], ops).await.expect("one transaction");
    assert_eq!(acked.fenced, []);
    if let Some(hold) = staged.hold {
        hold.commit();
    }
    producer.shutdown().await.expect("it closes");
    let value = fixture.env.state.load(SPACE, "key").await.expect("the state can be read");
    assert_eq!(value.as_deref(), with_state.then_some(&b"value"[..]));
    let output = beside.consumer("", Order::None).await;
    let out = take_all(&output, 1).await;
    assert_eq!(number(&out[0]), 7);
    ack(&output, &out).await;
    drop(consumer);
    expect_nothing(&fixture.consumer("", Order::None).await).await;
}

/// With a receipt that does not stand nothing is written, and what was prepared can be undone.
pub async fn a_lost_lease_writes_nothing(fixture: &Fixture) {
    if !fixture.features().settle_together {
        return;
    }
    fixture.put(vec![numbered(1), numbered(2)]).await;
    let consumer = fixture.consumer("", Order::None).await;
    if consumer.store().is_none() {
        return;
    }
    let beside = beside(fixture);
    let ops = match with_state(fixture, &consumer) {
        true => vec![write()],
        false => {
            let producer = beside.producer().await;
            producer.stage(&[Outgoing::from(numbered(7))]).await.expect("it is prepared").ops
        }
    };
    let taken = take_all(&consumer, 2).await;
    consumer.on_fail(vec![attempt(&taken[0], Duration::ZERO)]).await.expect("it can be put back");
    let receipts = taken.iter().map(|incoming| incoming.receipt).collect();
    let acked = consumer.ack(receipts, ops).await.expect("it can be asked");
    assert_eq!(acked.fenced, [taken[0].receipt]);
    let value = fixture.env.state.load(SPACE, "key").await.expect("the state can be read");
    assert_eq!(value, None, "a lost lease writes nothing");
    if !with_state(fixture, &consumer) {
        expect_nothing(&beside.consumer("", Order::None).await).await;
    }
    ack(&consumer, &taken[1..]).await;
    let again = take_all(&consumer, 1).await;
    ack(&consumer, &again).await;
    expect_nothing(&consumer).await;
}
