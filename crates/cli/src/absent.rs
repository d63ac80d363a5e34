//! The state of a pipeline that has never run: looking at it does not create one.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{ConnectorError, Consumer, Producer, QueueAdmin, QueueSpec, Reader};
use brigade_core::state::{StateLock, StateStore, StoreId, StoreOp};
use bytes::Bytes;

/// An empty state that nothing can be written to.
pub(crate) struct Absent {
    /// Where the state would be.
    pub(crate) directory: PathBuf,
}

impl Absent {
    fn refuse(&self, what: &str) -> ConnectorError {
        let directory = self.directory.display();
        ConnectorError::permanent(format!(
            "{what}: there is no state in {directory}, as nothing has run yet"
        ))
    }

    fn closed(&self, queue: &QueueSpec) -> ConnectorError {
        self.refuse(&format!("queue `{}` cannot be looked into", queue.name))
    }
}

#[async_trait]
impl StateStore for Absent {
    fn store_id(&self) -> StoreId {
        StoreId::new(format!("absent:{}", self.directory.display()))
    }

    async fn load(&self, _: &str, _: &str) -> Result<Option<Bytes>, ConnectorError> {
        Ok(None)
    }

    async fn scan(&self, _: &str, _: &str) -> Result<Vec<(String, Bytes)>, ConnectorError> {
        Ok(Vec::new())
    }

    async fn commit(&self, _: Vec<StoreOp>) -> Result<(), ConnectorError> {
        Err(self.refuse("nothing can be written"))
    }

    async fn lock(&self, _: &str) -> Result<Option<StateLock>, ConnectorError> {
        // Nobody else can hold a lock in a state that does not exist.
        Ok(Some(StateLock::new(())))
    }

    async fn queue_consumer(
        &self,
        queue: &QueueSpec,
        _: &Reader,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Err(self.closed(queue))
    }

    async fn queue_producer(&self, queue: &QueueSpec) -> Result<Arc<dyn Producer>, ConnectorError> {
        Err(self.closed(queue))
    }

    async fn queue_admin(&self, queue: &QueueSpec) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        Err(self.closed(queue))
    }

    async fn queue_names(&self, _: &str) -> Result<Vec<String>, ConnectorError> {
        Ok(Vec::new())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}
