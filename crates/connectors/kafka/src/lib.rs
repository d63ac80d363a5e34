//! Queues on Kafka: consumer groups whose commits never pass an unresolved message, and producers
//! whose acks are the broker's delivery reports.
//!
//! # On the wire
//!
//! A message's payload, key and headers are those of the record, unchanged, with null distinguished
//! from empty; its event time is the record's timestamp. Brigade adds the header `brigade-id` (the
//! message's id, 32 hexadecimal digits) and, only for times that Kafka cannot represent (before
//! 1970) and on retry topics, the header `brigade-event-time` (milliseconds). Other programs may
//! omit both: a record without an id gets one from its cluster, topic, partition, offset and
//! timestamp.
//!
//! # What is committed
//!
//! Messages of a partition are resolved in any order; what is committed is the smallest unresolved
//! offset, and in the commit's metadata which offsets beyond it are resolved: `b1:`, that offset,
//! `:` and, in base64 without padding, pairs of LEB128 numbers (how many offsets are unresolved,
//! how many are then resolved); or, if those would be too long, `b2:`, that offset, `:` and a bit
//! for each offset from the committed one on, the lowest bit of a byte first. The next member that
//! gets the partition skips them, if the commit has that offset: tools that carry a group over to
//! another cluster translate the committed offset but not the metadata. Other clients ignore the
//! metadata. What does not fit into the 4,096 bytes that brokers allow is left out, and comes again
//! after a crash.
//!
//! # Retry topics
//!
//! With `retry_topics` a message with a long back-off is put on a topic of the group's own as a
//! copy, and resolved. The copy's headers say which group it is for (`brigade-group`), when it is
//! due (`brigade-due`), how often it failed (`brigade-attempts`), when first (`brigade-failed-at`),
//! why last (`brigade-error`), and where the message itself is (`brigade-origin`). Its record does
//! not have the message's timestamp, which could be older than what the broker retains.
//!
//! # Exactly once
//!
//! With `guarantee: exactly_once` on the input queue, the outputs (on the same cluster) and the
//! offsets with their metadata are one transaction. It needs no barrier and no rewinding: an
//! aborted transaction is repeated with the same outputs.

mod admin;
mod assignment;
mod client;
mod commits;
mod conflict;
mod connector;
mod consumer;
mod lag;
mod ledger;
mod membership;
mod metadata;
mod poll;
mod position;
mod producer;
mod properties;
mod record;
mod retry;
mod settings;
mod slot;
mod stall;
mod topic;
mod transaction;

pub use connector::Kafka;
pub use position::{NoPosition, Position};
