//! A state that is kept in memory only.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{ConnectorError, Consumer, Producer, QueueAdmin, QueueSpec, Reader};
use brigade_core::state::{StateLock, StateStore, StoreId, StoreOp};
use bytes::Bytes;
use parking_lot::Mutex;

use crate::connector::Memory;
use crate::consumer::MemoryConsumer;
use crate::producer::MemoryProducer;

/// A state without durability, for tests: its contents are lost with it.
#[derive(Debug, Default)]
pub struct MemoryState {
    memory: Memory,
    values: Mutex<BTreeMap<(String, String), Bytes>>,
    locked: Arc<Mutex<HashSet<String>>>,
}

/// A lock that is held.
struct Locked {
    name: String,
    all: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.all.lock().remove(&self.name);
    }
}

impl MemoryState {
    /// An empty state.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The queues that live in it: dead letters and redrives.
    pub fn queues(&self) -> &Memory {
        &self.memory
    }
}

#[async_trait]
impl StateStore for MemoryState {
    fn store_id(&self) -> StoreId {
        StoreId::new(format!("memory:{}", self.memory.number()))
    }

    async fn load(&self, space: &str, key: &str) -> Result<Option<Bytes>, ConnectorError> {
        Ok(self.values.lock().get(&(space.to_owned(), key.to_owned())).cloned())
    }

    async fn scan(
        &self,
        space: &str,
        prefix: &str,
    ) -> Result<Vec<(String, Bytes)>, ConnectorError> {
        let values = self.values.lock();
        let found = values.iter().filter(|((at, key), _)| at == space && key.starts_with(prefix));
        Ok(found.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError> {
        let mut values = self.values.lock();
        for op in ops {
            match op {
                StoreOp::Put { space, key, value } => {
                    values.insert((space.to_string(), key), value);
                }
                StoreOp::Delete { space, key } => {
                    values.remove(&(space.to_string(), key));
                }
                StoreOp::Enqueue { queue, .. } => {
                    let text = format!("queue `{queue}`: memory queues are written by producers");
                    return Err(ConnectorError::unsupported(text));
                }
            }
        }
        Ok(())
    }

    async fn lock(&self, name: &str) -> Result<Option<StateLock>, ConnectorError> {
        let mut all = self.locked.lock();
        let locked = || Locked { name: name.to_owned(), all: Arc::clone(&self.locked) };
        Ok(all.insert(name.to_owned()).then(|| StateLock::new(locked())))
    }

    async fn queue_consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(MemoryConsumer::open(&self.memory, queue, reader)))
    }

    async fn queue_producer(&self, queue: &QueueSpec) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(MemoryProducer::open(&self.memory, queue)))
    }

    async fn queue_admin(&self, queue: &QueueSpec) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        Err(ConnectorError::unsupported(format!("queue `{}` cannot be looked into", queue.name)))
    }

    async fn queue_names(&self, _: &str) -> Result<Vec<String>, ConnectorError> {
        Ok(Vec::new())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}
