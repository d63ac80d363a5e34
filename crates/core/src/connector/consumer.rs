//! Taking messages from a queue: [`Consumer`] and what it exchanges with the runtime.

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

    /// Waits for messages and takes at most what is wanted: it returns as soon as there is one,
    /// with what is there by then. A single message larger than `want.bytes` is handed out alone.
    ///
    /// An empty result means the end: no message will ever come again. Only a
    /// [finite](Features::finite) consumer returns one.
    ///
    /// # Errors
    /// Transient errors are retried with back-off; others fail the stage.
    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError>;

    /// Marks these messages as done: they are never handed out again. `ops` are performed in the
    /// same transaction, all or nothing; they are empty unless the consumer's
    /// [`store`](Consumer::store) is also the producers'.
    ///
    /// A receipt whose lease was lost is returned as [fenced](Acked::fenced), an output that its
    /// queue refuses for good as [refused](Acked::refused). If there were ops, nothing at all was
    /// done in that case; without ops, the other receipts are done.
    ///
    /// # Errors
    /// After an error nothing, or all of it, may have been done; acking again is harmless.
    async fn ack(&self, receipts: Vec<Receipt>, ops: Vec<StoreOp>)
    -> Result<Acked, ConnectorError>;

    /// Gives back messages that failed or were released, to be handed out again after their delay.
    /// Those whose leases were lost are returned as [fenced](Acked::fenced), and stay as their new
    /// holder has them.
    ///
    /// # Errors
    /// See [`ack`](Consumer::ack). If it cannot be done, the stage stops.
    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError>;

    /// Puts back what was taken from the queue and not handed out, so that other consumers get it
    /// now; what was handed out stays. The runtime calls this when its stage is paused or drained:
    /// it has dropped [`consume`](Consumer::consume), which may have left a request under way, and
    /// does not call it for a while. After this, and also if this is dropped at any time, `consume`
    /// goes on as before.
    ///
    /// The default implementation does nothing: for a consumer that has nothing that it does not
    /// hand out, or whose messages no other consumer could get.
    ///
    /// # Errors
    /// Transient errors are retried with back-off; after any other, what is left stays here.
    async fn put_back(&self) -> Result<(), ConnectorError> {
        Ok(())
    }

    /// Waits until the consumer cannot go on, and returns why. The runtime waits for this all the
    /// time: a stage whose credit is used up does not call [`consume`](Consumer::consume), and its
    /// acks may not end. [`Stalled`](crate::connector::ErrorKind::Stalled) has the consumer closed
    /// and reopened, another error fails the stage; what passes by itself is not for this method.
    /// The runtime calls it once, and may drop it at any time.
    ///
    /// The default implementation never returns: for a consumer all of whose calls end, with an
    /// error if need be.
    async fn broken(&self) -> ConnectorError {
        std::future::pending().await
    }

    /// For how long a message belongs to this consumer after it was handed out or last
    /// [extended](Consumer::extend); the runtime extends what is being worked on three times in
    /// that. `None` if it belongs to this consumer for as long as that lives.
    fn lease(&self) -> Option<Duration> {
        None
    }

    /// Extends the leases of these messages, which are still being worked on. A message whose lease
    /// is lost stays as its new holder has it.
    ///
    /// # Errors
    /// A message whose lease is lost is not an error here; its ack will be fenced.
    async fn extend(&self, receipts: &[Receipt]) -> Result<(), ConnectorError> {
        let _ = receipts;
        Ok(())
    }

    /// How many messages wait in the queue, for this consumer's group.
    ///
    /// # Errors
    /// The queue could not be asked.
    async fn lag(&self) -> Result<Lag, ConnectorError>;

    /// A message's position in readable form: `flights.jsonl:120`, `checked#4711`.
    fn locate(&self, receipt: Receipt) -> String;

    /// The store that acks are written to, if other writes can be part of the same transaction.
    fn store(&self) -> Option<StoreId> {
        None
    }

    /// Stops: gives back what is unresolved, so that other consumers get it at once, and closes.
    /// The runtime has settled everything else before. May be called twice.
    ///
    /// # Errors
    /// Something could not be given back or closed; the consumer is unusable anyway.
    async fn shutdown(&self) -> Result<(), ConnectorError>;
}

