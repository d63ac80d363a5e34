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

    /// Puts a batch on the queue and answers for each message, in the same order, once its fate is
    /// known: confirmed means durable in the way the queue is durable.
    ///
    /// # Errors
    /// An error is about the whole batch: any message of it may or may not be on the queue. A
    /// transient one is tried again with the same ids.
    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError>;

    /// Prepares a batch to be written in the same transaction as the acks of the messages it came
    /// from; only called when [`store`](Producer::store) is the consumer's.
    ///
    /// # Errors
    /// Nothing was prepared. By default: unsupported.
    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        let _ = batch;
        Err(ConnectorError::unsupported("this producer cannot settle together with a consumer"))
    }

    /// Where outputs are stored, if acks can be part of the same transaction.
    fn store(&self) -> Option<StoreId> {
        None
    }

    /// What [`stage`](Producer::stage) locks, if anything. The runtime stages a batch's producers in
    /// the order of these names, so that two batches cannot wait for each other.
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
    /// Something could not be flushed; the producer is unusable all the same.
    async fn shutdown(&self) -> Result<(), ConnectorError>;
}

/// A message on its way to a queue.
#[derive(Debug, Clone, Default)]
pub struct Outgoing {
    /// The message.
    pub message: Message,
    /// Not to be handed out before this long; needs [`Features::delay`].
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
    /// Nobody has confirmed it, and it is to be tried again: the queue is full, or the server is away, which may
    /// have taken it without an answer.
    Failed(ConnectorError),
    /// It is not and never will be.
    Rejected(Rejected),
}

impl Produced {
    /// Whether it is on the queue, for who has nowhere else to put it.
    ///
    /// # Errors
    /// It is not, or nobody knows, and why.
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
    /// What is wrong, for people.
    pub message: String,
}

/// A batch that is ready to be written together with its acks.
pub struct Staged {
    /// What the consumer's store has to write for the batch to be on the queue.
    pub ops: Vec<StoreOp>,
    /// Messages, by their place in the batch, that the queue will never take; they have no ops.
    pub rejected: Vec<(usize, Rejected)>,
    /// Kept until the ops are written, if anything has to be.
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
/// Dropping it without [`commit`](Hold::commit) undoes it, unless the transaction takes place all the same: who
/// dropped it need not know.
pub trait Hold: Send {
    /// The transaction is durable: what was done ahead stands.
    fn commit(self: Box<Self>);
}
