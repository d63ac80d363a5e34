//! What the tests of one queue after the other share.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::sync::Arc;

use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Order, Outgoing, Produced, Producer,
    QueueSpec, Reader, Want,
};
use brigade_core::{Message, MessageId};
use brigade_memory::MemoryState;
use brigade_testkit::servers::Redis;
use redis::Connection;
use serde_json::Value;

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

pub(crate) async fn open(
    connector: &dyn Connector,
    queue: &QueueSpec,
) -> (Arc<dyn Producer>, Arc<dyn Consumer>) {
    let producer = connector.producer(queue, &env()).await.unwrap();
    (producer, connector.consumer(queue, &reader(), &env()).await.unwrap())
}

pub(crate) fn numbered(n: usize) -> Outgoing {
    Message::new(n.to_string()).with_id(MessageId(n as u128 + 1)).into()
}

/// Puts a batch; an error if any of it is not on the queue.
pub(crate) async fn put(producer: &dyn Producer, batch: &[Outgoing]) -> Result<(), ConnectorError> {
    producer.produce(batch).await?.into_iter().try_for_each(Produced::confirmed)
}

pub(crate) fn connect(server: &Redis) -> Connection {
    redis::Client::open(server.url()).unwrap().get_connection().unwrap()
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
