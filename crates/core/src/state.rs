//! The port to what must survive: positions, lengths, windows, and the queues that Brigade keeps
//! for itself (dead letters, redrives).

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::lock::Mutex;

use crate::connector::{
    ConnectorError, Consumer, Outgoing, Producer, QueueAdmin, QueueSpec, Reader,
};

/// A pipeline's durable state. `brigade-embedded` implements it on SQLite, `brigade-memory` without
/// durability for tests.
#[async_trait]
pub trait StateStore: Send + Sync {
    /// Which store this is; consumers and producers of the same store settle together.
    fn store_id(&self) -> StoreId;

    /// The value of a key.
    ///
    /// # Errors
    /// The store could not be read.
    async fn load(&self, space: &str, key: &str) -> Result<Option<Bytes>, ConnectorError>;

    /// All keys of a space that begin with `prefix`, with their values, by key.
    ///
    /// # Errors
    /// The store could not be read.
    async fn scan(&self, space: &str, prefix: &str)
    -> Result<Vec<(String, Bytes)>, ConnectorError>;

    /// Performs all of it, durably, or nothing.
    ///
    /// # Errors
    /// Nothing was done, unless the error is transient: then it may have been, and repeating it is
    /// harmless for puts and deletes, and for messages as long as the queue remembers their ids.
    async fn commit(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError>;

    /// The same for what one message became, which cannot be split: an empty queue takes all of it,
    /// even if that exceeds its limit.
    ///
    /// # Errors
    /// See [`commit`](StateStore::commit).
    async fn commit_of_one(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError> {
        self.commit(ops).await
    }

    /// Acquires the exclusive lock `name` across all processes that have this store open. It is
    /// held until the returned guard is dropped or the process ends; `None` if another holder has
    /// it.
    ///
    /// # Errors
    /// Whether another holder has it cannot be determined.
    async fn lock(&self, name: &str) -> Result<Option<StateLock>, ConnectorError>;

    /// Opens a consumer of a queue that lives in this store.
    ///
    /// # Errors
    /// See [`Connector::consumer`](crate::connector::Connector::consumer).
    async fn queue_consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
    ) -> Result<Arc<dyn Consumer>, ConnectorError>;

    /// Opens a producer of a queue that lives in this store.
    ///
    /// # Errors
    /// See [`Connector::producer`](crate::connector::Connector::producer).
    async fn queue_producer(&self, queue: &QueueSpec) -> Result<Arc<dyn Producer>, ConnectorError>;

    /// Opens a queue that lives in this store for administration.
    ///
    /// # Errors
    /// See [`Connector::admin`](crate::connector::Connector::admin).
    async fn queue_admin(&self, queue: &QueueSpec) -> Result<Arc<dyn QueueAdmin>, ConnectorError>;

    /// The names of a pipeline's queues that hold messages in this store.
    ///
    /// # Errors
    /// The store could not be read.
    async fn queue_names(&self, pipeline: &str) -> Result<Vec<String>, ConnectorError>;

    /// Closes it; everything opened from it is unusable afterwards. Separately opened handles of
    /// the same store stay usable. May be called twice.
    ///
    /// # Errors
    /// Something could not be written; what was committed stays.
    async fn shutdown(&self) -> Result<(), ConnectorError>;
}

/// Identifies a store: two that are equal share transactions.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StoreId(Arc<str>);

impl StoreId {
    /// The store with this name: its kind and what distinguishes it from others of that kind.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(name.as_ref().into())
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Holds a lock for as long as it lives; see [`StateStore::lock`].
pub struct StateLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl StateLock {
    /// A lock that is released by dropping `held`.
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl fmt::Debug for StateLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateLock")
    }
}

/// How far a reader has read a queue that does not track its readers, such as a file.
#[derive(Debug)]
pub struct KeptPositions {
    /// Where they are in the state.
    pub space: Arc<str>,
    /// While it is held, nobody else reads the queue for the same group.
    pub lock: StateLock,
    /// What is kept there, by key.
    pub kept: Vec<(String, Bytes)>,
}

impl KeptPositions {
    /// Acquires the positions of a queue's reader. There is one reader at a time per group, over
    /// all processes that use the state. When several stages start to read what a single one has
    /// read, each continues where that one was; a stage that is the only reader again continues
    /// where it was itself.
    ///
    /// # Errors
    /// Another process has them, which is transient; or the state cannot be read.
    pub async fn open(
        state: &dyn StateStore,
        kind: &str,
        queue: &QueueSpec,
        reader: &Reader,
    ) -> Result<Self, ConnectorError> {
        // Stages of one process that start together wait for each other.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one_at_a_time = ONE_AT_A_TIME.lock().await;
        let space = |group: &str| -> Arc<str> {
            format!("{kind}/{}/{}/{group}", queue.pipeline, queue.name).into()
        };
        let is_alone = reader.group.is_empty();
        let (own, other) = (space(&reader.group), space(if is_alone { &reader.stage } else { "" }));
        let lock = lock_position(state, queue, &own).await?;
        let kept = state.scan(&own, "").await?;
        if !is_alone && !kept.is_empty() {
            return Ok(Self { space: own, lock, kept });
        }
        let taken = state.scan(&other, "").await?;
        if taken.is_empty() {
            return Ok(Self { space: own, lock, kept });
        }
        // A reader from an older pipeline file continues until it stops.
        let _other_lock = lock_position(state, queue, &other).await?;
        let taken = state.scan(&other, "").await?;
        let mut ops = Vec::new();
        for (key, _) in kept {
            ops.push(StoreOp::Delete { space: Arc::clone(&own), key });
        }
        for (key, value) in taken.clone() {
            ops.push(StoreOp::Put { space: Arc::clone(&own), key: key.clone(), value });
            // Other stages that start with it take it, too.
            if is_alone {
                ops.push(StoreOp::Delete { space: Arc::clone(&other), key });
            }
        }
        state.commit(ops).await?;
        tracing::info!(
            queue = %queue.name, stage = %reader.stage,
            "{}", match is_alone {
                true => "the stage is the only reader of this queue now; it goes on where it was",
                false => "several stages read this queue now; each goes on where the one before them was",
            }
        );
        Ok(Self { space: own, lock, kept: taken })
    }
}

/// Acquires the positions that are kept in a space.
async fn lock_position(
    state: &dyn StateStore,
    queue: &QueueSpec,
    space: &str,
) -> Result<StateLock, ConnectorError> {
    state.lock(space).await?.ok_or_else(|| {
        ConnectorError::transient(format!(
            "queue `{}` is being read by another process, which has its position; this one takes \
             over when that one ends",
            queue.name
        ))
    })
}

/// One write of a transaction.
#[derive(Debug, Clone)]
pub enum StoreOp {
    /// Sets a key.
    Put {
        /// The owner of the key: `file/position`, `stage/finished`.
        space: Arc<str>,
        /// The key.
        key: String,
        /// Its value.
        value: Bytes,
    },
    /// Removes a key; a missing key is not an error.
    Delete {
        /// The owner of the key.
        space: Arc<str>,
        /// The key.
        key: String,
    },
    /// Puts a message on a queue of this store.
    Enqueue {
        /// Which queue, as its own producer names it.
        queue: Arc<str>,
        /// The message.
        outgoing: Outgoing,
    },
}
