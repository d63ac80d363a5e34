//! Which stream of its name it is, and its groups: as when one is deleted and made anew.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::time::Duration;

use brigade_core::MessageId;
use brigade_core::connector::{Connector, Consumer, Failed, FailedReason, Incoming, QueueSpec};
use brigade_redis::RedisStreams;
use brigade_testkit::servers::Redis;
use common::{WANT, again, ask, connect, env, next, queue, reader, stage};
use serde_json::json;

/// The stream `shop`, read by some stages.
fn read_by(url: &str, stages: &[&str]) -> QueueSpec {
    let groups = stages.iter().map(|stage| (*stage).into()).collect();
    QueueSpec { groups, ..queue("shop", json!({ "url": url })) }
}

fn ids(taken: &[Incoming]) -> Vec<MessageId> {
    taken.iter().map(|one| one.message.id).collect()
}

async fn ack(consumer: &dyn Consumer, taken: &[Incoming]) {
    let receipts = taken.iter().map(|one| one.receipt).collect();
    assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
}

async fn put_back(consumer: &dyn Consumer, taken: &[Incoming]) {
    let (reason, delay) = (FailedReason::Released, Duration::ZERO);
    let failed =
        taken.iter().map(|one| Failed { receipt: one.receipt, reason: reason.clone(), delay });
    assert_eq!(consumer.on_fail(failed.collect()).await.unwrap().fenced, []);
}

#[tokio::test]
async fn an_entry_has_one_id_however_the_address_is_written_and_whichever_stage_reads_it() {
    let server = Redis::start();
    ask::<String>(&mut connect(&server), "XADD shop * payload x");
    let elsewhere = server.url().replace("127.0.0.1", "localhost");
    assert_ne!(elsewhere, server.url());
    let (here, there) = (stage(&read_by(&server.url(), &["a", "b"]), "a").await, elsewhere);
    let first = next(&*here).await;
    let other = stage(&read_by(&there, &["a", "b"]), "b").await;
    assert_eq!(ids(&next(&*other).await), ids(&first));
    // Who takes over what it had, and who looks into the queue.
    here.shutdown().await.unwrap();
    let after = stage(&read_by(&there, &["a", "b"]), "a").await;
    assert_eq!(ids(&next(&*after).await), ids(&first));
    let admin =
        again(async || RedisStreams.admin(&read_by(&there, &["a", "b"]), &env()).await).await;
    assert_eq!(admin.peek(0, 1).await.unwrap()[0].message.id, first[0].message.id);
}

/// An output with `dedup` would take what is in it for what was in the one before, and drop it.
#[tokio::test]
async fn entries_of_a_stream_that_is_made_anew_have_other_ids() {
    let server = Redis::start();
    let mut other = connect(&server);
    let queue = read_by(&server.url(), &["a", "b"]);
    for deleted in ["DEL shop", "FLUSHALL"] {
        let (mut a, mut b) = (stage(&queue, "a").await, stage(&queue, "b").await);
        let mut seen = Vec::new();
        for runs in [true, false, true] {
            ask::<String>(&mut other, "XADD shop 1-1 payload x");
            let (taken, others) = (next(&*a).await, next(&*b).await);
            assert_eq!(ids(&taken), ids(&others), "{deleted}");
            assert!(!seen.contains(&taken[0].message.id), "{deleted}: {seen:?}");
            seen.extend(ids(&taken));
            // It stays so when it comes again.
            put_back(&*b, &others).await;
            assert_eq!(ids(&next(&*b).await), ids(&taken), "{deleted}");
            if !runs {
                a.shutdown().await.unwrap();
                b.shutdown().await.unwrap();
            }
            ask::<()>(&mut other, deleted);
            // Another program is there first, with a group of its own.
            ask::<()>(&mut other, "XGROUP CREATE shop theirs 0 MKSTREAM");
            if !runs {
                (a, b) = (stage(&queue, "a").await, stage(&queue, "b").await);
            }
        }
        ask::<()>(&mut other, "FLUSHALL");
    }
}

