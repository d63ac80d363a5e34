//! What the tests of one queue after the other share.

use std::sync::Arc;

use brigade_core::connector::{
    Connector, ConnectorEnv, Consumer, Order, Outgoing, Producer, QueueSpec, Reader, Want,
};
use brigade_core::{Message, MessageId};
use brigade_memory::MemoryState;
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
