//! Batches of which a server takes a part: what it took is not put again.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use brigade_core::connector::{
    Connector, ConnectorError, Failed, FailedReason, Outgoing, Produced, Producer,
};
use brigade_core::{Message, MessageId};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{PATIENCE, WANT, again, ask, connect, env, next, numbered, open, queue, reader};
use redis::Connection;
use serde_json::json;

/// So many tries end in vain.
const TRIES: usize = 1000;

/// A message that begins with its number and has so many bytes.
fn long(n: usize, bytes: usize) -> Outgoing {
    let mut text = n.to_string();
    text.extend(std::iter::repeat_n(' ', bytes));
    Message::new(text).with_id(MessageId(n as u128 + 1)).into()
}

/// Puts a batch as a stage does: what did not go through is put again. Answers with that, and why.
async fn put(
    producer: &dyn Producer,
    batch: Vec<Outgoing>,
) -> (Vec<Outgoing>, Option<ConnectorError>) {
    let outcomes = match producer.produce(&batch).await {
        Ok(outcomes) => outcomes,
        Err(error) => return (batch, Some(error)),
    };
    let (mut left, mut why) = (Vec::new(), None);
    for (outgoing, outcome) in batch.into_iter().zip(outcomes) {
        match outcome {
            Produced::Confirmed => {}
            Produced::Failed(error) => {
                left.push(outgoing);
                why = Some(error);
            }
            Produced::Rejected(why) => panic!("refused: {why:?}"),
        }
    }
    (left, why)
}

/// Leaves a server room for so many bytes more.
fn leave_room(beside: &mut Connection, bytes: u64) {
    let memory: String = ask(beside, "INFO memory");
    let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let max = used.parse::<u64>().unwrap() + bytes;
    ask::<()>(beside, &format!("CONFIG SET maxmemory {max}"));
}

fn assert_full(why: Option<&ConnectorError>) {
    let why = why.expect("it is told").to_string();
    assert!(why.contains("queue `shop`") && why.contains("`maxmemory`"), "{why}");
}

#[tokio::test]
async fn of_a_batch_larger_than_the_room_each_message_is_on_the_stream_once() {
    const MESSAGES: usize = 200;
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    leave_room(&mut beside, 6 << 20);
    let mut left: Vec<Outgoing> = (0..MESSAGES).map(|n| long(n, 100_000)).collect();
    let (mut came, mut tries) = (Vec::new(), 0);
    while !left.is_empty() {
        let (rest, why) = put(&*producer, left).await;
        left = rest;
        if tries == 0 {
            assert!((1..MESSAGES).contains(&left.len()), "{} of it failed", left.len());
            assert_full(why.as_ref());
        }
        tries += 1;
        assert!(tries < TRIES, "{} are left; {why:?}", left.len());
        while ask::<u64>(&mut beside, "XLEN shop") > 0 {
            let taken = consumer.consume(WANT).await.unwrap();
            let receipts = taken.iter().map(|one| one.receipt).collect();
            assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
            came.extend(taken.into_iter().map(|one| one.message.id));
        }
    }
    came.sort_unstable();
    assert_eq!(came, (1..=MESSAGES as u128).map(MessageId).collect::<Vec<_>>());
}

#[tokio::test]
async fn of_a_batch_larger_than_the_room_each_message_is_on_rsmq_once() {
    const MESSAGES: usize = 600;
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let producer = again(async || Rsmq.producer(&queue, &env()).await).await;
    leave_room(&mut beside, 15 << 20);
    let batch = (0..MESSAGES).map(|n| long(n, 60_000)).collect();
    let (left, why) = put(&*producer, batch).await;
    assert_full(why.as_ref());
    ask::<()>(&mut beside, "CONFIG SET maxmemory 0");
    assert!(put(&*producer, left).await.0.is_empty());
    assert_eq!(ask::<usize>(&mut beside, "ZCARD rsmq:shop"), MESSAGES);
    let sent: usize = ask(&mut beside, "HGET rsmq:shop:Q totalsent");
    assert_eq!(sent, MESSAGES);
}

