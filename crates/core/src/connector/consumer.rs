use std::time::Duration;

use async_trait::async_trait;

use crate::connector::{ConnectorError, Features, Rejected};
use crate::state::{StoreId, StoreOp};
use crate::{CauseKind, Message, MessageId, Timestamp};

/// Takes messages from one queue, for one stage.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// What this consumer can do, with its settings.
    fn features(&self) -> Features;

    /// Waits for messages and takes at most what is wanted: as soon as there is one, what is there
    /// by then. A single message larger than `want.bytes` is handed out alone.
    ///
    /// An empty answer means the end: nothing will ever come again. Only a
    /// [finite](Features::finite) consumer says that.
    ///
    /// # Errors
    /// Transient errors are tried again with back-off; others fail the stage.
    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError>;

    /// These messages are done: never hand them out again. `ops` are done in the same transaction,
    /// all or nothing; they are empty unless the consumer's [`store`](Consumer::store) is also the
    /// producers'.
    ///
    /// A receipt whose lease was lost comes back as [fenced](Acked::fenced), an output that its queue
    /// refuses for good as [refused](Acked::refused). With ops, then nothing at all was done; without,
    /// the other receipts are done.
    ///
    /// # Errors
    /// After an error nothing, or all of it, may have been done; acking again is harmless.
    async fn ack(&self, receipts: Vec<Receipt>, ops: Vec<StoreOp>)
    -> Result<Acked, ConnectorError>;

    /// These messages failed, or are given back: hand them out again, after their delay.
    ///
    /// # Errors
    /// As for [`ack`](Consumer::ack). The stage stops if it cannot be done.
    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError>;

    /// How often [`extend`](Consumer::extend) must be called for messages that are worked on;
    /// `None` if they are this consumer's for as long as it lives.
    fn lease(&self) -> Option<Duration> {
        None
    }

    /// These messages are still worked on.
    ///
    /// # Errors
    /// A message whose lease is lost is no error here; its ack will be fenced.
    async fn extend(&self, receipts: &[Receipt]) -> Result<(), ConnectorError> {
        let _ = receipts;
        Ok(())
    }

    /// How much waits in the queue, for this consumer's group.
    ///
    /// # Errors
    /// The queue could not be asked.
    async fn lag(&self) -> Result<Lag, ConnectorError>;

    /// Where a message stands, for people: `flights.jsonl:120`, `checked#4711`.
    fn locate(&self, receipt: Receipt) -> String;

    /// Where acks are stored, if other writes can be part of the same transaction.
    fn store(&self) -> Option<StoreId> {
        None
    }

    /// Stops: gives back what is unresolved, so that others get it at once, and closes. The
    /// runtime has settled everything else before. May be called twice.
    ///
    /// # Errors
    /// Something could not be given back or closed; the consumer is unusable all the same.
    async fn shutdown(&self) -> Result<(), ConnectorError>;
}

/// How much a consumer may hand out now. Both are at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// At most this many messages.
    pub messages: usize,
    /// At most this many bytes, as [`Message::size`] counts them; the last may exceed it.
    pub bytes: usize,
}

impl Want {
    /// Takes what comes next until it is enough, or nothing is there.
    ///
    /// ```
    /// use brigade_core::Message;
    /// use brigade_core::connector::{Incoming, Receipt, Want};
    /// let incoming = |position| Incoming::new(Message::new("x"), Receipt { position, fence: 0 });
    /// let (mut there, want) = ((0..9).map(incoming), Want { messages: 5, bytes: usize::MAX });
    /// assert_eq!(want.fill(|| there.next()).len(), 5);
    /// assert_eq!(Want { messages: 5, bytes: 1 }.fill(|| there.next()).len(), 1);
    /// assert_eq!(want.fill(|| there.next()).len(), 3);
    /// ```
    pub fn fill(self, mut next: impl FnMut() -> Option<Incoming>) -> Vec<Incoming> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < self.messages && (bytes < self.bytes || taken.is_empty()) {
            let Some(incoming) = next() else { break };
            bytes += incoming.message.size();
            taken.push(incoming);
        }
        taken
    }
}

/// Which handing-over of which message: what a consumer needs to ack it.
///
/// The two numbers mean something only to the consumer that gave them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Receipt {
    /// Which message: a row, an offset, a running number.
    pub position: u64,
    /// Which handing-over of it: a lease's number, a receive count. A late ack carries an old one.
    pub fence: u64,
}

