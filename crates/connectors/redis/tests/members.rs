//! The members of a stream's group: what a live one holds stays with it, whatever the server forgets.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{Connector, Consumer, Want};
use brigade_redis::RedisStreams;
use brigade_testkit::servers::Redis;
use common::{
    PATIENCE, WANT, again, ask, calls, connect, env, nobody_is_blocked, numbered, open, put, queue,
    reader, told,
};
use serde_json::json;

/// What becomes of the keys by which members say that they live.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// They cannot be set: there is no room.
    Oom,
    /// They are the first to go where room is made, and cannot be set again.
    Evicted,
    /// Somebody deletes them.
    Deleted,
    /// The server is away for longer than they last.
    Outage,
}

/// Has another member look for long what others left behind; answers with how many it took from one that
/// lives and does not read.
async fn taken_from_a_live_member(fault: Fault) -> usize {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (producer, holder) = open(&RedisStreams, &queue).await;
    producer.produce(&[numbered(1)]).await.unwrap();
    let held = holder.consume(WANT).await.unwrap();
    let other: Arc<dyn Consumer> =
        again(async || RedisStreams.consumer(&queue, &reader(), &env()).await).await;
    match fault {
        Fault::Oom => ask::<()>(&mut beside, "CONFIG SET maxmemory 1"),
        Fault::Evicted => {
            ask::<()>(&mut beside, "CONFIG SET maxmemory-policy volatile-ttl");
            ask::<()>(&mut beside, "CONFIG SET maxmemory 1");
        }
        Fault::Outage => server.kill(),
        Fault::Deleted => {
            for key in ask::<Vec<String>>(&mut beside, "KEYS *:alive:*") {
                ask::<()>(&mut beside, &format!("DEL {key}"));
            }
        }
    }
    // Longer than a key lasts, and than two looks are apart.
    let begun = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let is_outage = matches!(fault, Fault::Outage);
    let mut is_away = is_outage;
    let looked = tokio::time::timeout(Duration::from_secs(27), async {
        loop {
            match other.consume(WANT).await {
                Ok(taken) if !taken.is_empty() => break taken.len(),
                Ok(_) => {}
                // Also where there is no outage an answer may be late.
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
            if is_away && begun.elapsed() > Duration::from_secs(13) {
                server.restart();
                is_away = false;
            }
            tick.tick().await;
        }
    });
    let taken = looked.await.unwrap_or(0);
    if !is_outage {
        ask::<()>(&mut beside, "CONFIG SET maxmemory 0");
    }
    let receipts = vec![held[0].receipt];
    let fenced = again(|| holder.ack(receipts.clone(), Vec::new())).await.fenced;
    assert_eq!(fenced.len(), taken, "{fault:?}");
    taken
}

#[tokio::test]
async fn a_live_member_keeps_what_it_holds_though_its_key_is_gone() {
    let (oom, evicted, deleted, away) = tokio::join!(
        taken_from_a_live_member(Fault::Oom),
        taken_from_a_live_member(Fault::Evicted),
        taken_from_a_live_member(Fault::Deleted),
        taken_from_a_live_member(Fault::Outage)
    );
    assert_eq!((oom, evicted, deleted, away), (0, 0, 0, 0), "no room, evicted, deleted, away");
}

/// What a dead member held comes, also while there is no room for keys.
#[tokio::test]
async fn a_dead_member_is_taken_over_from_though_there_is_no_room() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    producer.produce(&[numbered(1)]).await.unwrap();
    // It never had a key: it died longer ago than that lasts.
    let read =
        "XREADGROUP GROUP suite brigade-dead COUNT 1 STREAMS shop >".replace("suite", "shop");
    let _: redis::Value = ask(&mut beside, &read);
    ask::<()>(&mut beside, "CONFIG SET maxmemory 1");
    let taken = tokio::time::timeout(Duration::from_secs(180), consumer.consume(WANT)).await;
    let taken = taken.expect("it is taken over").unwrap();
    assert_eq!((taken.len(), taken[0].redeliveries), (1, 1));
}

/// As when a connection breaks while the server waits for entries to answer with: it hands them out later, to
/// nobody, and who could claim them lives.
#[tokio::test]
async fn what_was_handed_out_and_never_came_is_found() {
    // More than the server names at once.
    const HELD: usize = 10_001;
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    put(&*producer, &(3..HELD + 3).map(numbered).collect::<Vec<_>>()).await.unwrap();
    let (mut held, want) = (Vec::new(), Want { messages: HELD, ..WANT });
    while held.len() < HELD {
        held.extend(consumer.consume(want).await.unwrap());
    }
    // Nobody reads now: the next is not this consumer's own.
    put(&*producer, &[numbered(2)]).await.unwrap();
    let members: Vec<Vec<redis::Value>> = ask(&mut beside, "XINFO CONSUMERS shop shop");
    let member: String = redis::from_redis_value(members[0][1].clone()).unwrap();
    let read = format!("XREADGROUP GROUP shop {member} COUNT 1 STREAMS shop >");
    let _: redis::Value = ask(&mut beside, &read);
    let found = tokio::time::timeout(Duration::from_secs(180), consumer.consume(WANT)).await;
    let found = found.expect("it is found").unwrap();
    assert_eq!((found.len(), found[0].redeliveries), (1, 1));
    assert_eq!(found[0].message.payload.as_deref(), Some(&b"2"[..]));
    // What was held stands: it was not handed out again.
    let receipts = held.iter().chain(&found).map(|one| one.receipt).collect();
    assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
    let pending: Vec<redis::Value> = ask(&mut beside, "XPENDING shop shop - + 10");
    assert!(pending.is_empty(), "{pending:?}");
}

