//! The properties. Each is a function that panics when the connector lacks the property; if it
//! needs a feature that the connector does not declare, it returns at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use brigade_core::Message;
use brigade_core::connector::{Failed, FailedReason, Incoming, Order, Want};
use bytes::Bytes;

use crate::fixture::{
    Fixture, PATIENCE, ack, consume, expect_nothing, fail, number, numbered, patiently, take,
    take_all, take_wanted,
};

mod bounds;
mod disturbed;
mod lease;
mod store;

pub use bounds::*;
pub use disturbed::*;
pub use lease::*;
pub use store::*;

/// Bytes, headers, key, event time, id, null and empty payloads, as far as they are declared.
pub async fn a_message_comes_out_as_it_went_in(fixture: &Fixture) {
    let features = fixture.features();
    let mut rich = numbered(1);
    if features.headers {
        for (name, value) in [("b", Some("1")), ("a", Some("")), ("b", None)] {
            rich.headers.push(name, value.map(Bytes::from));
        }
    }
    if features.event_time {
        rich.event_time = Some(brigade_core::Timestamp(-5));
    }
    let mut messages = vec![rich];
    if features.binary {
        messages.push(Message::new((0..=255).collect::<Vec<u8>>()).with_id(numbered(2).id));
    }
    if features.empty_payload {
        messages.push(Message::new("").with_id(numbered(3).id));
    }
    if features.null_payload {
        messages.push(Message::default().with_id(numbered(4).id));
    }
    fixture.put(messages.clone()).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, messages.len()).await;
    for (sent, got) in messages.iter().zip(&taken) {
        assert_eq!(sent.payload, got.message.payload);
        assert_eq!((got.attempts, got.redeliveries), (0, 0));
        if features.key {
            assert_eq!(sent.key, got.message.key);
        }
        if features.headers {
            assert_eq!(sent.headers, got.message.headers);
        }
        if features.event_time && sent.event_time.is_some() {
            assert_eq!(sent.event_time, got.message.event_time);
        }
        if features.message_id {
            assert_eq!(sent.id, got.message.id);
        }
    }
    ack(&consumer, &taken).await;
}

/// A payload of a megabyte, or of the declared maximum if that is less.
pub async fn a_big_payload_survives(fixture: &Fixture) {
    let most = fixture.features().max_message_bytes.unwrap_or(u64::MAX).min(1 << 20);
    let length = usize::try_from(most).expect("at most a megabyte") - 2;
    let payload = format!("\"{}\"", "x".repeat(length));
    fixture.put(vec![Message::new(payload.clone())]).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 1).await;
    assert!(taken[0].message.payload.as_deref() == Some(payload.as_bytes()), "it came out changed");
    ack(&consumer, &taken).await;
}

/// `order`.
pub async fn messages_come_in_the_order_in_which_they_were_put(fixture: &Fixture) {
    if !fixture.features().order {
        return;
    }
    fixture.put((0..400).map(numbered).collect()).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 400).await;
    assert!(taken.iter().map(number).eq(0..400));
    ack(&consumer, &taken).await;
}

/// Acked messages are gone, for the next consumer too; the others are not.
pub async fn what_is_acked_never_comes_again(fixture: &Fixture) {
    fixture.put((0..20).map(numbered).collect()).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 20).await;
    let (odd, even): (Vec<Incoming>, Vec<Incoming>) =
        taken.into_iter().partition(|incoming| number(incoming) % 2 == 1);
    ack(&consumer, &odd).await;
    consumer.shutdown().await.expect("it closes");
    drop(consumer);
    let consumer = fixture.consumer("", Order::None).await;
    let again = take_all(&consumer, even.len()).await;
    let numbers: BTreeSet<u64> = again.iter().map(number).collect();
    assert_eq!(numbers, even.iter().map(number).collect());
    ack(&consumer, &again).await;
    expect_nothing(&consumer).await;
}

/// A consumer that is dropped without a shutdown gives back what it held.
pub async fn what_a_dropped_consumer_held_comes_again(fixture: &Fixture) {
    fixture.put((0..10).map(numbered).collect()).await;
    let consumer = fixture.consumer("", Order::None).await;
    drop(take_all(&consumer, 10).await);
    drop(consumer);
    let consumer = fixture.consumer("", Order::None).await;
    let again = take_all(&consumer, 10).await;
    assert_eq!(again.iter().map(number).collect::<BTreeSet<_>>().len(), 10);
    if fixture.features().attempts {
        assert!(again.iter().all(|incoming| incoming.attempts == 0 && incoming.redeliveries == 1));
    }
    ack(&consumer, &again).await;
}

fn attempt(incoming: &Incoming, delay: Duration) -> Failed {
    let (attempts, error) = (incoming.attempts + 1, "no luck".to_owned());
    let reason = FailedReason::Attempt { attempts, error };
    Failed { receipt: incoming.receipt, reason, delay }
}

