//! Who looks into a queue leaves the server as it was.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use brigade_core::connector::{Connector, QueueSpec};
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::Redis;
use common::{ask, connect, env, numbered, open, queue};
use serde_json::json;

#[tokio::test]
async fn a_queue_that_is_not_there_is_empty_and_only_made_by_what_is_put() {
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let (server, name) = (Redis::start(), connector.type_name());
        let mut other = connect(&server);
        let queue = queue("s", json!({ "url": server.url() }));
        let admin = connector.admin(&queue, &env()).await.unwrap();
        assert_eq!(admin.status().await.unwrap()[0].lag.ready, Some(0), "{name}");
        assert_eq!(admin.peek(0, 10).await.unwrap().len(), 0, "{name}");
        assert!(admin.get(1).await.unwrap().is_none(), "{name}");
        assert_eq!(admin.delete(&[1]).await.unwrap(), 0, "{name}");
        assert_eq!(admin.purge().await.unwrap(), 0, "{name}");
        assert_eq!(ask::<Vec<String>>(&mut other, "KEYS *"), Vec::<String>::new(), "{name}");
        admin.put((0..3).map(numbered).collect()).await.unwrap();
        // The numbers of RSMQ's messages are times, which these are the beginning of.
        for other in [0, 1, 17, 35] {
            assert!(admin.get(other).await.unwrap().is_none(), "{name}: {other}");
            assert_eq!(admin.delete(&[other]).await.unwrap(), 0, "{name}: {other}");
        }
        assert_eq!(admin.status().await.unwrap()[0].lag.ready, Some(3), "{name}");
        let (_, consumer) = open(connector, &queue).await;
        assert_eq!(consumer.consume(common::WANT).await.unwrap().len(), 3, "{name}");
    }
}

/// A group that never reads would stop its entries from being removed.
#[tokio::test]
async fn a_stream_of_others_gets_no_group() {
    let server = Redis::start();
    let mut other = connect(&server);
    ask::<()>(&mut other, "XGROUP CREATE s theirs 0 MKSTREAM");
    for n in 0..5 {
        ask::<String>(&mut other, &format!("XADD s {} payload {n}", n + 1));
    }
    // Read here, by one stage or two of which one has begun, or only written, as dead letters are.
    for groups in [vec![], vec!["".into()], vec!["a".into(), "b".into()]] {
        let queue = QueueSpec { groups, ..queue("s", json!({ "url": server.url() })) };
        let admin = RedisStreams.admin(&queue, &env()).await.unwrap();
        let there = admin.peek(0, 10).await.unwrap();
        for status in admin.status().await.unwrap() {
            assert_eq!(status.lag.ready, Some(there.len() as u64), "{:?}", queue.groups);
        }
        assert!(admin.get(there[0].position).await.unwrap().is_some());
        assert_eq!(admin.delete(&[there[0].position]).await.unwrap(), 1, "{:?}", queue.groups);
        assert_eq!(admin.peek(0, 10).await.unwrap().len(), there.len() - 1, "{:?}", queue.groups);
        let groups: Vec<Vec<redis::Value>> = ask(&mut other, "XINFO GROUPS s");
        assert_eq!(groups.len(), 1, "{groups:?}");
    }
    // Of two groups one is there, and past the first entry: the other is not.
    ask::<()>(&mut other, "XGROUP CREATE s shop.a 0");
    let _: redis::Value = ask(&mut other, "XREADGROUP GROUP shop.a m COUNT 1 NOACK STREAMS s >");
    let groups = vec!["a".into(), "b".into()];
    let queue = QueueSpec { groups, ..queue("s", json!({ "url": server.url() })) };
    let admin = RedisStreams.admin(&queue, &env()).await.unwrap();
    assert_eq!(admin.peek(0, 10).await.unwrap().len(), 2);
    assert_eq!(admin.purge().await.unwrap(), 2);
    assert_eq!(ask::<usize>(&mut other, "XLEN s"), 0);
}
