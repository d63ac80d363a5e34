//! What the conformance suite does not ask of streams: other programs in the group, odd ids, trimming.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{
    Connector, ConnectorEnv, Consumer, Incoming, Order, Outgoing, Producer, QueueSpec, Reader, Want,
};
use brigade_core::{Message, MessageId};
use brigade_memory::MemoryState;
use brigade_redis::RedisStreams;
use brigade_testkit::servers::Redis;
use redis::Connection;
use serde_json::{Value, json};

const WANT: Want = Want { messages: 100, bytes: usize::MAX };

fn env() -> ConnectorEnv {
    ConnectorEnv { state: MemoryState::new() }
}

fn queue(settings: Value) -> QueueSpec {
    QueueSpec::new("shop", "s", settings)
}

async fn consumer(queue: &QueueSpec) -> Arc<dyn Consumer> {
    let reader = Reader { stage: "test".into(), group: "".into(), order: Order::None };
    RedisStreams.consumer(queue, &reader, &env()).await.unwrap()
}

async fn producer(queue: &QueueSpec) -> Arc<dyn Producer> {
    RedisStreams.producer(queue, &env()).await.unwrap()
}

fn numbered(n: usize) -> Outgoing {
    Message::new(n.to_string()).with_id(MessageId(n as u128 + 1)).into()
}

fn text(incoming: &Incoming) -> &str {
    std::str::from_utf8(incoming.message.payload.as_deref().unwrap()).unwrap()
}

fn connect(server: &Redis) -> Connection {
    redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}

/// A command as it is typed into `redis-cli`.
fn ask<T: redis::FromRedisValue>(connection: &mut Connection, command: &str) -> T {
    let mut words = command.split(' ');
    let mut asked = redis::cmd(words.next().unwrap());
    asked.arg(words.collect::<Vec<_>>()).query(connection).unwrap()
}

type Pending = Vec<(String, String, u64, u64)>;

#[tokio::test]
async fn what_another_program_works_on_is_its_own_until_it_is_idle_for_too_long() {
    let server = Redis::start();
    let mut other = connect(&server);
    ask::<()>(&mut other, "XGROUP CREATE s shop 0 MKSTREAM");
    let id: String = ask(&mut other, "XADD s * payload held");
    let _: redis::Value = ask(&mut other, "XREADGROUP GROUP shop pyworker COUNT 1 STREAMS s >");
    let settings = json!({ "url": server.url(), "claim_idle": "4s" });
    let consumer = consumer(&queue(settings)).await;
    // It is looked for what others left behind several times; who works on it renews it meanwhile.
    let begun = tokio::time::Instant::now();
    let mut renew = tokio::time::interval(Duration::from_millis(300));
    let renewed = async {
        while begun.elapsed() < Duration::from_secs(5) {
            renew.tick().await;
            ask::<redis::Value>(&mut other, &format!("XCLAIM s shop pyworker 0 {id} JUSTID"));
        }
    };
    tokio::select! {
        () = renewed => {}
        taken = consumer.consume(WANT) => panic!("another member works on it: {taken:?}"),
    }
    let last = tokio::time::Instant::now();
    let taken = consumer.consume(WANT).await.unwrap();
    assert!(last.elapsed() > Duration::from_secs(3), "{:?}", last.elapsed());
    assert_eq!((taken.len(), text(&taken[0]), taken[0].redeliveries), (1, "held", 1));
    let pending: Pending = ask(&mut other, "XPENDING s shop - + 10");
    assert!(pending.len() == 1 && pending[0].1.starts_with("brigade-"), "{pending:?}");
    consumer.ack(vec![taken[0].receipt], Vec::new()).await.unwrap();
    // It holds nothing now, and is still a member.
    let batch = [numbered(0)];
    producer(&queue(json!({ "url": server.url() }))).await.produce(&batch).await.unwrap();
    assert_eq!(consumer.consume(WANT).await.unwrap().len(), 1);
    let members: Vec<Vec<redis::Value>> = ask(&mut other, "XINFO CONSUMERS s shop");
    let name = redis::Value::BulkString(b"pyworker".to_vec());
    assert!(members.iter().any(|member| member[1] == name), "{members:?}");
}

#[test]
fn an_idle_time_of_nothing_is_refused() {
    let problems = RedisStreams.check(&queue(json!({ "claim_idle": "0s" })));
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].path, ["claim_idle"]);
}
