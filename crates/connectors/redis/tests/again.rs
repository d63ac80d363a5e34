//! What somebody has taken away, or a server has lost, is made again, and nothing that was confirmed goes with it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use brigade_core::MessageId;
use brigade_core::connector::{
    Connector, Consumer, Failed, FailedReason, Incoming, Outgoing, QueueSpec, Receipt,
};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{PATIENCE, WANT, ask, connect, env, next, numbered, open, put, queue, reader, stage};
use redis::Connection;
use serde_json::json;

/// The stream `shop`, read by some stages.
fn read_by(queue: QueueSpec, stages: &[&str]) -> QueueSpec {
    QueueSpec { groups: stages.iter().map(|stage| (*stage).into()).collect(), ..queue }
}

/// Takes and acks so many different messages.
async fn drain(consumer: &dyn Consumer, many: usize) {
    let mut seen: BTreeSet<MessageId> = BTreeSet::new();
    while seen.len() < many {
        let taken = next(consumer).await;
        seen.extend(taken.iter().map(|one| one.message.id));
        let receipts = taken.iter().map(|one| one.receipt).collect();
        assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
    }
}

/// As when a server that keeps nothing is started again: who writes is there before who reads.
#[tokio::test]
async fn what_is_put_on_a_stream_that_went_is_not_trimmed_before_its_groups_have_it() {
    const MESSAGES: usize = 3000;
    for retention in [json!({ "messages": 10 }), json!({ "age": "1ms" })] {
        let server = Redis::start();
        let mut beside = connect(&server);
        let settings = json!({ "url": server.url(), "retention": retention });
        let queue = read_by(queue("shop", settings), &["a", "b"]);
        let producer = RedisStreams.producer(&queue, &env()).await.unwrap();
        put(&*producer, &[numbered(0)]).await.unwrap();
        ask::<()>(&mut beside, "DEL shop");
        let all: Vec<Outgoing> = (1..=MESSAGES).map(numbered).collect();
        for batch in all.chunks(250) {
            put(&*producer, batch).await.unwrap();
        }
        for name in ["a", "b"] {
            drain(&*stage(&queue, name).await, MESSAGES).await;
        }
    }
}

/// It begins anew with all that is there.
#[tokio::test]
async fn what_one_group_acks_stays_while_another_of_the_file_is_missing() {
    const MESSAGES: usize = 300;
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = read_by(queue("shop", json!({ "url": server.url() })), &["a", "b"]);
    let (producer, a) = (RedisStreams.producer(&queue, &env()).await.unwrap(), stage(&queue, "a"));
    let a = a.await;
    ask::<()>(&mut beside, "XGROUP DESTROY shop shop.b");
    put(&*producer, &(0..MESSAGES).map(numbered).collect::<Vec<_>>()).await.unwrap();
    drain(&*a, MESSAGES).await;
    drain(&*stage(&queue, "b").await, MESSAGES).await;
}

/// As a server does that has lost the end of what it knew: the same handing-over, twice.
#[tokio::test]
async fn what_was_handed_out_twice_as_one_is_not_settled_twice_in_one_step() {
    let streams = (&RedisStreams as &dyn Connector, ["shop", "out"]);
    for (connector, outputs) in [streams, (&Rsmq, ["rsmq:shop", "rsmq:out"])] {
        let (server, name) = (Redis::start(), connector.type_name());
        let mut beside = connect(&server);
        let place = json!({ "url": server.url() });
        let (producer, consumer) = open(connector, &queue("shop", place.clone())).await;
        let output = connector.producer(&queue("out", place), &env()).await.unwrap();
        put(&*producer, &[numbered(1)]).await.unwrap();
        let mut receipts = vec![next(&*consumer).await[0].receipt];
        hand_out_anew(&mut beside, outputs[0]);
        receipts.push(next(&*consumer).await[0].receipt);
        assert_eq!(receipts[0].fence, receipts[1].fence, "{name}");
        let ops = output.stage(&[numbered(2)]).await.unwrap().ops;
        let twice = [ops.clone(), ops.clone()].concat();
        let acked = consumer.ack(receipts.clone(), twice).await.unwrap();
        assert!(!acked.fenced.is_empty(), "{name}: both were acked");
        assert_eq!(length(&mut beside, outputs[1]), 0, "{name}");
        // It is settled once: by what comes again, or by the one of the two that stands.
        let left: Vec<_> =
            receipts.iter().filter(|one| !acked.fenced.contains(one)).copied().collect();
        let left = match left.is_empty() {
            true => again(&*consumer, &mut beside, outputs[0]).await,
            false => left,
        };
        assert_eq!(consumer.ack(left, ops).await.unwrap().fenced, [], "{name}");
        let lengths = outputs.map(|key| length(&mut beside, key));
        assert_eq!(lengths, [0, 1], "{name}");
    }
}

