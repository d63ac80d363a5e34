//! What a queue holds, reports and refuses.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use brigade_core::connector::{
    Failed, FailedReason, Incoming, Limit, Order, Outgoing, Produced, Want, WhenFull,
};
use brigade_core::{Message, MessageId};

use super::attempt;
use crate::fixture::{
    Fixture, ack, expect_nothing, fail, number, numbered, patiently, take, take_all, take_wanted,
};

/// How many messages the queue holds in the tests of `limit`.
const FULL: u64 = 5;

/// `batch`: messages that are there come together.
pub async fn a_batch_comes_in_one_answer(fixture: &Fixture) {
    if !fixture.features().batch {
        return;
    }
    fixture.put((0..10).map(numbered).collect()).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken: Vec<_> = take(&consumer, 10).await.into();
    assert!(taken.len() > 1, "one by one");
    ack(&consumer, &taken).await;
    let rest = take_all(&consumer, 10 - taken.len()).await;
    ack(&consumer, &rest).await;
}

/// No more bytes come than are wanted, except for the last message; one message always comes.
pub async fn no_more_bytes_come_than_are_wanted(fixture: &Fixture) {
    const MESSAGES: u64 = 10;
    let long = |n: u64| {
        let text = format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(1000));
        Message::new(text).with_id(numbered(n).id).with_key("one")
    };
    let orders = [Some(Order::None), fixture.features().key_order.then_some(Order::Key)];
    for (first, order) in (0..).step_by(100).zip(orders.into_iter().flatten()) {
        fixture.put((first..first + MESSAGES).map(long).collect()).await;
        let consumer = fixture.consumer("", order).await;
        for (bytes, messages) in [(2500, MESSAGES - 1), (1, 1)] {
            let mut left = messages;
            while left > 0 {
                let messages = usize::try_from(left).expect("it is small");
                let taken: Vec<_> = take_wanted(&consumer, Want { messages, bytes }).await.into();
                assert!(!taken.is_empty(), "the queue ended");
                left -= taken.len() as u64;
                ack(&consumer, &taken).await;
            }
        }
        consumer.shutdown().await.expect("it closes");
    }
}

/// `order: queue`: nothing comes before a message that failed.
pub async fn a_queue_in_order_waits_for_what_failed(fixture: &Fixture) {
    if !fixture.features().order {
        return;
    }
    const DELAY: Duration = Duration::from_millis(100);
    fixture.put((0..3).map(numbered).collect()).await;
    let consumer = fixture.consumer("", Order::Queue).await;
    let begun = Instant::now();
    let taken = take(&consumer, 1).await;
    fail(&consumer, vec![attempt(&taken[0], DELAY)]).await;
    for n in 0..3 {
        let taken: Vec<_> = take(&consumer, 1).await.into();
        assert_eq!(number(&taken[0]), n);
        ack(&consumer, &taken).await;
    }
    assert!(begun.elapsed() >= DELAY - Duration::from_millis(5), "{:?}", begun.elapsed());
}

/// `finite`: an empty answer at the end, again on the next call, and for the next consumer.
pub async fn a_finite_queue_ends_and_stays_at_its_end(fixture: &Fixture) {
    if !fixture.features().finite {
        return;
    }
    fixture.put((0..10).map(numbered).collect()).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 10).await;
    ack(&consumer, &taken).await;
    for _ in 0..2 {
        let end = take(&consumer, 10).await;
        assert!(end.is_empty(), "after the end there came {end:?}");
    }
    assert!(patiently(async || consumer.lag().await).await.at_end);
    consumer.shutdown().await.expect("it closes");
    let next = fixture.consumer("", Order::None).await;
    assert!(take(&next, 10).await.is_empty(), "what is done came again");
}

/// `lag`, as far as it can be known.
pub async fn the_lag_is_what_is_there(fixture: &Fixture) {
    fixture.put((0..10).map(numbered).collect()).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 4).await;
    ack(&consumer, &taken[..1]).await;
    let lag = patiently(async || consumer.lag().await).await;
    assert!(lag.in_flight.is_none_or(|n| n == 3), "three are handed out: {lag:?}");
    assert!(lag.ready.is_none_or(|n| n == 6), "six are not: {lag:?}");
    assert!(lag.delayed.is_none_or(|n| n == 0), "none waits for its time: {lag:?}");
    ack(&consumer, &taken[1..]).await;
}

/// A fixture with a small `limit`, if queues of this kind have one.
fn limited(fixture: &Fixture, when_full: WhenFull) -> Option<Fixture> {
    let limit = Limit { messages: Some(FULL), bytes: None, when_full };
    fixture.features().limit.then(|| fixture.with(|queue| queue.limit = limit))
}

async fn put_more_than_fits(fixture: &Fixture) -> Vec<Produced> {
    let batch: Vec<Outgoing> = (0..FULL + 3).map(|n| numbered(n).into()).collect();
    let producer = fixture.producer().await;
    producer.produce(&batch).await.expect("an answer for each message")
}

