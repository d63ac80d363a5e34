//! What the tests of single queues share.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::sync::Arc;

use brigade_core::connector::{
    Connector, ConnectorEnv, Consumer, Order, Outgoing, QueueSpec, Reader,
};
use brigade_embedded::{Embedded, Options, Store};
use serde_json::Value;

/// A queue, and the store that it is in.
pub(crate) struct Place {
    pub(crate) env: ConnectorEnv,
    pub(crate) queue: QueueSpec,
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new(settings: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = Store::open(directory.path(), Options::default()).unwrap();
        let queue = QueueSpec::new("p", "q", settings);
        Self { env: ConnectorEnv { state }, queue, directory }
    }

    pub(crate) async fn put_all(&self, batch: &[Outgoing]) {
        let producer = Embedded.producer(&self.queue, &self.env).await.unwrap();
        for produced in producer.produce(batch).await.unwrap() {
            produced.confirmed().unwrap();
        }
    }

    /// The consumer of the only stage that reads it.
    pub(crate) async fn only_consumer(&self, order: Order) -> Arc<dyn Consumer> {
        let reader = Reader { stage: "s".into(), group: "".into(), order };
        Embedded.consumer(&self.queue, &reader, &self.env).await.unwrap()
    }

    /// The database, as another program opens it.
    pub(crate) fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.directory.path().join("brigade.db")).unwrap()
    }
}
