//! What fails comes again, and not before its time.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use brigade_core::connector::{Connector, ConnectorError, Consumer, Failed, FailedReason, Receipt};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{WANT, again, ask, connect, env, numbered, open, put, queue, reader};
use redis::Connection;
use serde_json::json;

/// Who holds which entries of the stream `shop`.
fn holders(beside: &mut Connection) -> Vec<String> {
    let pending: Vec<(String, String, u64, u64)> = ask(beside, "XPENDING shop shop - + 10");
    pending.into_iter().map(|(_, member, ..)| member).collect()
}

fn failed(receipt: Receipt, delay: Duration) -> Failed {
    let reason = FailedReason::Attempt { attempts: 1, error: "no luck".into() };
    Failed { receipt, reason, delay }
}

fn assert_lacks<T>(answer: Result<T, ConnectorError>, command: &str) {
    let error = answer.err().expect(command);
    assert!(error.is_transient() && error.to_string().contains(&format!("+{command}")), "{error}");
}

async fn take(consumer: &dyn Consumer, many: usize) -> Vec<(Receipt, u32)> {
    let mut taken = Vec::new();
    while taken.len() < many {
        let next = tokio::time::timeout(Duration::from_secs(180), consumer.consume(WANT)).await;
        let next = next.expect("the messages come").unwrap();
        taken.extend(next.iter().map(|incoming| (incoming.receipt, incoming.attempts)));
    }
    taken
}

/// What cannot be done to the end is not begun: else a message would wait where nobody looks for it.
#[tokio::test]
async fn a_failed_message_comes_again_though_a_right_was_missing_meanwhile() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url().replace("//", "//bob:secret@") }));
    for command in ["zadd", "xclaim", "hset", "hget"] {
        ask::<()>(&mut beside, "ACL SETUSER bob reset on >secret ~* &* +@all");
        let (producer, consumer) = open(&RedisStreams, &queue).await;
        producer.produce(&[numbered(1)]).await.unwrap();
        let (receipt, _) = take(&*consumer, 1).await[0];
        ask::<()>(&mut beside, &format!("ACL SETUSER bob -{command}"));
        for _ in 0..2 {
            assert_lacks(consumer.on_fail(vec![failed(receipt, Duration::ZERO)]).await, command);
        }
        assert!(holders(&mut beside)[0].starts_with("brigade-"), "{command}");
        ask::<()>(&mut beside, "ACL SETUSER bob +@all");
        let again = consumer.on_fail(vec![failed(receipt, Duration::ZERO)]).await.unwrap();
        assert_eq!(again.fenced, [], "{command}");
        assert_eq!(take(&*consumer, 1).await[0].1, 1, "{command}");
        // What it still holds when it stops.
        if ["zadd", "xclaim"].contains(&command) {
            ask::<()>(&mut beside, &format!("ACL SETUSER bob -{command}"));
            assert_lacks(consumer.shutdown().await, command);
            assert!(holders(&mut beside)[0].starts_with("brigade-"), "{command}");
        }
        drop(consumer);
        ask::<()>(&mut beside, "FLUSHALL");
    }
}

#[tokio::test]
async fn what_is_due_comes_though_a_right_was_missing_meanwhile() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url().replace("//", "//bob:secret@") }));
    for command in ["zrem", "hget", "xclaim", "xpending"] {
        ask::<()>(&mut beside, "ACL SETUSER bob reset on >secret ~* &* +@all");
        let (producer, consumer) = open(&RedisStreams, &queue).await;
        producer.produce(&[numbered(1), numbered(2)]).await.unwrap();
        let taken = take(&*consumer, 2).await;
        let both = taken.iter().map(|(receipt, _)| failed(*receipt, Duration::ZERO)).collect();
        assert_eq!(consumer.on_fail(both).await.unwrap().fenced, []);
        ask::<()>(&mut beside, &format!("ACL SETUSER bob -{command}"));
        for _ in 0..2 {
            assert_lacks(consumer.consume(WANT).await, command);
        }
        assert_eq!(holders(&mut beside), ["~delayed", "~delayed"], "{command}");
        ask::<()>(&mut beside, "ACL SETUSER bob +@all");
        let again = take(&*consumer, 2).await;
        assert!(again.iter().all(|(_, attempts)| *attempts == 1), "{command}: {again:?}");
        let receipts = again.iter().map(|(receipt, _)| *receipt).collect();
        assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, [], "{command}");
        drop(consumer);
        ask::<()>(&mut beside, "FLUSHALL");
    }
}