/// What is put with a delay goes another way.
#[tokio::test]
async fn messages_that_cannot_be_delayed_double_no_others() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let producer = again(async || RedisStreams.producer(&queue, &env()).await).await;
    ask::<()>(&mut beside, "SET {shop}:brigade:later text");
    let delay = Some(Duration::from_secs(600));
    let delayed = |n| Outgoing { delay, ..numbered(n) };
    let batch = vec![numbered(1), delayed(2), numbered(3), delayed(4)];
    let (left, why) = put(&*producer, batch).await;
    assert!(why.unwrap().to_string().contains("a value of another type"));
    assert_eq!(left.iter().map(|one| one.delay).collect::<Vec<_>>(), [delay, delay]);
    ask::<()>(&mut beside, "DEL {shop}:brigade:later");
    assert!(put(&*producer, left).await.0.is_empty());
    assert_eq!(ask::<u64>(&mut beside, "XLEN shop"), 2);
    assert_eq!(ask::<u64>(&mut beside, "ZCARD {shop}:brigade:later"), 2);
}

/// A part of it may be on the queue: nothing is said of any.
#[tokio::test]
async fn of_a_batch_whose_answers_are_lost_only_the_error_is_told() {
    let later = Some(Duration::from_secs(600));
    for (connector, delay) in
        [(&RedisStreams as &dyn Connector, None), (&RedisStreams, later), (&Rsmq, None)]
    {
        let server = Redis::start();
        let queue = queue("shop", json!({ "url": server.url() }));
        let producer = again(async || connector.producer(&queue, &env()).await).await;
        assert!(put(&*producer, vec![numbered(1)]).await.0.is_empty());
        server.kill();
        let batch = [2, 3].map(|n| Outgoing { delay, ..numbered(n) });
        let error = producer.produce(&batch).await.expect_err("nobody knows");
        assert!(error.is_transient(), "{}: {error}", connector.type_name());
    }
}

/// Otherwise one that fails would hold up the acks, which alone make room.
#[tokio::test]
async fn without_room_what_fails_is_put_back_and_the_rest_is_acked_and_given_back() {
    let streams = (&RedisStreams as &dyn Connector, "XLEN shop");
    for (connector, length) in [streams, (&Rsmq, "ZCARD rsmq:shop")] {
        let (server, name) = (Redis::start(), connector.type_name());
        let mut beside = connect(&server);
        let queue = queue("shop", json!({ "url": server.url() }));
        let (producer, consumer) = open(connector, &queue).await;
        assert!(put(&*producer, (0..4).map(numbered).collect()).await.0.is_empty());
        let mut taken = Vec::new();
        while taken.len() < 4 {
            taken.extend(next(&*consumer).await.into_iter().map(|one| one.receipt));
        }
        ask::<()>(&mut beside, "CONFIG SET maxmemory 1");
        let attempt = FailedReason::Attempt { attempts: 1, error: "no".into() };
        for (receipt, reason) in [(taken[0], attempt), (taken[1], FailedReason::Released)] {
            let failed = Failed { receipt, reason, delay: Duration::from_secs(600) };
            let failed = consumer.on_fail(vec![failed]).await;
            assert_eq!(failed.unwrap_or_else(|e| panic!("{name}: {e}")).fenced, [], "{name}");
        }
        assert_eq!(consumer.ack(vec![taken[2]], Vec::new()).await.unwrap().fenced, [], "{name}");
        assert_eq!(ask::<usize>(&mut beside, length), 3, "{name}");
        consumer.shutdown().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        ask::<()>(&mut beside, "CONFIG SET maxmemory 0");
        let after = again(async || connector.consumer(&queue, &reader(), &env()).await).await;
        let came = next(&*after).await;
        assert_eq!((came.len(), came[0].redeliveries), (1, 1), "{name}: it was given back");
    }
}

/// Else what is worked on would be handed out to others as well.
#[tokio::test]
async fn without_room_what_is_received_of_rsmq_is_renewed() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let (producer, consumer) =
        open(&Rsmq, &queue("shop", json!({ "url": server.url(), "vt": "3s" }))).await;
    assert!(put(&*producer, vec![numbered(1)]).await.0.is_empty());
    let taken = next(&*consumer).await;
    ask::<()>(&mut beside, "CONFIG SET maxmemory 1");
    let mut seen = BTreeSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let renewed = tokio::time::timeout(PATIENCE, async {
        while seen.len() < 4 {
            seen.insert(
                ask::<Vec<String>>(&mut beside, "ZRANGE rsmq:shop 0 0 WITHSCORES").remove(1),
            );
            tick.tick().await;
        }
    });
    renewed.await.expect("it is renewed");
    let receipts = vec![taken[0].receipt];
    assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
}
