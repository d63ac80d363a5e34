//! RSMQ queues with what other programs leave in them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use brigade_core::connector::Connector;
use brigade_redis::Rsmq;
use brigade_testkit::servers::Redis;
use common::{WANT, again, ask, connect, env, numbered, open, put, queue};
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