/// `limit` with `when_full: wait`: what does not fit fails for now, and fits later.
pub async fn a_full_queue_says_so_and_takes_more_when_there_is_room(fixture: &Fixture) {
    let Some(fixture) = limited(fixture, WhenFull::Wait) else { return };
    let outcomes = put_more_than_fits(&fixture).await;
    let confirmed = outcomes.iter().filter(|o| matches!(o, Produced::Confirmed)).count();
    assert_eq!(confirmed as u64, FULL);
    let transient = |o: &Produced| matches!(o, Produced::Failed(error) if error.is_transient());
    assert_eq!(outcomes.iter().filter(|outcome| transient(outcome)).count(), 3, "{outcomes:?}");
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, confirmed).await;
    ack(&consumer, &taken).await;
    fixture.put((100..100 + FULL).map(numbered).collect()).await;
    let taken = take_all(&consumer, confirmed).await;
    ack(&consumer, &taken).await;
    expect_nothing(&consumer).await;
}

/// `limit` with `when_full: refuse`.
pub async fn a_full_queue_that_refuses_refuses(fixture: &Fixture) {
    let Some(fixture) = limited(fixture, WhenFull::Refuse) else { return };
    let outcomes = put_more_than_fits(&fixture).await;
    let refused = outcomes.iter().filter(|o| matches!(o, Produced::Rejected(_))).count();
    assert_eq!(refused, 3, "{outcomes:?}");
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, usize::try_from(FULL).expect("it is small")).await;
    ack(&consumer, &taken).await;
    expect_nothing(&consumer).await;
}

/// `dedup`: the second message with an id is confirmed and not stored, even long after the first is
/// done.
pub async fn an_id_that_is_put_twice_is_stored_once(fixture: &Fixture) {
    if !fixture.features().dedup {
        return;
    }
    fixture.put(vec![numbered(1), numbered(2), numbered(1)]).await;
    fixture.put(vec![numbered(2)]).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 2).await;
    ack(&consumer, &taken).await;
    fixture.put(vec![numbered(1), numbered(3)]).await;
    let taken = take_all(&consumer, 1).await;
    assert_eq!(number(&taken[0]), 3);
    ack(&consumer, &taken).await;
    expect_nothing(&consumer).await;
}

/// Messages that are put without an id each have one of their own, and keep it when they come again:
/// ids of outputs and dead letters are derived from it, and what has the same id is one message.
pub async fn what_is_put_without_an_id_has_one_of_its_own(fixture: &Fixture) {
    let nameless = |n: u64| numbered(n).with_id(MessageId::default());
    for first in [0, 5] {
        fixture.put((first..first + 5).map(nameless).collect()).await;
    }
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 10).await;
    let id = |incoming: &Incoming| incoming.message.id;
    assert!(taken.iter().all(|incoming| id(incoming) != MessageId::default()), "no id: {taken:?}");
    let ids: BTreeSet<MessageId> = taken.iter().map(id).collect();
    assert_eq!(ids.len(), 10, "two messages have the same id: {taken:?}");
    fail(&consumer, vec![attempt(&taken[0], Duration::ZERO)]).await;
    let again = take_all(&consumer, 1).await;
    assert_eq!(id(&again[0]), id(&taken[0]), "it came again with another id");
    ack(&consumer, &again).await;
    ack(&consumer, &taken[1..]).await;
}

/// `park`: other keys go on, messages of its own key wait behind it, and after a release they come
/// in order.
pub async fn a_parked_message_holds_its_key_until_it_is_released(fixture: &Fixture) {
    if !fixture.features().park {
        return;
    }
    let keyed = |n: u64, key: &str| numbered(n).with_key(key.to_owned());
    let consumer = fixture.consumer("", Order::Key).await;
    fixture.put(vec![keyed(0, "a"), keyed(1, "b"), keyed(2, "a")]).await;
    let taken = take_all(&consumer, 3).await;
    let back = |n: u64, reason: FailedReason| {
        let incoming = taken.iter().find(|incoming| number(incoming) == n);
        let receipt = incoming.expect("all were taken").receipt;
        Failed { receipt, reason, delay: Duration::ZERO }
    };
    let parked = FailedReason::Parked { attempts: 3, error: "no luck".to_owned() };
    let failed =
        vec![back(0, parked), back(1, FailedReason::Released), back(2, FailedReason::Released)];
    fail(&consumer, failed).await;
    fixture.put(vec![keyed(3, "a"), keyed(4, "b")]).await;
    let others = take_all(&consumer, 2).await;
    assert_eq!(others.iter().map(number).collect::<Vec<_>>(), [1, 4]);
    ack(&consumer, &others).await;
    expect_nothing(&consumer).await;
    let lag = patiently(async || consumer.lag().await).await;
    assert_eq!((lag.ready, lag.parked), (Some(0), Some(3)));
    let admin = fixture.connector.admin(&fixture.queue, &fixture.env).await.expect("it opens");
    let peeked = admin.peek(0, 1).await.expect("it can be looked into");
    assert_eq!(peeked[0].parked.as_deref(), Some("no luck"));
    let position = peeked[0].position;
    assert_eq!(admin.release(Some(&[position])).await.expect("it can be released"), 1);
    let again = take_all(&consumer, 3).await;
    assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(again[0].attempts, 0);
    ack(&consumer, &again).await;
}
