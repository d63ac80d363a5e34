//! Putting messages on a queue: [`Producer`] and what it exchanges with the runtime.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::connector::{ConnectorError, Features};
use crate::state::{StoreId, StoreOp};
use crate::{CauseKind, Message};

/// Puts messages on one queue.
#[async_trait]
pub trait Producer: Send + Sync {
    /// What this producer can do, with its settings.
    fn features(&self) -> Features;

    /// Puts a batch on the queue and returns a result for each message, in the same order, once its
    /// fate is known: confirmed means durable in the way the queue is durable.
    ///
    /// # Errors
    /// An error concerns the whole batch: any message of it may or may not be on the queue. A
    /// transient one is retried with the same ids.
    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError>;

    /// Prepares a batch to be written in the same transaction as the acks of the messages it was
    /// made from; only called if producer and consumer have the same [`store`](Producer::store).
    ///
    /// # Errors
    /// Nothing was prepared. The default implementation returns "unsupported".
    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        let _ = batch;
        Err(ConnectorError::unsupported("this producer cannot settle together with a consumer"))
    }

    /// The store that outputs are written to, if acks can be part of the same transaction.
    fn store(&self) -> Option<StoreId> {
        None
    }

    /// What [`stage`](Producer::stage) locks, if anything. The runtime stages a batch's producers
    /// in the order of these names, so that two batches cannot deadlock.
    fn stage_order(&self) -> &str {
        ""
    }

    /// Waits until everything produced is confirmed.
    ///
    /// # Errors
    /// Something could not be confirmed.
    async fn flush(&self) -> Result<(), ConnectorError> {
        Ok(())
    }

    /// Flushes and closes. May be called twice.
    ///
    /// # Errors
    /// Something could not be flushed; the producer is unusable anyway.
    async fn shutdown(&self) -> Result<(), ConnectorError>;
}

/// A message on its way to a queue.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// The message.
    pub message: Message,
    /// It is not handed out before this has passed; needs [`Features::delay`].
    pub delay: Option<Duration>,
}

impl From<Message> for Outgoing {
    fn from(message: Message) -> Self {
        Self { message, delay: None }
    }
}

/// What became of one message of a produced batch.
#[derive(Debug)]
pub enum Produced {
    /// It is on the queue.
    Confirmed,
    /// Not confirmed, and to be retried: the queue is full, or the server is away and may have
    /// taken it without answering.
    Failed(ConnectorError),
    /// It is not on the queue and never will be.
    Rejected(Rejected),
}

impl Produced {
    /// `Ok` if the message is on the queue; otherwise the reason, for callers with no dead-letter
    /// queue.
    ///
    /// # Errors
    /// The message is not on the queue, or it is not known whether it is; the error says why.
    pub fn confirmed(self) -> Result<(), ConnectorError> {
        match self {
            Self::Confirmed => Ok(()),
            Self::Failed(error) => Err(error),
            Self::Rejected(why) => Err(ConnectorError::permanent(why.message)),
        }
    }
}

/// Why a queue will never take a message.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// The kind of cause, for the dead letter.
    pub kind: CauseKind,
    /// What is wrong, in readable form.
    pub message: String,
}

/// A batch that is ready to be written together with its acks.
pub struct Staged {
    /// What the consumer's store has to write to put the batch on the queue.
    pub ops: Vec<StoreOp>,
    /// Messages, by their index in the batch, that the queue will never take; they have no ops.
    pub rejected: Vec<(usize, Rejected)>,
    /// Held until the ops are written, if anything has to be.
    pub hold: Option<Box<dyn Hold>>,
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged")
            .field("ops", &self.ops.len())
            .field("rejected", &self.rejected)
            .finish_non_exhaustive()
    }
}

/// Something a producer did ahead of the transaction (bytes appended under a lock).
///
/// Dropping it without [`commit`](Hold::commit) undoes it, unless the transaction succeeds anyway,
/// which the code that drops it need not know.
pub trait Hold: Send {
    /// The transaction is durable: what was done ahead remains.
    fn commit(self: Box<Self>);
}
