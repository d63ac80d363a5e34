//! Streams with a retention: what is acked stays for a while, what is not always.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{
    Connector, ConnectorEnv, Consumer, Failed, FailedReason, Order, Outgoing, QueueSpec, Reader,
    Receipt, Want,
};
use brigade_core::{Message, MessageId};
use brigade_memory::MemoryState;
use brigade_redis::RedisStreams;
use brigade_testkit::servers::Redis;
use common::again;
use redis::Connection;
use serde_json::{Value, json};

/// Redis removes as many entries as it keeps together, or none.
const NODE: usize = 4;
const GROUPS: [&str; 2] = ["a", "b"];
const WANT: Want = Want { messages: 10, bytes: usize::MAX };

fn env() -> ConnectorEnv {
    ConnectorEnv { state: MemoryState::new() }
}

fn start() -> (Redis, Connection) {
    let server = Redis::start_with(&["--stream-node-max-entries", &NODE.to_string()]);
    let connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    (server, connection)
}

fn queue(server: &Redis, groups: &[&str], retention: Value) -> QueueSpec {
    let settings = json!({ "url": server.url(), "retention": retention });
    let groups = groups.iter().map(|group| (*group).into()).collect();
    QueueSpec { groups, ..QueueSpec::new("shop", "s", settings) }
}

async fn open(queue: &QueueSpec, group: &str) -> Arc<dyn Consumer> {
    let reader = Reader { stage: "test".into(), group: group.into(), order: Order::None };
    again(async || RedisStreams.consumer(queue, &reader, &env()).await).await
}

fn numbered(n: usize) -> Outgoing {
    Message::new(n.to_string()).with_id(MessageId(n as u128 + 1)).into()
}

/// The numbers on the stream.
fn there(connection: &mut Connection) -> BTreeSet<usize> {
    let entries: Vec<(String, Vec<(String, String)>)> =
        redis::cmd("XRANGE").arg("s").arg("-").arg("+").query(connection).unwrap();
    entries.into_iter().map(|(_, fields)| fields[0].1.parse().unwrap()).collect()
}

/// A group that takes at random, and what is known of it.
struct Taker {
    group: &'static str,
    consumer: Arc<dyn Consumer>,
    held: BTreeMap<usize, Receipt>,
    unacked: BTreeSet<usize>,
}

impl Taker {
    async fn take(&mut self) {
        if self.held.len() == self.unacked.len() {
            return;
        }
        for one in self.consumer.consume(WANT).await.unwrap() {
            let payload = one.message.payload.as_deref().unwrap();
            let n: usize = std::str::from_utf8(payload).unwrap().parse().unwrap();
            assert!(self.unacked.contains(&n), "{}: {n} is acked", self.group);
            assert_eq!(self.held.insert(n, one.receipt), None, "{}: {n} is held", self.group);
        }
    }

    /// Resolves some of what it holds.
    async fn resolve(&mut self, random: &mut fastrand::Rng, may_fail: bool) {
        let (mut acked, mut failed) = (Vec::new(), Vec::new());
        for (n, receipt) in std::mem::take(&mut self.held) {
            match random.u8(..4) {
                0 => drop(self.held.insert(n, receipt)),
                1 if may_fail => failed.push(receipt),
                _ => {
                    acked.push(receipt);
                    self.unacked.remove(&n);
                }
            }
        }
        let reason = FailedReason::Attempt { attempts: 1, error: "no".into() };
        let fail = |receipt| Failed { receipt, reason: reason.clone(), delay: Duration::ZERO };
        let failed = failed.into_iter().map(fail).collect();
        assert_eq!(self.consumer.on_fail(failed).await.unwrap().fenced, []);
        assert_eq!(self.consumer.ack(acked, Vec::new()).await.unwrap().fenced, []);
    }
}