/// How much a consumer may hand out now. Both fields are at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// At most this many messages.
    pub messages: usize,
    /// At most this many bytes, as [`Message::size`] counts them; the last message may exceed it.
    pub bytes: usize,
}

impl Want {
    /// Takes messages from `next` until there is enough, or none is left.
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

/// Identifies a message and its handing-over: what a consumer needs to ack it.
///
/// The two numbers have a meaning only for the consumer that made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Receipt {
    /// Which message: a row, an offset, a running number.
    pub position: u64,
    /// Which handing-over of it: a lease number, a receive count. A late ack carries an old one.
    pub fence: u64,
}

/// A message as a consumer hands it out.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The message.
    pub message: Message,
    /// What is needed to ack it.
    pub receipt: Receipt,
    /// How many attempts have failed before this one.
    pub attempts: u32,
    /// How often it was handed out before without an outcome: crashes, not failures.
    pub redeliveries: u32,
    /// When it was put on the queue, if the queue knows.
    pub enqueued_at: Option<Timestamp>,
    /// When its first attempt failed, if the queue keeps it.
    pub first_failed_at: Option<Timestamp>,
    /// Why it cannot be handled at all: it becomes a dead letter without reaching a component.
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
    /// What is wrong, in readable form.
    pub message: String,
    /// Set if the payload is only the beginning of what is in the queue: describes the whole of it.
    pub truncated: Option<crate::Truncated>,
}

/// A message that was not done.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Which.
    pub receipt: Receipt,
    /// Why.
    pub reason: FailedReason,
    /// It is not handed out again before this has passed.
    pub delay: Duration,
}

/// Why a message was not done.
#[derive(Debug, Clone)]
pub enum FailedReason {
    /// Its component failed: it has used up an attempt.
    Attempt {
        /// How many attempts have failed by now, this one included.
        attempts: u32,
        /// What went wrong, in readable form.
        error: String,
    },
    /// Its component failed for the last time, and it is parked: it is not handed out again until
    /// somebody releases it, and later messages with its key wait behind it. Only passed to a
    /// consumer with [`Features::park`] that keeps the order of keys.
    Parked {
        /// How many attempts have failed by now.
        attempts: u32,
        /// What went wrong, in readable form.
        error: String,
    },
    /// Given back undecided (a stop, a lost worker): no attempt was used up.
    Released,
}

impl FailedReason {
    /// How many attempts have failed by now; `None` if none was used up, which makes it a
    /// redelivery.
    pub fn attempts(&self) -> Option<u32> {
        match self {
            Self::Attempt { attempts, .. } | Self::Parked { attempts, .. } => Some(*attempts),
            Self::Released => None,
        }
    }
}

/// The result of an ack.
#[derive(Debug, Clone, Default)]
pub struct Acked {
    /// Receipts that are no longer valid: the message belongs to another consumer by now, or comes
    /// again.
    pub fenced: Vec<Receipt>,
    /// Outputs among the ops that are refused for good, with their messages' ids. Only if a
    /// [staged](crate::connector::Producer::stage) output can still be refused.
    pub refused: Vec<(MessageId, Rejected)>,
}

impl From<Vec<Receipt>> for Acked {
    fn from(fenced: Vec<Receipt>) -> Self {
        Self { fenced, refused: Vec::new() }
    }
}

/// How many messages wait in a queue. `None` means unknowable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lag {
    /// Messages that can be handed out now.
    pub ready: Option<u64>,
    /// Messages that are delayed.
    pub delayed: Option<u64>,
    /// Messages handed out and unresolved, by any consumer of the group in any process.
    pub in_flight: Option<u64>,
    /// Messages that are parked, and those that wait behind them.
    pub parked: Option<u64>,
    /// The bytes of all messages there, whatever their state.
    pub bytes: Option<u64>,
    /// How long the oldest ready message has waited.
    pub age: Option<Duration>,
    /// Whether a finite queue has been read to its end.
    pub at_end: bool,
    /// For a queue made of partitions: the ready and delayed messages of each.
    pub partitions: Vec<PartitionLag>,
}

/// How many messages wait in one partition of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLag {
    /// Its name: `orders/3`.
    pub partition: String,
    /// Messages that are ready or delayed.
    pub messages: u64,
}
