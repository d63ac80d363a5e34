//! `settle_together`: acks and writes to the same store are one transaction.

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{Consumer, Order, Outgoing, Receipt};
use brigade_core::state::StoreOp;
use bytes::Bytes;

use super::attempt;
use crate::fixture::{Fixture, ack, expect_nothing, fail, number, numbered, patiently, take_all};

const SPACE: &str = "suite";

fn write() -> StoreOp {
    StoreOp::Put { space: SPACE.into(), key: "key".into(), value: Bytes::from_static(b"value") }
}

/// Another queue of the same connector, for outputs.
pub(super) fn beside(fixture: &Fixture) -> Fixture {
    fixture.with(|queue| {
        queue.name = "beside".into();
        for place in ["path", "topic"] {
            if let Some(place) = queue.settings.get_mut(place).filter(|place| place.is_string()) {
                *place = format!("{}.beside", place.as_str().unwrap_or_default()).into();
            }
        }
    })
}

/// Whether the state is in the consumer's store, so that it can be written along with the acks.
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
    let staged = patiently(async || producer.stage(&[Outgoing::from(numbered(7))]).await).await;
    let with_state = with_state(fixture, &consumer);
    let ops: Vec<StoreOp> = staged.ops.into_iter().chain(with_state.then(write)).collect();
    let receipts = vec![taken[0].receipt];
    let acked = patiently(async || consumer.ack(receipts.clone(), ops.clone()).await).await;
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

/// If a receipt does not stand, nothing is written, and what was prepared can be undone.
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
            let stage = async || producer.stage(&[Outgoing::from(numbered(7))]).await;
            patiently(stage).await.ops
        }
    };
    let taken = take_all(&consumer, 2).await;
    fail(&consumer, vec![attempt(&taken[0], Duration::ZERO)]).await;
    let receipts: Vec<Receipt> = taken.iter().map(|incoming| incoming.receipt).collect();
    let acked = patiently(async || consumer.ack(receipts.clone(), ops.clone()).await).await;
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
