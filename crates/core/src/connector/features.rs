//! [`Features`]: what a connector's queues can do, as data.

use schemars::JsonSchema;
use serde::Serialize;

/// What a connector's queues can do, as data: `check` refuses what is missing here, and the
/// conformance suite tests what is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Features {
    /// Messages can be taken from it.
    pub consume: bool,
    /// Messages can be put on it.
    pub produce: bool,
    /// A consumer comes to an end (a file that is not followed) rather than waiting for more.
    pub finite: bool,
    /// Confirmed messages survive the process.
    pub durable: bool,
    /// One consumer gets messages in the order in which they were put.
    pub order: bool,
    /// `order: key` holds across several consumers of one group: a key's next message is not handed
    /// out until its previous one is resolved.
    pub key_order: bool,
    /// Several stages may read one queue, and each gets every message.
    pub groups: bool,
    /// Several consumers of one group share the messages. Without it the runtime opens one consumer
    /// in the process and distributes its messages to the lanes.
    pub competing: bool,
    /// A message can be put with a delay after which it is handed out.
    pub delay: bool,
    /// A failed message can wait in the queue for its next attempt, rather than in the process.
    pub retry_delay: bool,
    /// Failed attempts and redeliveries are counted and kept with the message. Attempts are kept if
    /// it waits in the queue for its next one (`retry_delay`), but not while it waits in the
    /// process.
    pub attempts: bool,
    /// Messages that were resolved can be read again.
    pub replay: bool,
    /// Several messages are taken, and confirmed, in one round trip.
    pub batch: bool,
    /// A failed message can be parked: it is not handed out until somebody releases it, and later
    /// messages with its key wait behind it.
    pub park: bool,
    /// A queue can be given a `limit`.
    pub limit: bool,
    /// A message put twice with the same id is stored once, as long as the queue remembers the id,
    /// within stated limits.
    pub dedup: bool,
    /// Keeps a message's key.
    pub key: bool,
    /// Keeps a message's headers, including their order and repeated names.
    pub headers: bool,
    /// Keeps a message's event time. A message without one may come out with the time at which it
    /// was put.
    pub event_time: bool,
    /// Keeps a message's id, so that what is consumed has the id it was produced with.
    pub message_id: bool,
    /// Distinguishes a null payload from an empty one.
    pub null_payload: bool,
    /// Keeps an empty payload.
    pub empty_payload: bool,
    /// Payloads may contain any bytes; without it, they are single-line text.
    pub binary: bool,
    /// The longest payload, if there is a limit that is not set in the pipeline file.
    pub max_message_bytes: Option<u64>,
    /// Acks, and outputs to the same store, can be one transaction.
    pub settle_together: bool,
}

impl Features {
    /// A connector that can do nothing: the base to list features on.
    pub const NONE: Self = Self {
        consume: false,
        produce: false,
        finite: false,
        durable: false,
        order: false,
        key_order: false,
        groups: false,
        competing: false,
        delay: false,
        retry_delay: false,
        attempts: false,
        replay: false,
        batch: false,
        park: false,
        limit: false,
        dedup: false,
        key: false,
        headers: false,
        event_time: false,
        message_id: false,
        null_payload: false,
        empty_payload: false,
        binary: false,
        max_message_bytes: None,
        settle_together: false,
    };
}