/// How many there are at a key.
fn length(beside: &mut Connection, key: &str) -> usize {
    let length = if key.starts_with("rsmq:") { "ZCARD" } else { "XLEN" };
    ask(beside, &format!("{length} {key}"))
}

/// Takes a handing-over back.
fn hand_out_anew(beside: &mut Connection, key: &str) {
    if !key.starts_with("rsmq:") {
        let mut anew = redis::pipe();
        anew.atomic().cmd("XGROUP").arg("DESTROY").arg(key).arg("shop").ignore();
        anew.cmd("XGROUP").arg("CREATE").arg(key).arg("shop").arg("0").ignore();
        return anew.query(beside).unwrap();
    }
    let id = ask::<Vec<String>>(beside, &format!("ZRANGE {key} 0 0")).remove(0);
    ask::<()>(beside, &format!("HSET {key}:Q {id}:rc 0"));
    ask::<()>(beside, &format!("ZADD {key} 0 {id}"));
}

/// What is handed out again, with another fence: of RSMQ when its time is over.
async fn again(consumer: &dyn Consumer, beside: &mut Connection, key: &str) -> Vec<Receipt> {
    if key.starts_with("rsmq:") {
        let id = ask::<Vec<String>>(beside, &format!("ZRANGE {key} 0 0")).remove(0);
        ask::<()>(beside, &format!("ZADD {key} 0 {id}"));
    }
    next(consumer).await.iter().map(|one| one.receipt).collect()
}

/// A queue is shared with clients that know nothing of attempts.
#[tokio::test]
async fn of_what_another_client_deletes_no_attempts_are_kept() {
    const ATTEMPTS: &str = "HLEN rsmq:shop:brigade:attempts";
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    for deleted in ["messages", "queue"] {
        ask::<()>(&mut beside, "FLUSHALL");
        let (producer, consumer) = open(&Rsmq, &queue).await;
        put(&*producer, &(0..300).map(numbered).collect::<Vec<_>>()).await.unwrap();
        let (mut failed, mut last) = (0, None);
        while failed < 300 {
            let taken = consumer.consume(WANT).await.unwrap();
            failed += taken.len();
            let delay = Duration::from_secs(600);
            let reason = FailedReason::Attempt { attempts: 1, error: "no".into() };
            let fail =
                |one: &Incoming| Failed { receipt: one.receipt, reason: reason.clone(), delay };
            assert_eq!(
                consumer.on_fail(taken.iter().map(fail).collect()).await.unwrap().fenced,
                []
            );
            last = taken.last().map(|one| one.receipt);
        }
        assert_eq!((ask::<usize>(&mut beside, ATTEMPTS), last.is_some()), (300, true));
        let mut kept = 1;
        if deleted == "queue" {
            ask::<()>(&mut beside, "DEL rsmq:shop rsmq:shop:Q");
            ask::<()>(&mut beside, "SREM rsmq:QUEUES shop");
            kept = 0;
        } else {
            ask::<()>(&mut beside, "ZREMRANGEBYRANK rsmq:shop 0 -2");
        }
        drop(consumer);
        let consumer = Rsmq.consumer(&queue, &reader(), &env()).await.unwrap();
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let gone = async {
            while ask::<usize>(&mut beside, ATTEMPTS) > kept {
                tick.tick().await;
            }
        };
        tokio::select! {
            taken = consumer.consume(WANT) => panic!("{deleted}: nothing is due: {taken:?}"),
            gone = tokio::time::timeout(Duration::from_secs(180), gone) => gone.expect(deleted),
        }
        assert_eq!(ask::<usize>(&mut beside, ATTEMPTS), kept, "{deleted}");
    }
}