/// Each member looks after all others: what that takes must not be as many questions.
#[tokio::test]
async fn looking_after_many_members_is_one_question() {
    const MEMBERS: u64 = 50;
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (_, consumer) = open(&RedisStreams, &queue).await;
    for n in 0..MEMBERS {
        ask::<()>(&mut beside, &format!("SET {{shop}}:brigade:shop:alive:brigade-{n} 1"));
        ask::<()>(&mut beside, &format!("XGROUP CREATECONSUMER shop shop brigade-{n}"));
    }
    let before = calls(&mut beside, "evalsha");
    let looks = calls(&mut beside, "xinfo|consumers");
    while calls(&mut beside, "xinfo|consumers") < looks + 3 {
        let wait = Duration::from_millis(100);
        assert!(tokio::time::timeout(wait, consumer.consume(WANT)).await.is_err(), "nothing comes");
    }
    let scripts = calls(&mut beside, "evalsha") - before;
    assert!(scripts < MEMBERS, "{scripts} scripts in three looks");
}

/// The server would make a member anew that is gone, to give it what a read of it still waits for.
#[tokio::test]
async fn a_member_that_stopped_gets_nothing_more() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    let reading = tokio::spawn({
        let consumer = Arc::clone(&consumer);
        async move { consumer.consume(WANT).await }
    });
    while !ask::<String>(&mut beside, "INFO clients").contains("blocked_clients:1") {
        tokio::task::yield_now().await;
    }
    let begun = tokio::time::Instant::now();
    consumer.shutdown().await.unwrap();
    let (waited, clients) = (begun.elapsed(), ask::<String>(&mut beside, "INFO clients"));
    // Half of that is how long a read waits.
    let is_over = clients.contains("blocked_clients:0") || waited >= Duration::from_secs(1);
    assert!(is_over, "it reads on after {waited:?}");
    assert!(reading.await.unwrap().is_err(), "it is closed");
    // Where a machine stood still it waited in vain, and what the read makes anew goes later.
    nobody_is_blocked(&mut beside).await;
    let begun = tokio::time::Instant::now();
    let mut members = || ask::<Vec<redis::Value>>(&mut beside, "XINFO CONSUMERS shop shop");
    while !members().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{:?}", members());
        tokio::task::yield_now().await;
    }
    producer.produce(&[numbered(1)]).await.unwrap();
    assert!(members().is_empty(), "{:?}", members());
    let next = again(async || RedisStreams.consumer(&queue, &reader(), &env()).await).await;
    let taken = next.consume(WANT).await.unwrap();
    assert_eq!((taken.len(), taken[0].redeliveries), (1, 0));
}

#[tokio::test]
async fn a_member_whose_name_is_no_text_is_claimed_from_and_told() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url(), "claim_idle": "1ms" }));
    let (producer, consumer) = open(&RedisStreams, &queue).await;
    producer.produce(&[numbered(1)]).await.unwrap();
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg("shop").arg(b"\xff\xfe").arg("STREAMS").arg("shop").arg(">");
    read.exec(&mut beside).unwrap();
    let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
    assert_eq!(admin.peek(0, 10).await.unwrap()[0].holder.as_deref(), Some(&b"\xff\xfe"[..]));
    let taken = tokio::time::timeout(Duration::from_secs(180), consumer.consume(WANT)).await;
    assert_eq!(taken.expect("it is claimed").unwrap().len(), 1);
}

/// It would be one more with each try.
#[tokio::test]
async fn a_consumer_that_cannot_be_opened_leaves_no_member() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url().replace("//", "//bob:secret@") }));
    for right in ["zcard", "set"] {
        let user = format!("ACL SETUSER bob reset on >secret ~* &* +@all -{right}");
        ask::<()>(&mut beside, &user);
        let error =
            told("bob", async || RedisStreams.consumer(&queue, &reader(), &env()).await).await;
        assert!(error.to_string().contains(&format!("`ACL SETUSER bob +{right}`")), "{error}");
        let members: Vec<redis::Value> = ask(&mut beside, "XINFO CONSUMERS shop shop");
        assert!(members.is_empty(), "{right}: {members:?}");
    }
}
