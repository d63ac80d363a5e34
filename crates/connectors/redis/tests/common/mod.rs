//! What the tests of one queue after the other share.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Incoming, Order, Outgoing, Produced,
    Producer, QueueSpec, Reader, Want,
};
use brigade_core::{Message, MessageId};
use brigade_memory::MemoryState;
use brigade_redis::RedisStreams;
use brigade_testkit::servers::Redis;
use redis::{AsyncConnectionConfig, Connection};
use serde_json::Value;

/// How long anything that has to come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
pub(crate) const WANT: Want = Want { messages: 100, bytes: usize::MAX };

pub(crate) fn env() -> ConnectorEnv {
    ConnectorEnv { state: MemoryState::new() }
}

pub(crate) fn queue(name: &str, settings: Value) -> QueueSpec {
    QueueSpec::new("shop", name, settings)
}

pub(crate) fn reader() -> Reader {
    Reader { stage: "test".into(), group: "".into(), order: Order::None }
}

/// A stage of a stream that several stages read.
pub(crate) async fn stage(queue: &QueueSpec, name: &str) -> Arc<dyn Consumer> {
    let reader = Reader { stage: name.into(), group: name.into(), order: Order::None };
    again(async || RedisStreams.consumer(queue, &reader, &env()).await).await
}

/// The next messages. Transient errors are passed over, such as those of a stream that somebody
/// has deleted.
pub(crate) async fn next(consumer: &dyn Consumer) -> Vec<Incoming> {
    let next = tokio::time::timeout(PATIENCE, async {
        loop {
            match consumer.consume(WANT).await {
                Ok(taken) if taken.is_empty() => {}
                Ok(taken) => break taken,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    });
    next.await.expect("messages come")
}

pub(crate) async fn open(
    connector: &dyn Connector,
    queue: &QueueSpec,
) -> (Arc<dyn Producer>, Arc<dyn Consumer>) {
    let producer = again(async || connector.producer(queue, &env()).await).await;
    (producer, again(async || connector.consumer(queue, &reader(), &env()).await).await)
}

pub(crate) fn numbered(n: usize) -> Outgoing {
    Message::new(n.to_string()).with_id(MessageId(n as u128 + 1)).into()
}

/// Puts a batch; an error if any of it is not on the queue.
pub(crate) async fn put(producer: &dyn Producer, batch: &[Outgoing]) -> Result<(), ConnectorError> {
    producer.produce(batch).await?.into_iter().try_for_each(Produced::confirmed)
}

/// Tries again for as long as the server is away or does not answer in time, as the runtime does.
pub(crate) async fn again<T>(ask: impl AsyncFn() -> Result<T, ConnectorError>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) if error.is_transient() && tokio::time::Instant::now() < deadline => {
                pause.tick().await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Asks for what is told when something goes wrong. Where it is only that nobody answered in time this machine stood
/// still, unless the rest has this part.
pub(crate) async fn told<T>(
    part: &str,
    ask: impl AsyncFn() -> Result<T, ConnectorError>,
) -> ConnectorError {
    let begun = tokio::time::Instant::now();
    loop {
        let error = ask().await.err().expect("it goes wrong");
        let text = error.to_string();
        let is_late = text.contains("timed out") && !text.contains(part);
        if !is_late || begun.elapsed() > PATIENCE {
            return error;
        }
    }
}

/// Waits until nobody waits at the server for something to come.
pub(crate) async fn nobody_is_blocked(beside: &mut Connection) {
    let begun = tokio::time::Instant::now();
    while !ask::<String>(beside, "INFO clients").contains("blocked_clients:0") {
        assert!(begun.elapsed() < PATIENCE, "somebody reads for ever");
        tokio::task::yield_now().await;
    }
}

pub(crate) fn connect(server: &Redis) -> Connection {
    redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}

/// How to connect beside a queue: without the library's half a second for an answer, which may wait for the disk.
pub(crate) fn patient() -> AsyncConnectionConfig {
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE));
    config.set_response_timeout(Some(PATIENCE))
}

/// A command as it is typed into `redis-cli`.
pub(crate) fn ask<T: redis::FromRedisValue>(connection: &mut Connection, command: &str) -> T {
    let mut words = command.split(' ');
    let mut asked = redis::cmd(words.next().unwrap());
    asked.arg(words.collect::<Vec<_>>()).query(connection).unwrap()
}

/// How often a server was asked this.
pub(crate) fn calls(connection: &mut Connection, command: &str) -> u64 {
    let stats: String = ask(connection, "INFO commandstats");
    let line =
        stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

/// How many bytes a server has sent.
pub(crate) fn sent(beside: &mut Connection) -> u64 {
    let stats: String = ask(beside, "INFO stats");
    let line = stats.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
    line.unwrap().parse().unwrap()
}
