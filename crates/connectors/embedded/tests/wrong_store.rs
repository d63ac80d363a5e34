//! The suite finds a store that is wrong when it is disturbed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use async_trait::async_trait;
use brigade_core::connector::{
    Acked, Connector, ConnectorEnv, ConnectorError, Consumer, QueueSpec, Reader, Receipt,
};
use brigade_core::state::StoreOp;
use brigade_embedded::{Embedded, Options, Store};
use brigade_testkit::{Fixture, Like, LikeConnector, LikeConsumer, conformance};

/// Writes what it acks with twice after a blow, as one does whose first try did more than it knows.
struct PutsTwice(Arc<AtomicBool>);

struct PutsTwiceConsumer {
    inner: Arc<dyn Consumer>,
    blow: Arc<AtomicBool>,
}

#[async_trait]
impl LikeConnector for PutsTwice {
    fn inner(&self) -> &dyn Connector {
        &Embedded
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let inner = Embedded.consumer(queue, reader, env).await?;
        Ok(Arc::new(Like(PutsTwiceConsumer { inner, blow: Arc::clone(&self.0) })))
    }
}

#[async_trait]
impl LikeConsumer for PutsTwiceConsumer {
    fn inner(&self) -> &dyn Consumer {
        &*self.inner
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        if !ops.is_empty() && self.blow.swap(false, Relaxed) {
            self.inner.ack(Vec::new(), ops.clone()).await?;
        }
        self.inner.ack(receipts, ops).await
    }
}

#[tokio::test]
#[should_panic(expected = "is put twice")]
async fn outputs_that_are_put_twice() {
    let (directory, blow) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
    let state = Store::open(directory.path(), Options::default()).unwrap();
    let connector = Arc::new(Like(PutsTwice(Arc::clone(&blow))));
    let queue = QueueSpec::new("suite", "queue", serde_json::json!({}));
    let fixture = Fixture::new(connector, ConnectorEnv { state }, queue)
        .keep(directory)
        .disturb(move || blow.store(true, Relaxed));
    conformance::what_a_disturbed_backend_settles_is_put_once(&fixture).await;
}
