//! `settle_together`: acks and writes to the same store are one transaction.

use std::time::Duration;

use brigade_core::connector::{Order, Outgoing};
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
        if let Some(path) = queue.settings.get_mut("path").filter(|path| path.is_string()) {
            *path = format!("{}.beside", path.as_str().unwrap_or_default()).into();
        }
    })
}

/// The ack, a state write and what a producer staged are all there afterwards.
pub async fn an_ack_and_its_writes_are_one(fixture: &Fixture) {
    if !fixture.features().settle_together {
        return;
    }
    let consumer_store = {
        fixture.put(vec![numbered(1)]).await;
        fixture.consumer("", Order::None).await
    };
    let beside = beside(fixture);
    let producer = beside.producer().await;
    assert_eq!(producer.store(), consumer_store.store(), "one store");
    let taken = take_all(&consumer_store, 1).await;
    let staged = producer.stage(&[Outgoing::from(numbered(7))]).await.expect("it is prepared");
    let ops = staged.ops.into_iter().chain([write()]).collect();
    let acked = consumer_store.ack(vec![taken[0].receipt], ops).await.expect("one transaction");
    assert_eq!(acked.fenced, []);
    if let Some(hold) = staged.hold {
        hold.commit();
    }
    producer.shutdown().await.expect("it closes");
    let value = fixture.env.state.load(SPACE, "key").await.expect("the state can be read");
    assert_eq!(value.as_deref(), Some(&b"value"[..]));
    let output = beside.consumer("", Order::None).await;
    let out = take_all(&output, 1).await;
    assert_eq!(number(&out[0]), 7);
    ack(&output, &out).await;
    drop(consumer_store);
    expect_nothing(&fixture.consumer("", Order::None).await).await;
}

/// With a receipt that does not stand nothing is written, and what was prepared can be undone.
pub async fn a_lost_lease_writes_nothing(fixture: &Fixture) {
    if !fixture.features().settle_together {
        return;
    }
    fixture.put(vec![numbered(1), numbered(2)]).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 2).await;
    consumer.on_fail(vec![attempt(&taken[0], Duration::ZERO)]).await.expect("it can be put back");
    let receipts = taken.iter().map(|incoming| incoming.receipt).collect();
    let acked = consumer.ack(receipts, vec![write()]).await.expect("it can be asked");
    assert_eq!(acked.fenced, [taken[0].receipt]);
    let value = fixture.env.state.load(SPACE, "key").await.expect("the state can be read");
    assert_eq!(value, None, "a lost lease writes nothing");
    ack(&consumer, &taken[1..]).await;
    let again = take_all(&consumer, 1).await;
    ack(&consumer, &again).await;
    expect_nothing(&consumer).await;
}
