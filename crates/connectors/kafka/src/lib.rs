//! Queues on Kafka: consumer groups whose commits never pass an unresolved message, and producers
//! whose acks are the broker's delivery reports.
//!
//! # On the wire
//!
//! A message's payload, key and headers are the record's, as they are, null and empty told apart; its
//! event time is the record's timestamp. Brigade adds the header `brigade-id` (the message's id, 32
//! hexadecimal digits) and, only for times that Kafka has no place for (before 1970) and on retry
//! topics, the header `brigade-event-time` (milliseconds). Other programs may leave both out: a record
//! without an id gets one from its cluster, topic, partition, offset and timestamp.
//!
//! # What is committed
//!
//! Messages of a partition are resolved in any order; what is committed is the smallest unresolved
//! offset, and in the commit's metadata which offsets beyond it are resolved: `b1:`, that offset, `:` and, in
//! base64 without padding, pairs of LEB128 numbers (how many offsets are unresolved, how many are then
//! resolved); or, where those would be too long, `b2:`, that offset, `:` and a bit for each offset from the
//! committed one on, the lowest of a byte first. Whoever gets the partition next passes over them, if the commit
//! has that offset: tools that carry a group over to another cluster translate the one and not the other. Other
//! clients ignore the metadata. What does not fit into the 4,096 bytes that brokers allow is left out, and
//! comes again after a crash.
//!
//! # Retry topics
//!
//! With `retry_topics` a message with a long back-off is put on a topic of the group's own as a copy, and
//! resolved. The copy's headers tell for which group it is (`brigade-group`), when it is due
//! (`brigade-due`), how often it failed (`brigade-attempts`), when first (`brigade-failed-at`), why last
//! (`brigade-error`), and where the message itself stands (`brigade-origin`). Its record has no timestamp
//! of the message's, which could be older than what the broker retains.
//!
//! # Exactly once
//!
//! With `guarantee: exactly_once` on the input queue, the outputs (on the same cluster) and the
//! offsets with their metadata are one transaction. It needs no barrier and no rewinding: a transaction
//! that is aborted is done again with the same outputs.

mod admin;
mod assignment;
mod client;
mod commits;
mod connector;
mod consumer;
mod lag;
mod ledger;
mod metadata;
mod poll;
mod position;
mod producer;
mod properties;
mod record;
mod retry;
mod settings;
mod slot;
mod topic;
mod transaction;

pub use connector::Kafka;
pub use position::{NoPosition, Position};
