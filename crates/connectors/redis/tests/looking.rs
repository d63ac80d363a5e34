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
use common::{again, ask, calls, connect, env, numbered, open, queue, sent};
use serde_json::json;

#[tokio::test]
async fn a_queue_that_is_not_there_is_empty_and_only_made_by_what_is_put() {
    for connector in [&RedisStreams as &dyn Connector, &Rsmq] {
        let (server, name) = (Redis::start(), connector.type_name());
        let mut other = connect(&server);
        let queue = queue("s", json!({ "url": server.url() }));
        let admin = again(async || connector.admin(&queue, &env()).await).await;
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
        let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
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
    let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
    assert_eq!(admin.peek(0, 10).await.unwrap().len(), 2);
    assert_eq!(admin.purge().await.unwrap(), 2);
    assert_eq!(ask::<usize>(&mut other, "XLEN s"), 0);
}

/// They would ack what is not there any more, or never be handed what failed.
#[tokio::test]
async fn what_others_pipelines_work_on_is_left_alone() {
    for groups in [vec![], vec!["".into()]] {
        let server = Redis::start();
        let mut other = connect(&server);
        ask::<()>(&mut other, "XGROUP CREATE s shop 0 MKSTREAM");
        ask::<()>(&mut other, "XGROUP CREATE s theirs 0");
        for n in 1..=4 {
            ask::<String>(&mut other, &format!("XADD s {n}-0 payload {n}"));
        }
        let read = "XREADGROUP GROUP theirs m COUNT 2 STREAMS s >";
        ask::<redis::Value>(&mut other, read);
        ask::<redis::Value>(&mut other, "XCLAIM s theirs ~delayed 0 2-0");
        let queue = QueueSpec { groups, ..queue("s", json!({ "url": server.url() })) };
        let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
        let there = admin.peek(0, 10).await.unwrap();
        let holders: Vec<_> = there.iter().map(|one| one.holder.as_deref()).collect();
        assert_eq!(holders, [Some(&b"m"[..]), Some(&b"~delayed"[..]), None, None]);
        let positions: Vec<u64> = there.iter().map(|one| one.position).collect();
        assert_eq!(admin.delete(&positions[..3]).await.unwrap(), 1, "the third");
        assert_eq!(admin.purge().await.unwrap(), 1, "the fourth");
        let left: Vec<(String, redis::Value)> = ask(&mut other, "XRANGE s - +");
        let left: Vec<&str> = left.iter().map(|(id, _)| &**id).collect();
        assert_eq!(left, ["1-0", "2-0"]);
    }
}

/// Redis itself cannot count them any more.
#[tokio::test]
async fn what_waits_is_counted_though_some_was_deleted_unread() {
    let two: (&[&str], &[&str], _) = (&["a", "b"], &["shop.a", "shop.b"], json!(null));
    for (groups, made, retention) in [two, (&[""], &["shop"], json!({ "messages": 5000 }))] {
        let server = Redis::start();
        let mut other = connect(&server);
        let mut settings = json!({ "url": server.url() });
        if !retention.is_null() {
            settings["retention"] = retention;
        }
        let groups = groups.iter().map(|group| (*group).into()).collect();
        let queue = QueueSpec { groups, ..queue("s", settings) };
        for group in made {
            ask::<()>(&mut other, &format!("XGROUP CREATE s {group} 0 MKSTREAM"));
        }
        for n in 1..=1200 {
            ask::<String>(&mut other, &format!("XADD s {n}-0 payload {n}"));
        }
        for group in made {
            let read = format!("XREADGROUP GROUP {group} m COUNT 2 STREAMS s >");
            ask::<redis::Value>(&mut other, &read);
        }
        let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
        ask::<u64>(&mut other, "XDEL s 1100-0");
        for status in admin.status().await.unwrap() {
            assert_eq!(status.lag.ready, Some(1000), "as far as is counted");
        }
        let others: Vec<String> = (7..=1200).map(|n| format!("{n}-0")).collect();
        ask::<u64>(&mut other, &format!("XDEL s {}", others.join(" ")));
        for status in admin.status().await.unwrap() {
            assert_eq!(status.lag.ready, Some(4), "{}", status.group);
        }
    }
}

/// Over a slow link the others would not come in time.
#[tokio::test]
async fn of_long_messages_only_those_are_brought_that_are_looked_at() {
    const MESSAGES: usize = 40;
    const MIB: u64 = 1 << 20;
    let server = Redis::start();
    let mut other = connect(&server);
    // The last has an id that is searched for from the beginning.
    let ids = (1..MESSAGES).map(|n| format!("{n}-0")).chain(["18446744073709551615-7".into()]);
    for id in ids {
        let mut add = redis::cmd("XADD");
        add.arg("s").arg(id).arg("payload").arg(vec![b'x'; 1 << 20]).exec(&mut other).unwrap();
    }
    let queue = queue("s", json!({ "url": server.url() }));
    let (_, consumer) = open(&RedisStreams, &queue).await;
    let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
    let before = sent(&mut other);
    assert_eq!(admin.peek(0, 1).await.unwrap().len(), 1);
    let last = admin.peek(MESSAGES as u64 - 1, 5).await.unwrap();
    assert_eq!(last.len(), 1);
    let last = last[0].position;
    assert_eq!(admin.get(last).await.unwrap().unwrap().message.size() as u64 / MIB, 1);
    let brought = sent(&mut other) - before;
    assert!((3 * MIB..4 * MIB).contains(&brought), "three were looked at: {brought} bytes");
    let before = sent(&mut other);
    assert_eq!(admin.delete(&[last]).await.unwrap(), 1);
    assert_eq!(admin.purge().await.unwrap(), MESSAGES as u64 - 1);
    let brought = sent(&mut other) - before;
    assert!(brought < MIB, "none was looked at: {brought} bytes");
    assert_eq!(ask::<u64>(&mut other, "XLEN s"), 0);
    drop(consumer);
}

/// With a retention, or where several groups read a stream, what is done stays.
#[tokio::test]
async fn few_requests_pass_over_many_messages_that_are_done() {
    let server = Redis::start();
    let mut other = connect(&server);
    ask::<()>(&mut other, "XGROUP CREATE s shop 0 MKSTREAM");
    for n in 1..=2000 {
        ask::<String>(&mut other, &format!("XADD s {n}-0 payload {n}"));
    }
    ask::<redis::Value>(&mut other, "XREADGROUP GROUP shop m COUNT 2000 STREAMS s >");
    let done: Vec<String> = (2..=2000).map(|n| format!("{n}-0")).collect();
    ask::<u64>(&mut other, &format!("XACK s shop {}", done.join(" ")));
    let settings = json!({ "url": server.url(), "retention": { "messages": 5000 } });
    let queue = QueueSpec { groups: vec!["".into()], ..queue("s", settings) };
    let admin = again(async || RedisStreams.admin(&queue, &env()).await).await;
    let before = calls(&mut other, "evalsha");
    assert_eq!(admin.peek(0, 2).await.unwrap().len(), 1);
    let asked = calls(&mut other, "evalsha") - before;
    assert!(asked < 15, "{asked} scripts for 2000 messages");
}