/// `on_fail` with a delay: the message comes not before it but after it, with one more attempt.
pub async fn a_failed_attempt_comes_again_after_its_delay(fixture: &Fixture) {
    const DELAY: Duration = Duration::from_millis(200);
    fixture.put(vec![numbered(0), numbered(1)]).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 2).await;
    let begun = Instant::now();
    fail(&consumer, vec![attempt(&taken[0], DELAY)]).await;
    ack(&consumer, &taken[1..]).await;
    let again = take_all(&consumer, 1).await;
    let after = begun.elapsed();
    assert!(after >= DELAY - Duration::from_millis(5), "it came after {after:?}");
    assert_eq!((number(&again[0]), again[0].attempts), (0, 1));
    ack(&consumer, &again).await;
    expect_nothing(&consumer).await;
}

/// A released message comes again at once, with its attempts unchanged.
pub async fn a_release_uses_no_attempt(fixture: &Fixture) {
    fixture.put(vec![numbered(0)]).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 1).await;
    let (receipt, reason) = (taken[0].receipt, FailedReason::Released);
    let released = Failed { receipt, reason, delay: Duration::ZERO };
    fail(&consumer, vec![released]).await;
    let again = take_all(&consumer, 1).await;
    assert_eq!(again[0].attempts, 0);
    ack(&consumer, &again).await;
}

/// `competing`.
pub async fn competing_consumers_share_without_overlap(fixture: &Fixture) {
    if !fixture.features().competing {
        return;
    }
    fixture.put((0..200).map(numbered).collect()).await;
    let consumers =
        [fixture.consumer("", Order::None).await, fixture.consumer("", Order::None).await];
    let mut seen = BTreeSet::new();
    while seen.len() < 200 {
        for consumer in &consumers {
            if seen.len() < 200 {
                let taken: Vec<Incoming> = take(consumer, 10).await.into();
                for incoming in &taken {
                    assert!(seen.insert(number(incoming)), "{} came twice", number(incoming));
                }
                ack(consumer, &taken).await;
            }
        }
    }
    expect_nothing(&consumers[0]).await;
}

/// `groups`.
pub async fn each_group_gets_every_message(fixture: &Fixture) {
    if !fixture.features().groups {
        return;
    }
    let fixture = fixture.with(|queue| queue.groups = vec!["a".into(), "b".into()]);
    fixture.put((0..10).map(numbered).collect()).await;
    for group in ["a", "b"] {
        let consumer = fixture.consumer(group, Order::None).await;
        let taken = take_all(&consumer, 10).await;
        assert_eq!(taken.iter().map(number).collect::<BTreeSet<_>>().len(), 10, "group {group}");
        ack(&consumer, &taken).await;
    }
}

/// `key_order`: with two consumers, and failures in between.
pub async fn a_key_is_with_one_consumer_at_a_time(fixture: &Fixture) {
    if !fixture.features().key_order {
        return;
    }
    const MESSAGES: u64 = 300;
    let consumers =
        [fixture.consumer("", Order::Key).await, fixture.consumer("", Order::Key).await];
    fixture.put((0..MESSAGES).map(numbered).collect()).await;
    let mut random = fastrand::Rng::with_seed(11);
    let mut done: BTreeMap<u64, u64> = BTreeMap::new();
    let mut left = MESSAGES;
    while left > 0 {
        let consumer = &consumers[random.usize(..2)];
        let want = Want { messages: 8, bytes: usize::MAX };
        let quick = tokio::time::timeout(Duration::from_millis(50), consume(consumer, want)).await;
        let Ok(taken) = quick else { continue };
        let mut blocked = BTreeSet::new();
        for incoming in taken {
            let (n, key) = (number(&incoming), number(&incoming) % 7);
            // Messages of a key that follow a failed one in the same run go back with it.
            if blocked.contains(&key) || random.u32(..10) == 0 {
                blocked.insert(key);
                let failed = attempt(&incoming, Duration::from_millis(1));
                fail(consumer, vec![failed]).await;
                continue;
            }
            let before = done.insert(key, n);
            assert!(before.is_none_or(|before| before < n), "{n} came after {before:?}");
            ack(consumer, &[incoming]).await;
            left -= 1;
        }
    }
}

/// The future of `consume` may be dropped at any moment.
pub async fn a_consume_that_is_dropped_loses_nothing(fixture: &Fixture) {
    let mut random = fastrand::Rng::with_seed(5);
    let consumer = fixture.consumer("", Order::None).await;
    fixture.put((0..100).map(numbered).collect()).await;
    let mut seen = BTreeSet::new();
    let consumer = match fixture.features().finite {
        // It may have ended before anything was put.
        true => {
            drop(consumer);
            fixture.consumer("", Order::None).await
        }
        false => consumer,
    };
    while seen.len() < 100 {
        let want = Want { messages: 3, bytes: usize::MAX };
        let moment = Duration::from_micros(random.u64(..2000));
        let taken = tokio::time::timeout(moment, consume(&consumer, want)).await;
        let taken = taken.unwrap_or_default();
        seen.extend(taken.iter().map(number));
        ack(&consumer, &taken).await;
    }
    expect_nothing(&consumer).await;
}

