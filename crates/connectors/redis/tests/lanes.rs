//! Lanes whose thread a component keeps for itself: neither what they hold nor what others put suffers.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::sync::{Arc, mpsc};
use std::task::Poll;
use std::time::Duration;

use brigade_core::connector::{Connector, Produced, Producer, Want};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{WANT, again, ask, connect, env, numbered, open, put, queue, reader};
use serde_json::json;

async fn is_put_at_once(producer: &dyn Producer, n: usize) -> bool {
    let produced = producer.produce(&[numbered(n)]).await;
    matches!(produced.as_deref(), Ok([Produced::Confirmed]))
}

/// Has a lane put something, as the first to ask, and keep its thread until told to go on.
fn a_lane_that_keeps_its_thread(
    producer: Arc<dyn Producer>,
    go_on: mpsc::Receiver<()>,
) -> std::thread::JoinHandle<()> {
    let (put, is_put) = mpsc::channel();
    let lane = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            while !is_put_at_once(&*producer, 1).await {}
            put.send(()).unwrap();
            go_on.recv().unwrap();
        });
    });
    is_put.recv().unwrap();
    lane
}

/// They share its producer.
async fn others_put_while_a_lane_keeps_its_thread(connector: &dyn Connector, count: &str) {
    let server = Redis::start();
    let queue = queue("shop", json!({ "url": server.url() }));
    let producer = again(async || connector.producer(&queue, &env()).await).await;
    // As after a connection that broke: the next to ask makes another.
    let mut beside = connect(&server);
    ask::<u64>(&mut beside, "CLIENT KILL TYPE normal SKIPME yes");
    let (go_on, waits) = mpsc::channel();
    let lane = a_lane_that_keeps_its_thread(Arc::clone(&producer), waits);
    let is_put = is_put_at_once(&*producer, 2).await;
    go_on.send(()).unwrap();
    lane.join().unwrap();
    assert!(is_put, "no answer in time, though the server is well");
    assert_eq!(ask::<u64>(&mut beside, count), 2);
}

#[tokio::test]
async fn a_lane_that_keeps_its_thread_doubles_nothing_on_a_stream() {
    others_put_while_a_lane_keeps_its_thread(&RedisStreams, "XLEN shop").await;
}

#[tokio::test]
async fn a_lane_that_keeps_its_thread_doubles_nothing_on_rsmq() {
    others_put_while_a_lane_keeps_its_thread(&Rsmq, "ZCARD rsmq:shop").await;
}

/// For how long a received message of RSMQ is hidden from others.
const VT: Duration = Duration::from_secs(20);

/// What a lane that works on one message has received, and nobody asked for yet, too.
#[tokio::test]
async fn what_rsmq_handed_out_stays_hidden_for_as_long_as_a_call_takes() {
    let server = Redis::start();
    let queue = queue("shop", json!({ "url": server.url(), "vt": "20s" }));
    let (producer, other) = open(&Rsmq, &queue).await;
    producer.produce(&[numbered(1), numbered(2), numbered(3)]).await.unwrap();
    let ((holds, is_held), (go_on, waits)) = (mpsc::channel(), mpsc::channel::<()>());
    let lane = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let consumer = again(async || Rsmq.consumer(&queue, &reader(), &env()).await).await;
            let one = Want { messages: 10, bytes: 1 };
            let mut receipts = vec![consumer.consume(one).await.unwrap()[0].receipt];
            holds.send(()).unwrap();
            waits.recv().unwrap();
            while receipts.len() < 3 {
                receipts.push(consumer.consume(one).await.unwrap()[0].receipt);
            }
            consumer.ack(receipts, Vec::new()).await.unwrap().fenced.len()
        })
    });
    is_held.recv().unwrap();
    let longer = VT + Duration::from_secs(5);
    let taken = tokio::time::timeout(longer, again(|| other.consume(WANT))).await;
    go_on.send(()).unwrap();
    assert!(taken.is_err(), "others received what is worked on");
    assert_eq!(lane.join().unwrap(), 0, "leases were lost");
}