#[tokio::test]
async fn whatever_is_put_taken_and_acked_only_what_is_acked_goes_and_not_much_stays() {
    const MESSAGES: usize = 30;
    for seed in 0..4 {
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let (server, mut connection) = start();
        // With a single group acked entries would be deleted at once.
        let groups = &GROUPS[..1 + seed as usize % 2];
        let queue = queue(&server, groups, json!({ "messages": MESSAGES }));
        let producer = again(async || RedisStreams.producer(&queue, &env()).await).await;
        let mut takers = Vec::new();
        for group in groups {
            let consumer = open(&queue, group).await;
            let (held, unacked) = (BTreeMap::new(), BTreeSet::new());
            takers.push(Taker { group, consumer, held, unacked });
        }
        let mut put = 0;
        for step in 0..400 {
            let taker = random.usize(..takers.len());
            match random.u8(..8) {
                0..2 => {
                    let many = random.usize(1..20);
                    let batch: Vec<Outgoing> = (put..put + many).map(numbered).collect();
                    producer.produce(&batch).await.unwrap();
                    takers.iter_mut().for_each(|taker| taker.unacked.extend(put..put + many));
                    put += many;
                }
                2..5 => takers[taker].take().await,
                5..7 => takers[taker].resolve(&mut random, step % 2 == 0).await,
                _ => {
                    // Another member gets what this one held.
                    takers[taker].consumer.shutdown().await.unwrap();
                    takers[taker].consumer = open(&queue, takers[taker].group).await;
                    takers[taker].held.clear();
                }
            }
            let there = there(&mut connection);
            for taker in &takers {
                let lost: Vec<_> = taker.unacked.difference(&there).collect();
                assert!(lost.is_empty(), "step {step}: {} has not acked {lost:?}", taker.group);
            }
        }
        for taker in &mut takers {
            while !taker.unacked.is_empty() {
                taker.take().await;
                taker.resolve(&mut random, false).await;
            }
            assert_eq!(taker.consumer.lag().await.unwrap().ready, Some(0), "{}", taker.group);
        }
        let there = there(&mut connection);
        assert!(put > 500 && (MESSAGES..MESSAGES + 2 * NODE).contains(&there.len()), "{there:?}");
        assert_eq!(there.last(), Some(&(put - 1)), "the newest stay");
    }
}

#[tokio::test]
async fn acked_entries_stay_until_they_are_too_old() {
    let (server, mut connection) = start();
    let queue = queue(&server, &[""], json!({ "age": "2s" }));
    let producer = again(async || RedisStreams.producer(&queue, &env()).await).await;
    let consumer = open(&queue, "").await;
    // The entries' times are told by the server, before it answers.
    let begun = tokio::time::Instant::now();
    producer.produce(&(0..40).map(numbered).collect::<Vec<_>>()).await.unwrap();
    let (mut seen, mut last) = (0, None);
    while seen < 40 {
        let mut taken = consumer.consume(WANT).await.unwrap();
        seen += taken.len();
        if seen == 40 {
            last = taken.pop().map(|one| one.receipt);
        }
        let receipts = taken.iter().map(|one| one.receipt).collect();
        consumer.ack(receipts, Vec::new()).await.unwrap();
    }
    let stayed = there(&mut connection).len();
    assert!(stayed == 40 || begun.elapsed() > Duration::from_secs(1), "{stayed}");
    // Acked ones are history: who looks into the queue sees what is not.
    let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
    assert_eq!(admin.peek(0, 100).await.unwrap().len(), 1);
    assert_eq!(admin.status().await.unwrap()[0].lag.ready, Some(0));
    // They go while nothing comes, up to the one that is not acked.
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let went = async {
        while there(&mut connection).len() > NODE {
            tick.tick().await;
        }
    };
    tokio::select! {
        taken = consumer.consume(WANT) => panic!("nothing was put: {taken:?}"),
        () = went => {}
    }
    assert!(begun.elapsed() > Duration::from_millis(1900), "{:?}", begun.elapsed());
    assert!(there(&mut connection).contains(&39));
    consumer.ack(vec![last.unwrap()], Vec::new()).await.unwrap();
    assert_eq!(admin.peek(0, 100).await.unwrap().len(), 0);
}

