//! RSMQ queues with what other programs leave in them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use brigade_core::connector::Connector;
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{WANT, again, ask, connect, env, next, numbered, open, put, queue};
use serde_json::json;

/// It is received, looked at and removed as others are, and holds up none of them.
#[tokio::test]
async fn an_id_that_is_no_text_is_one_like_others() {
    let server = Redis::start();
    let mut other = connect(&server);
    let queue = queue("shop", json!({ "url": server.url() }));
    let (producer, consumer) = open(&Rsmq, &queue).await;
    let admin = again(async || Rsmq.admin(&queue, &env()).await).await;
    let mut send = || {
        let id = b"\xff\xfe";
        redis::cmd("ZADD").arg("rsmq:shop").arg(0).arg(id).exec(&mut other).unwrap();
        redis::cmd("HSET").arg("rsmq:shop:Q").arg(id).arg("odd").exec(&mut other).unwrap();
    };
    send();
    put(&*producer, &[numbered(1), numbered(2)]).await.unwrap();
    assert_eq!(admin.peek(0, 10).await.unwrap().len(), 2, "it has no position");
    assert_eq!(admin.purge().await.unwrap(), 3);
    send();
    put(&*producer, &[numbered(1)]).await.unwrap();
    let mut other = connect(&server);
    let ids: Vec<Vec<u8>> = ask(&mut other, "ZRANGE rsmq:shop 0 -1");
    for id in ids {
        let kept = "rsmq:shop:brigade:attempts";
        redis::cmd("HSET").arg(kept).arg(id).arg("many").exec(&mut other).unwrap();
    }
    let taken = consumer.consume(WANT).await.unwrap();
    let bodies: Vec<_> = taken.iter().map(|one| one.message.payload.as_deref().unwrap()).collect();
    assert_eq!(bodies, [&b"odd"[..], b"1"]);
    let receipts = taken.iter().map(|one| one.receipt).collect();
    assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
    assert_eq!(ask::<u64>(&mut other, "ZCARD rsmq:shop"), 0);
}

/// Else what was put before it was put again each time, and what was received was hidden.
#[tokio::test]
async fn where_the_counts_are_no_numbers_nothing_is_put_or_received() {
    let server = Redis::start();
    let mut beside = connect(&server);
    let place = json!({ "url": server.url() });
    let (producer, consumer) = open(&Rsmq, &queue("shop", place.clone())).await;
    let stream = again(async || RedisStreams.producer(&queue("out", place.clone()), &env()).await);
    let mut ops = stream.await.stage(&[numbered(1)]).await.unwrap().ops;
    ops.extend(producer.stage(&[numbered(2)]).await.unwrap().ops);
    put(&*producer, &[numbered(0)]).await.unwrap();
    ask::<()>(&mut beside, "HSET rsmq:shop:Q totalrecv many");
    let error = consumer.consume(WANT).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("`totalrecv`"), "{error}");
    let id = ask::<Vec<String>>(&mut beside, "ZRANGE rsmq:shop 0 0").remove(0);
    assert_eq!(ask::<u64>(&mut beside, &format!("HEXISTS rsmq:shop:Q {id}:rc")), 0);
    ask::<()>(&mut beside, "HSET rsmq:shop:Q totalrecv 0");
    let receipts = vec![next(&*consumer).await[0].receipt];
    for wrong in ["many", "9223372036854775807"] {
        ask::<()>(&mut beside, &format!("HSET rsmq:shop:Q totalsent {wrong}"));
        let error = consumer.ack(receipts.clone(), ops.clone()).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("`totalsent`"), "{error}");
        assert_eq!(ask::<u64>(&mut beside, "XLEN out"), 0, "{wrong}");
    }
    ask::<()>(&mut beside, "HSET rsmq:shop:Q totalsent 1");
    assert_eq!(consumer.ack(receipts, ops).await.unwrap().fenced, []);
    assert_eq!(ask::<u64>(&mut beside, "XLEN out"), 1);
    assert_eq!(ask::<u64>(&mut beside, "HGET rsmq:shop:Q totalsent"), 2);
}
