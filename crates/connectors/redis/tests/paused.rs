//! What a stage has read and not begun when it is paused: others get it as if nobody had read it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use brigade_core::connector::{Connector, Consumer, Incoming, Want};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{again, ask, connect, env, next, numbered, open, put, queue, reader, sent};
use serde_json::{Value, json};

/// Of what is read, the first is handed out; others wait.
const ONE: Want = Want { messages: 10, bytes: 1 };

fn number(incoming: &Incoming) -> usize {
    std::str::from_utf8(incoming.message.payload.as_deref().unwrap()).unwrap().parse().unwrap()
}

async fn first(consumer: &dyn Consumer) -> Incoming {
    again(async || consumer.consume(ONE).await).await.remove(0)
}

async fn ack(consumer: &dyn Consumer, taken: &[Incoming]) {
    let receipts = taken.iter().map(|one| one.receipt).collect();
    assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
}

/// A program may pause and resume every few seconds.
async fn pauses_change_no_order(connector: &dyn Connector, settings: Value, at_once: usize) {
    let server = Redis::start();
    let mut settings = settings;
    settings["url"] = json!(server.url());
    let queue = queue("s", settings);
    let (producer, one) = open(connector, &queue).await;
    // In a stream most have the same millisecond; RSMQ keeps no order of what is sent at once.
    for part in (0..40).map(numbered).collect::<Vec<_>>().chunks(at_once) {
        put(&*producer, part).await.unwrap();
    }
    let another = async || connector.consumer(&queue, &reader(), &env()).await;
    let before = again(another).await;
    let eight = next(&*before).await;
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(first(&*one).await);
        again(async || one.put_back().await).await;
    }
    let (other, mut rest) = (again(another).await, Vec::new());
    while rest.len() < 29 {
        rest.extend(next(&*other).await);
    }
    let numbers = |all: &[Incoming]| all.iter().map(number).collect::<Vec<_>>();
    assert_eq!(numbers(&taken), [8, 9, 10]);
    assert_eq!(numbers(&rest), (11..40).collect::<Vec<_>>());
    let counted = taken.iter().chain(&rest).any(|one| one.redeliveries > 0);
    assert_eq!(counted, at_once == 1, "only RSMQ counts what it has received");
    for (consumer, taken) in [(one, taken), (before, eight), (other, rest)] {
        ack(&*consumer, &taken).await;
    }
}

#[tokio::test]
async fn pauses_change_neither_order_nor_counts_in_a_stream() {
    pauses_change_no_order(&RedisStreams, json!({}), 40).await;
}

#[tokio::test]
async fn pauses_change_no_order_in_rsmq() {
    pauses_change_no_order(&Rsmq, json!({ "vt": "1h" }), 1).await;
}

/// A pause may be over at once.
#[tokio::test]
async fn who_drops_a_putting_back_leaves_nothing_hidden() {
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let (server, mut random) = (Redis::start(), fastrand::Rng::with_seed(7));
        let mut beside = connect(&server);
        let mut settings = json!({ "url": server.url() });
        if connector.type_name() == Rsmq.type_name() {
            settings["vt"] = json!("1h");
        }
        let queue = queue("s", settings);
        for _ in 0..50 {
            // The first read asks for eight, whatever it may hand out.
            let (producer, one) = open(connector, &queue).await;
            put(&*producer, &(0..8).map(numbered).collect::<Vec<_>>()).await.unwrap();
            let mut taken = vec![first(&*one).await];
            // It takes longer: each script has to be sent again.
            ask::<()>(&mut beside, "SCRIPT FLUSH");
            let (begun, moment) = (Instant::now(), Duration::from_micros(random.u64(..600)));
            let is_over = async {
                // A timer is too coarse.
                while begun.elapsed() < moment {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                _ = one.put_back() => {}
                () = is_over => {}
            }
            while taken.len() < 8 {
                taken.extend(next(&*one).await);
            }
            let numbers: BTreeSet<usize> = taken.iter().map(number).collect();
            assert!(numbers.into_iter().eq(0..8));
            ack(&*one, &taken).await;
        }
    }
}

/// It may be too long to come in time, and would count as handed out each time.
#[tokio::test]
async fn what_never_came_is_put_back_without_bringing_it() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("s", json!({ "url": server.url() }));
    let (producer, one) = open(&RedisStreams, &queue).await;
    put(&*producer, &(0..4).map(numbered).collect::<Vec<_>>()).await.unwrap();
    let kept = first(&*one).await;
    let pending: Vec<(String, String, u64, u64)> = ask(&mut beside, "XPENDING s shop - + 10");
    let member = &pending[0].1;
    for _ in 0..3 {
        let payload = vec![b'x'; 1 << 20];
        redis::cmd("XADD").arg("s").arg("*").arg("payload").arg(payload).exec(&mut beside).unwrap();
    }
    // As if the answer had been lost; one of these has been deleted.
    let read = format!("XREADGROUP GROUP shop {member} STREAMS s >");
    ask::<redis::Value>(&mut beside, &read);
    let pending: Vec<(String, String, u64, u64)> = ask(&mut beside, "XPENDING s shop - + 10");
    ask::<u64>(&mut beside, &format!("XDEL s {}", pending[5].0));
    let before = sent(&mut beside);
    again(async || one.put_back().await).await;
    let brought = sent(&mut beside) - before;
    assert!(brought < 1 << 20, "{brought} bytes");
    let back: Vec<(String, String, u64, u64)> = ask(&mut beside, "XPENDING s shop - + 10 ~delayed");
    let counts: Vec<u64> = back.iter().map(|one| one.3).collect();
    assert_eq!(counts, [0, 0, 0, 1, 1], "an answer that was lost counts, once");
    assert_eq!(ask::<u64>(&mut beside, "ZCARD {s}:brigade:shop:delayed"), 5);
    ack(&*one, &[kept]).await;
}