/// Without a retention, and with one group: nobody else removes it.
#[tokio::test]
async fn what_another_group_or_a_retention_left_behind_goes() {
    for left_by in ["group", "retention"] {
        let (server, mut connection) = start();
        let plain = QueueSpec {
            groups: vec!["".into()],
            ..QueueSpec::new("shop", "s", json!({ "url": server.url() }))
        };
        let before = match left_by {
            "group" => plain.clone(),
            _ => queue(&server, &[""], json!({ "messages": 1000 })),
        };
        let producer = again(async || RedisStreams.producer(&before, &env()).await).await;
        producer.produce(&(0..40).map(numbered).collect::<Vec<_>>()).await.unwrap();
        let mut group = |what: &str| {
            let mut asked = redis::cmd("XGROUP");
            asked.arg(what).arg("s").arg("other").arg((what == "CREATE").then_some("0"));
            asked.query::<redis::Value>(&mut connection).unwrap()
        };
        if left_by == "group" {
            group("CREATE");
        }
        let consumer = open(&before, "").await;
        let mut seen = 0;
        while seen < 40 {
            let taken = consumer.consume(WANT).await.unwrap();
            seen += taken.len();
            let receipts = taken.iter().map(|one| one.receipt).collect();
            consumer.ack(receipts, Vec::new()).await.unwrap();
        }
        consumer.shutdown().await.unwrap();
        if left_by == "group" {
            group("DESTROY");
        }
        assert_eq!(there(&mut connection).len(), 40, "{left_by}");
        producer.produce(&[numbered(40), numbered(41), numbered(42)]).await.unwrap();
        let admin = again(async || RedisStreams.admin(&plain, &env()).await).await;
        assert_eq!(admin.status().await.unwrap()[0].lag.ready, Some(3), "{left_by}");
        let consumer = open(&plain, "").await;
        let want = Want { messages: 1, ..WANT };
        let held = consumer.consume(want).await.unwrap();
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let mut more = 0;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(180);
        while there(&mut connection).len() > 3 + NODE {
            assert!(tokio::time::Instant::now() < deadline, "{left_by}: it stays");
            tokio::select! {
                taken = consumer.consume(WANT) => more += taken.unwrap().len(),
                _ = tick.tick() => {}
            }
        }
        assert!(there(&mut connection).is_superset(&[40, 41, 42].into()), "{left_by}");
        let lag = admin.status().await.unwrap().swap_remove(0).lag;
        assert_eq!((lag.ready, lag.in_flight), (Some(2 - more as u64), Some(1 + more as u64)));
        assert_eq!(consumer.ack(vec![held[0].receipt], Vec::new()).await.unwrap().fenced, []);
    }
}

#[tokio::test]
async fn a_stream_that_no_group_reads_is_bounded_by_who_puts() {
    let (server, mut connection) = start();
    let queue = queue(&server, &[], json!({ "messages": 100 }));
    let producer = again(async || RedisStreams.producer(&queue, &env()).await).await;
    for from in (0..10_000).step_by(250) {
        producer.produce(&(from..from + 250).map(numbered).collect::<Vec<_>>()).await.unwrap();
        let there = there(&mut connection).len();
        // It trims after a thousand.
        assert!(there <= 100 + 1000 + 250 + NODE, "{there}");
    }
}

#[tokio::test]
async fn what_a_group_was_set_back_to_stays() {
    let (server, mut connection) = start();
    let queue = queue(&server, &[""], json!({ "messages": 1 }));
    let producer = again(async || RedisStreams.producer(&queue, &env()).await).await;
    let mut ask = |command: &str| -> redis::Value {
        let mut words = command.split(' ');
        let mut asked = redis::cmd(words.next().unwrap());
        asked.arg(words.collect::<Vec<_>>()).query(&mut connection).unwrap()
    };
    ask("XGROUP CREATE s other 0");
    producer.produce(&(0..40).map(numbered).collect::<Vec<_>>()).await.unwrap();
    // The other group has all and begins again.
    ask("XREADGROUP GROUP other member COUNT 39 NOACK STREAMS s >");
    ask("XREADGROUP GROUP other member STREAMS s >");
    ask("XGROUP SETID s other 0");
    let consumer = open(&queue, "").await;
    let mut seen = 0;
    while seen < 40 {
        let taken = consumer.consume(WANT).await.unwrap();
        seen += taken.len();
        let receipts = taken.iter().map(|one| one.receipt).collect();
        consumer.ack(receipts, Vec::new()).await.unwrap();
    }
    assert_eq!(there(&mut connection).len(), 40);
}

#[test]
fn a_retention_that_bounds_nothing_is_refused() {
    for retention in [json!({}), json!({ "messages": 0 }), json!({ "age": "0s" })] {
        let settings = json!({ "retention": retention });
        let problems = RedisStreams.check(&QueueSpec::new("shop", "s", settings));
        assert_eq!((problems.len(), &*problems[0].path), (1, &["retention".to_owned()][..]));
    }
}