/// As when a stage is stopped and begins again.
#[tokio::test]
async fn what_is_given_back_comes_again_in_the_order_of_the_stream() {
    const MESSAGES: usize = 40;
    let server = Redis::start();
    let mut beside = connect(&server);
    for n in 1..=MESSAGES {
        ask::<String>(&mut beside, &format!("XADD shop 1-{n} payload {n}"));
    }
    let queue = queue("shop", json!({ "url": server.url() }));
    for _ in 0..2 {
        let consumer = RedisStreams.consumer(&queue, &reader(), &env()).await.unwrap();
        let mut came = Vec::new();
        while came.len() < MESSAGES {
            let taken = next(&*consumer).await;
            came.extend(taken.iter().map(|one| consumer.locate(one.receipt)));
        }
        let wanted: Vec<String> = (1..=MESSAGES).map(|n| format!("shop#1-{n}")).collect();
        assert_eq!(came, wanted);
        consumer.shutdown().await.unwrap();
    }
}

/// Short-lived ones are written anew while a pipeline runs.
#[tokio::test]
async fn a_connection_is_made_again_with_the_certificates_that_are_on_disk_by_then() {
    let (server, other) = (Redis::start_secured(), Redis::start_secured());
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    std::fs::copy(server.authority(), &ca).unwrap();
    let queue = queue("shop", json!({ "url": server.url(), "tls": { "ca": ca } }));
    let producer = RedisStreams.producer(&queue, &env()).await.unwrap();
    // The server's is signed by somebody else, for this file.
    std::fs::copy(other.authority(), &ca).unwrap();
    server.restart();
    let mut told = String::new();
    for _ in 0..2 {
        let error = put(&*producer, &[numbered(1)]).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        told = error.to_string();
    }
    assert!(told.contains("certificate"), "{told}");
    std::fs::copy(server.authority(), &ca).unwrap();
    put(&*producer, &[numbered(1)]).await.unwrap();
    // While it is being replaced it is what it was.
    for content in [None, Some("-----BEGIN CERTIFICATE-----\nMIIB")] {
        std::fs::remove_file(&ca).unwrap();
        if let Some(content) = content {
            std::fs::write(&ca, content).unwrap();
        }
        server.restart();
        assert!(put(&*producer, &[numbered(2)]).await.is_err(), "the connection is broken");
        put(&*producer, &[numbered(2)]).await.unwrap();
        std::fs::copy(server.authority(), &ca).unwrap();
    }
}

/// Who renews them writes one file after the other.
#[tokio::test]
async fn a_certificate_that_does_not_fit_its_key_yet_is_not_used() {
    let (server, renewed) = (Redis::start_secured(), Redis::start_secured());
    let directory = tempfile::tempdir().unwrap();
    let [certificate, key] = ["server.pem", "server.key"].map(|name| directory.path().join(name));
    let of = |server: &Redis, name: &str| {
        std::fs::read(server.authority().with_file_name(name)).unwrap()
    };
    let write = |server: &Redis, path: &Path| {
        std::fs::write(path, of(server, path.file_name().unwrap().to_str().unwrap())).unwrap();
    };
    write(&server, &certificate);
    write(&server, &key);
    let tls = json!({ "ca": server.authority(), "certificate": certificate, "key": key });
    let queue = queue("shop", json!({ "url": server.url(), "tls": tls }));
    let producer = RedisStreams.producer(&queue, &env()).await.unwrap();
    put(&*producer, &[numbered(1)]).await.unwrap();
    let put_anew = async || {
        server.restart();
        assert!(put(&*producer, &[numbered(1)]).await.is_err(), "the connection is broken");
        put(&*producer, &[numbered(1)]).await
    };
    for half in [Vec::new(), of(&renewed, "server.pem")] {
        std::fs::write(&certificate, half).unwrap();
        put_anew().await.unwrap();
        // As when an actor of a running pipeline begins again.
        let opened = RedisStreams.consumer(&queue, &reader(), &env()).await;
        let error = opened.err().expect("nothing else was read before");
        assert!(error.is_transient() && error.to_string().contains("server.pem"), "{error}");
    }
    write(&renewed, &key);
    put_anew().await.unwrap();
    RedisStreams.consumer(&queue, &reader(), &env()).await.unwrap();
}