/// A message as a consumer hands it out.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The message.
    pub message: Message,
    /// What acks it.
    pub receipt: Receipt,
    /// How many attempts have failed before this one.
    pub attempts: u32,
    /// How often it was handed out before without an outcome: crashes, not failures.
    pub redeliveries: u32,
    /// When it was put on the queue, if the queue knows.
    pub enqueued_at: Option<Timestamp>,
    /// When its first attempt failed, if the queue keeps it.
    pub first_failed_at: Option<Timestamp>,
    /// Why it cannot be handled at all: it becomes a dead letter and no component sees it.
    pub defect: Option<Box<Defect>>,
}

impl Incoming {
    /// A message handed out for the first time.
    pub fn new(message: Message, receipt: Receipt) -> Self {
        Self {
            message,
            receipt,
            attempts: 0,
            redeliveries: 0,
            enqueued_at: None,
            first_failed_at: None,
            defect: None,
        }
    }
}

/// What is wrong with a message that cannot be handled at all.
#[derive(Debug, Clone)]
pub struct Defect {
    /// The kind of cause, for the dead letter.
    pub kind: CauseKind,
    /// What is wrong, for people.
    pub message: String,
    /// If the payload is only the beginning of what stands in the queue: the whole of it.
    pub truncated: Option<crate::Truncated>,
}

/// A message that was not done.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Which.
    pub receipt: Receipt,
    /// Why.
    pub reason: FailedReason,
    /// Not to be handed out again before this long.
    pub delay: Duration,
}

/// Why a message was not done.
#[derive(Debug, Clone)]
pub enum FailedReason {
    /// Its component failed: it has used up an attempt.
    Attempt {
        /// How many attempts have failed by now, this one included.
        attempts: u32,
        /// What went wrong, for people.
        error: String,
    },
    /// Its component failed for the last time, and it is parked: it is not handed out again before
    /// somebody releases it, and what comes after it of its key waits behind it. Only said to a
    /// consumer with [`Features::park`] that keeps the order of keys.
    Parked {
        /// How many attempts have failed by now.
        attempts: u32,
        /// What went wrong, for people.
        error: String,
    },
    /// Nobody decided on it (a stop, a lost worker): it has used up no attempt.
    Released,
}

impl FailedReason {
    /// How many attempts have failed by now; nothing where none was used up, so that it is a redelivery.
    pub fn attempts(&self) -> Option<u32> {
        match self {
            Self::Attempt { attempts, .. } | Self::Parked { attempts, .. } => Some(*attempts),
            Self::Released => None,
        }
    }
}

/// The answer to an ack.
#[derive(Debug, Clone, Default)]
pub struct Acked {
    /// Receipts that do not stand: the message is someone else's by now, or comes again.
    pub fenced: Vec<Receipt>,
    /// Outputs among the ops that are refused for good, by their messages' ids. Only where a
    /// [staged](crate::connector::Producer::stage) output can still be refused.
    pub refused: Vec<(MessageId, Rejected)>,
}

impl From<Vec<Receipt>> for Acked {
    fn from(fenced: Vec<Receipt>) -> Self {
        Self { fenced, refused: Vec::new() }
    }
}

/// How much waits in a queue. `None` is: cannot be known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lag {
    /// Messages that can be handed out now.
    pub ready: Option<u64>,
    /// Messages that wait for their time.
    pub delayed: Option<u64>,
    /// Messages handed out and unresolved, by any consumer of the group in any process.
    pub in_flight: Option<u64>,
    /// Messages that are parked, and those that wait behind them.
    pub parked: Option<u64>,
    /// The bytes of all that is there, whatever its state.
    pub bytes: Option<u64>,
    /// How long the oldest ready message has waited.
    pub age: Option<Duration>,
    /// Whether a finite queue has been read to its end.
    pub at_end: bool,
    /// Of a queue that is made of partitions: what is ready or waits for its time in each.
    pub partitions: Vec<PartitionLag>,
}

/// How much waits in one partition of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLag {
    /// Which one, as people know it: `orders/3`.
    pub partition: String,
    /// Messages that are ready or wait for their time.
    pub messages: u64,
}