/// A script that ended half-way has left them behind.
#[tokio::test]
async fn what_waits_without_a_time_comes_when_a_consumer_is_opened() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (producer, first) = open(&RedisStreams, &queue).await;
    producer.produce(&[numbered(1), numbered(2)]).await.unwrap();
    let taken = take(&*first, 2).await;
    let later = failed(taken[0].0, Duration::from_secs(600));
    assert_eq!(first.on_fail(vec![later]).await.unwrap().fenced, []);
    let pending: Vec<(String, String, u64, u64)> = ask(&mut beside, "XPENDING shop shop - + 10");
    ask::<redis::Value>(&mut beside, &format!("XCLAIM shop shop ~delayed 0 {}", pending[1].0));
    let next = again(async || RedisStreams.consumer(&queue, &reader(), &env()).await).await;
    let again = take(&*next, 1).await;
    assert_eq!((again.len(), again[0].0.position), (1, taken[1].0.position));
    let lag = next.lag().await.unwrap();
    assert_eq!((lag.delayed, lag.in_flight), (Some(1), Some(1)), "the other waits on");
}

/// In a group that somebody destroyed, and that was made again, they are handed out as new.
#[tokio::test]
async fn what_waited_in_a_group_that_was_destroyed_is_not_taken_from_who_has_it_now() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    put(&*producer, &[numbered(1)]).await.unwrap();
    let receipt = take(&*consumer, 1).await[0].0;
    assert_eq!(consumer.on_fail(vec![failed(receipt, Duration::ZERO)]).await.unwrap().fenced, []);
    ask::<()>(&mut beside, "XGROUP DESTROY shop shop");
    ask::<()>(&mut beside, "XGROUP CREATE shop shop 0");
    ask::<redis::Value>(&mut beside, "XREADGROUP GROUP shop other STREAMS shop >");
    put(&*producer, &[numbered(2)]).await.unwrap();
    let taken = consumer.consume(WANT).await.unwrap();
    let taken: Vec<_> = taken.iter().map(|one| one.message.id).collect();
    assert_eq!(taken, [numbered(2).message.id]);
    assert_eq!(holders(&mut beside)[0], "other");
    assert_eq!(ask::<u64>(&mut beside, "EXISTS {shop}:brigade:shop:delayed"), 0);
    assert_eq!(ask::<u64>(&mut beside, "EXISTS {shop}:brigade:shop:attempts"), 0);
}

/// What is in flight is renewed all the time, also while a failed message is on its way back.
#[tokio::test]
async fn a_renewal_overrides_no_back_off() {
    const DELAY: Duration = Duration::from_secs(600);
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url(), "vt": "1s" }));
    let (producer, consumer) = open(&Rsmq, &queue).await;
    producer.produce(&(0..1000).map(numbered).collect::<Vec<_>>()).await.unwrap();
    let mut receipts = take(&*consumer, 1000).await.into_iter().map(|(receipt, _)| receipt);
    let (kept, mut fenced) = (receipts.next().unwrap(), Vec::new());
    let kept = consumer.locate(kept).split_once('#').unwrap().1.to_owned();
    let mut renewed = BTreeSet::new();
    while renewed.len() < 4 {
        if let Some(receipt) = receipts.next() {
            let back = vec![failed(receipt, DELAY)];
            fenced.extend(consumer.on_fail(back).await.unwrap().fenced);
        }
        renewed.insert(ask::<String>(&mut beside, &format!("ZSCORE rsmq:shop {kept}")));
    }
    let due: Vec<(String, f64)> = ask(&mut beside, "ZRANGE rsmq:shop 0 -1 WITHSCORES");
    let (seconds, _): (f64, f64) = ask(&mut beside, "TIME");
    let waiting = due.iter().filter(|(_, at)| at / 1000.0 - seconds > 300.0).count();
    assert_eq!(waiting + receipts.len() + fenced.len() + 1, 1000);
}

/// Somebody tidies keys, or the server evicts them.
#[tokio::test]
async fn what_waits_comes_though_the_times_are_gone() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    put(&*producer, &[numbered(1), numbered(2)]).await.unwrap();
    let taken = take(&*consumer, 2).await;
    let later = |(receipt, _): &(Receipt, u32)| failed(*receipt, Duration::from_secs(600));
    assert_eq!(consumer.on_fail(taken.iter().map(later).collect()).await.unwrap().fenced, []);
    assert_eq!(ask::<u64>(&mut beside, "DEL {shop}:brigade:shop:delayed"), 1);
    let again = take(&*consumer, 2).await;
    assert!(again.iter().all(|(_, attempts)| *attempts == 1), "{again:?}");
    let receipts = again.iter().map(|(receipt, _)| *receipt).collect();
    assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
}