/// What is in the stream comes again, and is what it was.
#[tokio::test]
async fn entries_keep_their_ids_when_one_group_is_destroyed_and_when_another_stage_is_added() {
    let server = Redis::start();
    let mut other = connect(&server);
    ask::<String>(&mut other, "XADD shop * payload x");
    let queue = read_by(&server.url(), &["a", "b"]);
    let a = stage(&queue, "a").await;
    let first = next(&*a).await;
    ask::<()>(&mut other, "XGROUP DESTROY shop shop.b");
    assert_eq!(ids(&next(&*stage(&queue, "b").await).await), ids(&first));
    let three = read_by(&server.url(), &["a", "b", "c"]);
    assert_eq!(ids(&next(&*stage(&three, "c").await).await), ids(&first));
    // Another pipeline's.
    let theirs = QueueSpec { pipeline: "mill".into(), ..queue };
    assert_eq!(ids(&next(&*stage(&theirs, "a").await).await), ids(&first));
    put_back(&*a, &first).await;
    assert_eq!(ids(&next(&*a).await), ids(&first));
}

/// Somebody may delete it, or the server evict it: other ids, but nothing is lost.
#[tokio::test]
async fn a_stream_is_read_though_its_incarnation_is_gone_and_there_is_no_room() {
    let server = Redis::start();
    let mut other = connect(&server);
    let queue = read_by(&server.url(), &[""]);
    for n in 1..=2 {
        ask::<String>(&mut other, &format!("XADD shop * payload {n}"));
    }
    let a = again(async || RedisStreams.consumer(&queue, &reader(), &env()).await).await;
    let taken = next(&*a).await;
    put_back(&*a, &taken[1..]).await;
    ask::<()>(&mut other, "DEL {shop}:brigade:incarnation");
    ask::<()>(&mut other, "CONFIG SET maxmemory 1");
    let renamed = next(&*a).await;
    assert!(renamed.iter().all(|one| !ids(&taken).contains(&one.message.id)));
    // As after an upgrade, when nothing is kept yet.
    ask::<()>(&mut other, "CONFIG SET maxmemory 0");
    a.shutdown().await.unwrap();
    ask::<()>(&mut other, "DEL {shop}:brigade:incarnation");
    ask::<()>(&mut other, "CONFIG SET maxmemory 1");
    let b = again(async || RedisStreams.consumer(&queue, &reader(), &env()).await).await;
    let mut left = 2;
    while left > 0 {
        let taken = next(&*b).await;
        left -= taken.len();
        ack(&*b, &taken).await;
    }
    assert_eq!(ask::<usize>(&mut other, "XLEN shop"), 0);
}

/// What only one group has to ack is removed with its ack.
#[tokio::test]
async fn who_finds_that_a_stream_is_gone_makes_all_groups_of_it() {
    let server = Redis::start();
    let mut other = connect(&server);
    let queue = read_by(&server.url(), &["count", "store"]);
    let (count, store) = (stage(&queue, "count").await, stage(&queue, "store").await);
    ask::<()>(&mut other, "DEL shop");
    // The other stage is blocked: it does not read.
    for n in 1..=30 {
        ask::<String>(&mut other, &format!("XADD shop * payload {n}"));
    }
    for consumer in [count, store] {
        let mut left = 30;
        while left > 0 {
            let taken = next(&*consumer).await;
            left -= taken.len();
            ack(&*consumer, &taken).await;
        }
    }
}

/// As the documentation tells.
#[tokio::test]
async fn what_a_stage_keeps_that_never_runs_goes_with_its_group() {
    const MANY: usize = 250;
    let server = Redis::start();
    let mut other = connect(&server);
    for n in 0..MANY {
        ask::<String>(&mut other, &format!("XADD shop * payload {n}"));
    }
    let first = stage(&read_by(&server.url(), &["count", "never"]), "count").await;
    let mut left = MANY;
    while left > 0 {
        let taken = next(&*first).await;
        left -= taken.len();
        ack(&*first, &taken).await;
    }
    assert_eq!(ask::<usize>(&mut other, "XLEN shop"), MANY);
    first.shutdown().await.unwrap();
    let alone = queue("shop", json!({ "url": server.url(), "group": "shop.count" }));
    let last = again(async || RedisStreams.consumer(&alone, &reader(), &env()).await).await;
    ask::<()>(&mut other, "XGROUP DESTROY shop shop.never");
    let gone = tokio::time::timeout(Duration::from_secs(180), async {
        // Redis removes as many as it keeps together.
        while ask::<usize>(&mut other, "XLEN shop") > 100 {
            let wait = Duration::from_millis(100);
            let again = tokio::time::timeout(wait, last.consume(WANT)).await;
            assert!(again.is_err(), "{again:?}");
        }
    });
    gone.await.expect("what was kept goes");
}
