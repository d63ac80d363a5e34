//! Embedded queues: SQLite, no server to install, several processes on one file.
//!
//! A [`Store`] is one file, and one thread for each process that has it open. The thread takes the
//! requests that have arrived, performs them in one transaction, syncs once, and answers: at once
//! when it is idle, and all together those that came in during a sync (group commit).
//!
//! Messages are handed out under leases that are rows of the same file, so several consumers, in
//! several processes, share a queue. Each process holds an operating-system lock on a file of its
//! own; when it dies the lock is released, and the others free its leases at once. What was in
//! flight at a crash is *suspect*: it is handed out again alone, and only a message that was in
//! flight alone several times is given up on, so that killing a process buries no innocent message.

mod admin;
mod claim;
mod connector;
mod consumer;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod headers;
mod heard;
mod holder;
mod lag;
mod mounts;
mod producer;
mod readers;
mod rows;
mod schema;
mod settings;
mod store;
mod suspects;
mod thread;

pub use connector::Embedded;
pub use settings::{Options, Sync};
pub use store::Store;
