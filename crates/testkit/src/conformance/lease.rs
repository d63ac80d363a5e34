//! Late holders, and leases that have to be extended.

use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{Consumer, Incoming, Order, Receipt, Want};

use super::attempt;
use crate::fixture::{
    Fixture, PATIENCE, ack, consume, expect_nothing, fail, numbered, patiently, take_all,
};

const ONE: Want = Want { messages: 1, bytes: usize::MAX };

/// A message that one consumer has given back and another has now; the first one's receipt is late.
async fn overtaken(
    fixture: &Fixture,
    late: &Arc<dyn Consumer>,
) -> (Receipt, Arc<dyn Consumer>, Vec<Incoming>) {
    fixture.put(vec![numbered(0)]).await;
    let taken = take_all(late, 1).await;
    fail(late, vec![attempt(&taken[0], Duration::ZERO)]).await;
    let other = fixture.consumer("", Order::None).await;
    let again = take_all(&other, 1).await;
    (taken[0].receipt, other, again)
}

/// A message, if one comes in time.
async fn next_within(consumer: &Arc<dyn Consumer>, period: Duration) -> Option<Vec<Incoming>> {
    let taken = tokio::time::timeout(period, consume(consumer, ONE)).await.ok()?;
    (!taken.is_empty()).then_some(taken)
}

/// A late ack of a message that was given back does not affect its new holder.
pub async fn a_late_ack_does_not_undo_what_another_does(fixture: &Fixture) {
    if !fixture.features().competing {
        return;
    }
    let late = fixture.consumer("", Order::None).await;
    let (receipt, other, again) = overtaken(fixture, &late).await;
    let acked = patiently(async || late.ack(vec![receipt], Vec::new()).await).await;
    assert_eq!(acked.fenced, [receipt]);
    ack(&other, &again).await;
}

/// A late failure of a message that was given back does not take it from its new holder.
pub async fn a_late_failure_does_not_undo_what_another_does(fixture: &Fixture) {
    if !fixture.features().competing {
        return;
    }
    let late = fixture.consumer("", Order::None).await;
    let (receipt, other, again) = overtaken(fixture, &late).await;
    let first = Incoming { receipt, ..again[0].clone() };
    let failed = vec![attempt(&first, Duration::ZERO)];
    let given = patiently(async || late.on_fail(failed.clone()).await).await;
    assert_eq!(given.fenced, [receipt]);
    expect_nothing(&late).await;
    ack(&other, &again).await;
}

/// `lease`: what is extended in time, as the runtime does it, comes to nobody else.
pub async fn what_is_extended_stays_with_its_holder(fixture: &Fixture) {
    let consumer = fixture.consumer("", Order::None).await;
    let Some(lease) = consumer.lease() else { return };
    let other = fixture.consumer("", Order::None).await;
    fixture.put(vec![numbered(0)]).await;
    let (mut held, mut begun) = (take_all(&consumer, 1).await, Instant::now());
    while begun.elapsed() < 2 * lease {
        let extended = Instant::now();
        patiently(async || consumer.extend(&[held[0].receipt]).await).await;
        let Some(taken) = next_within(&other, lease / 3).await else { continue };
        assert!(extended.elapsed() >= lease, "it was extended, and came to another");
        // This machine stood still for longer than the lease: once more.
        fail(&other, vec![attempt(&taken[0], Duration::ZERO)]).await;
        (held, begun) = (take_all(&consumer, 1).await, Instant::now());
    }
    ack(&consumer, &held).await;
}

/// `lease`: what nobody extends but a late holder comes again.
pub async fn what_only_a_late_holder_extends_comes_again(fixture: &Fixture) {
    let late = fixture.consumer("", Order::None).await;
    let Some(lease) = late.lease() else { return };
    let (receipt, _other, _held) = overtaken(fixture, &late).await;
    let (third, begun) = (fixture.consumer("", Order::None).await, Instant::now());
    let again = loop {
        assert!(begun.elapsed() < PATIENCE + lease, "a late holder has kept it from others");
        patiently(async || late.extend(&[receipt]).await).await;
        if let Some(again) = next_within(&third, lease / 3).await {
            break again;
        }
    };
    ack(&third, &again).await;
}