/// It has got nothing yet, so nothing goes: room comes by its acks alone.
#[tokio::test]
async fn a_group_that_was_destroyed_is_made_again_on_a_full_server() {
    const MESSAGES: usize = 300;
    let server = Redis::start();
    let mut beside = connect(&server);
    let queue = read_by(queue("shop", json!({ "url": server.url() })), &["a", "b"]);
    let producer = RedisStreams.producer(&queue, &env()).await.unwrap();
    let a = stage(&queue, "a").await;
    put(&*producer, &(0..MESSAGES).map(numbered).collect::<Vec<_>>()).await.unwrap();
    ask::<()>(&mut beside, "XGROUP DESTROY shop shop.b");
    ask::<()>(&mut beside, "CONFIG SET maxmemory 1");
    drain(&*a, MESSAGES).await;
    assert_eq!(length(&mut beside, "shop"), MESSAGES, "none is lost");
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let made = async {
        let groups = "EVAL return(#redis.call('XINFO','GROUPS','shop')) 0";
        while ask::<usize>(&mut beside, groups) < 2 {
            tick.tick().await;
        }
    };
    let look = async {
        loop {
            let taken = a.consume(WANT).await;
            assert!(taken.as_ref().is_ok_and(Vec::is_empty), "all is taken: {taken:?}");
        }
    };
    tokio::select! {
        () = look => {}
        made = tokio::time::timeout(PATIENCE, made) => made.expect("it is made"),
    }
    drain(&*stage(&queue, "b").await, MESSAGES).await;
    let left = length(&mut beside, "shop");
    assert!(left <= 100, "{left} are left");
}

/// As when one handing-over is still worked on while the message is handed out anew.
#[tokio::test]
async fn a_stale_receipt_does_not_fence_the_one_that_stands() {
    let streams = (&RedisStreams as &dyn Connector, "shop");
    for (connector, key) in [streams, (&Rsmq, "rsmq:shop")] {
        let (server, name) = (Redis::start(), connector.type_name());
        let mut beside = connect(&server);
        let (producer, consumer) =
            open(connector, &queue("shop", json!({ "url": server.url() }))).await;
        put(&*producer, &[numbered(1)]).await.unwrap();
        let stale = next(&*consumer).await[0].receipt;
        let stands = match key {
            "shop" => {
                let pending: Vec<(String, String, u64, u64)> =
                    ask(&mut beside, "XPENDING shop shop - + 1");
                let (id, member, ..) = &pending[0];
                let _: redis::Value =
                    ask(&mut beside, &format!("XCLAIM shop shop {member} 0 {id}"));
                Receipt { fence: stale.fence + 1, ..stale }
            }
            _ => again(&*consumer, &mut beside, key).await[0],
        };
        let acked = consumer.ack(vec![stale, stands], Vec::new()).await.unwrap();
        assert!(!acked.fenced.contains(&stands), "{name}: {:?}", acked.fenced);
        assert_eq!(length(&mut beside, key), 0, "{name}: it is acked");
    }
}

/// Until it is there, what others have acked goes, as it is the only one's that they know of.
#[tokio::test]
async fn a_stage_that_does_not_read_makes_its_group_again() {
    const MESSAGES: usize = 20;
    let server = Redis::start();
    let mut beside = connect(&server);
    // Two files.
    let of = |pipeline: &str| QueueSpec::new(pipeline, "shop", json!({ "url": server.url() }));
    let (one, other) = (of("one"), of("other"));
    let (producer, waits) = open(&RedisStreams, &one).await;
    ask::<()>(&mut beside, "DEL shop");
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let made = tokio::time::timeout(PATIENCE, async {
        while ask::<u64>(&mut beside, "EXISTS shop") == 0 {
            tick.tick().await;
        }
    });
    made.await.expect("its group is made again, and the stream with it");
    let acks = RedisStreams.consumer(&other, &reader(), &env()).await.unwrap();
    put(&*producer, &(0..MESSAGES).map(numbered).collect::<Vec<_>>()).await.unwrap();
    drain(&*acks, MESSAGES).await;
    drain(&*waits, MESSAGES).await;
}