/// `competing`: what a consumer has taken and nobody asks it for any more goes to others once it
/// puts that back; what it has handed out stays its own, and it goes on.
pub async fn what_is_put_back_goes_to_another(fixture: &Fixture) {
    if !fixture.features().competing {
        return;
    }
    let [one, other] =
        [fixture.consumer("", Order::None).await, fixture.consumer("", Order::None).await];
    // A call that has waited and is dropped may have left a request under way.
    expect_nothing(&one).await;
    fixture.put((0..20).map(numbered).collect()).await;
    patiently(async || one.put_back().await).await;
    let taken = take_all(&other, 20).await;
    assert!(taken.iter().all(|incoming| incoming.attempts == 0), "no attempt has failed");
    ack(&other, &taken).await;
    // More may have come than was handed out.
    fixture.put((20..40).map(numbered).collect()).await;
    let kept: Vec<Incoming> = take_wanted(&one, Want { messages: 10, bytes: 1 }).await.into();
    patiently(async || one.put_back().await).await;
    let taken = take_all(&other, 20 - kept.len()).await;
    let numbers: BTreeSet<u64> = kept.iter().chain(&taken).map(number).collect();
    assert!(numbers.into_iter().eq(20..40), "each is with one of them");
    ack(&one, &kept).await;
    ack(&other, &taken).await;
    other.shutdown().await.expect("it closes");
    patiently(async || one.put_back().await).await;
    fixture.put(vec![numbered(40)]).await;
    ack(&one, &take_all(&one, 1).await).await;
    expect_nothing(&one).await;
}

/// Shutdown while a `consume` waits, and a second shutdown.
pub async fn closing_in_the_middle_neither_hangs_nor_loses(fixture: &Fixture) {
    fixture.put((0..10).map(numbered).collect()).await;
    let consumer = fixture.consumer("", Order::None).await;
    let taken = take_all(&consumer, 10).await;
    ack(&consumer, &taken[..5]).await;
    let waiting = consumer.consume(Want { messages: 1, bytes: usize::MAX });
    let closing = async {
        tokio::task::yield_now().await;
        consumer.shutdown().await.expect("it closes");
        consumer.shutdown().await.expect("it closes again");
    };
    let both = async { tokio::join!(waiting, closing) };
    let (_, ()) = tokio::time::timeout(PATIENCE, both).await.expect("no hang");
    drop(consumer);
    let consumer = fixture.consumer("", Order::None).await;
    let again = take_all(&consumer, 5).await;
    ack(&consumer, &again).await;
    let producer = fixture.producer().await;
    producer.shutdown().await.expect("it closes");
    producer.shutdown().await.expect("it closes again");
}

/// Doing nothing is not an error.
pub async fn empty_batches_are_harmless(fixture: &Fixture) {
    fixture.put(vec![numbered(0)]).await;
    let producer = fixture.producer().await;
    assert!(producer.produce(&[]).await.expect("nothing is no error").is_empty());
    let consumer = fixture.consumer("", Order::None).await;
    consumer.ack(Vec::new(), Vec::new()).await.expect("nothing is no error");
    consumer.on_fail(Vec::new()).await.expect("nothing is no error");
    let taken = take_all(&consumer, 1).await;
    let lag = patiently(async || consumer.lag().await).await;
    assert!(lag.in_flight.is_none_or(|n| n == 1), "{lag:?}");
    ack(&consumer, &taken).await;
}

/// Random failures, releases and dropped consumers: every message is done once.
pub async fn ten_thousand_messages_survive_random_failures(fixture: &Fixture) {
    const MESSAGES: u64 = 10_000;
    const SEED: u64 = 42;
    let mut random = fastrand::Rng::with_seed(SEED);
    fixture.put((0..MESSAGES).map(numbered).collect()).await;
    let mut consumer = fixture.consumer("", Order::None).await;
    let mut done = BTreeSet::new();
    while done.len() < usize::try_from(MESSAGES).expect("it is small") {
        let taken = take(&consumer, 200).await;
        let (mut good, mut failed) = (Vec::new(), Vec::new());
        for incoming in taken {
            match random.u32(..20) {
                0 => failed.push(attempt(&incoming, Duration::from_millis(random.u64(..3)))),
                1 => {
                    let (receipt, reason) = (incoming.receipt, FailedReason::Released);
                    failed.push(Failed { receipt, reason, delay: Duration::ZERO });
                }
                _ => good.push(incoming),
            }
        }
        fail(&consumer, failed).await;
        if random.u32(..20) == 0 {
            // The next consumer gets back what this one held.
            drop(consumer);
            consumer = fixture.consumer("", Order::None).await;
            continue;
        }
        for incoming in &good {
            assert!(done.insert(number(incoming)), "{} twice, seed {SEED}", number(incoming));
        }
        ack(&consumer, &good).await;
    }
    expect_nothing(&consumer).await;
}