#[tokio::test]
async fn what_became_anothers_before_it_was_asked_for_is_not_handed_out() {
    let server = Redis::start();
    let mut beside = connect(&server);
    ask::<()>(&mut beside, "ACL SETUSER bob reset on >secret ~* &* +@all");
    let settings = |url: &str| queue("shop", json!({ "url": url, "vt": "20s" }));
    let bobs = settings(&server.url().replace("//", "//bob:secret@"));
    let (producer, consumer) = open(&Rsmq, &bobs).await;
    producer.produce(&[numbered(1), numbered(2), numbered(3)]).await.unwrap();
    let first = consumer.consume(Want { messages: 10, bytes: 1 }).await.unwrap();
    // It cannot renew what it has.
    ask::<()>(&mut beside, "ACL SETUSER bob -zadd");
    let (_, other) = open(&Rsmq, &settings(&server.url())).await;
    let mut taken = Vec::new();
    while taken.len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(180), other.consume(WANT)).await;
        taken.extend(next.expect("they come").unwrap());
    }
    ask::<()>(&mut beside, "ACL SETUSER bob +zadd");
    producer.produce(&[numbered(4)]).await.unwrap();
    let next = consumer.consume(WANT).await.unwrap();
    let next: Vec<_> = next.iter().map(|one| one.message.payload.as_deref().unwrap()).collect();
    assert_eq!(next, [b"4"]);
    let late = consumer.ack(vec![first[0].receipt], Vec::new()).await.unwrap();
    assert_eq!(late.fenced, [first[0].receipt]);
    let receipts = taken.iter().map(|one| one.receipt).collect();
    assert_eq!(other.ack(receipts, Vec::new()).await.unwrap().fenced, []);
}

/// As at the end of a supervisor whose lane is stuck in a call: also what it was just receiving.
async fn others_receive_what_a_lane_held_that_keeps_its_thread(
    connector: &dyn Connector,
    settings: impl Fn(&Redis) -> serde_json::Value,
) {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", settings(&server));
    let (producer, consumer) = open(connector, &queue).await;
    put(&*producer, &[numbered(1), numbered(2), numbered(3)]).await.unwrap();
    let mut held = 0;
    while held < 3 {
        held += consumer.consume(WANT).await.unwrap().len();
    }
    put(&*producer, &[numbered(4)]).await.unwrap();
    ask::<()>(&mut beside, "CLIENT PAUSE 60000 WRITE");
    let ((asks, is_asked), (go_on, waits)) = (mpsc::channel(), mpsc::channel::<()>());
    let stuck = Arc::clone(&consumer);
    let lane = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut receiving = stuck.consume(WANT);
            let first = std::future::poll_fn(|cx| Poll::Ready(receiving.as_mut().poll(cx))).await;
            asks.send(first.is_pending()).unwrap();
            waits.recv().unwrap();
            receiving.await.is_err()
        })
    });
    assert!(is_asked.recv().unwrap(), "the server answers nobody");
    let closes = tokio::spawn(async move { consumer.shutdown().await });
    ask::<()>(&mut beside, "CLIENT UNPAUSE");
    let closed = tokio::time::timeout(Duration::from_secs(30), closes).await;
    let (_, other) = open(connector, &queue).await;
    let mut taken = 0;
    while closed.is_ok() && taken < 4 {
        let next = tokio::time::timeout(Duration::from_secs(180), other.consume(WANT)).await;
        taken += next.expect("they come").unwrap().len();
    }
    go_on.send(()).unwrap();
    assert!(lane.join().unwrap(), "who is closed hands nothing out");
    closed.expect("no lane is waited for").unwrap().unwrap();
}

#[tokio::test]
async fn what_a_closed_lane_held_that_keeps_its_thread_comes_to_others_of_rsmq() {
    let settings = |server: &Redis| json!({ "url": server.url(), "vt": "1h" });
    others_receive_what_a_lane_held_that_keeps_its_thread(&Rsmq, settings).await;
}

#[tokio::test]
async fn what_a_closed_lane_held_that_keeps_its_thread_comes_to_others_of_a_stream() {
    let settings = |server: &Redis| json!({ "url": server.url() });
    others_receive_what_a_lane_held_that_keeps_its_thread(&RedisStreams, settings).await;
}
