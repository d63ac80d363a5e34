//! Files as queues: JSON Lines, CSV, plain lines, gzip and zstd; a glob of files; a file that grows;
//! `-` for standard input and output.
//!
//! Reading resumes at the smallest unresolved record, kept in the pipeline's state together with
//! what is resolved beyond it, by inode, time of birth and content fingerprint. Acks and outputs to
//! the same state are one transaction, so `file -> embedded` hands every line on once.
//!
//! Writing appends whole lines under a lock on the file, syncs, and keeps the committed length in
//! the state, in the transaction of the acks where the input lives there. What was appended and not
//! committed is cut off by the next writer, also if the file was renamed, so there is never a torn
//! line. The file belongs to the pipelines of one state: a note in it says who has the file open,
//! and what goes beyond the committed length without such a note was written by others, which ends
//! the stage.

mod connector;
mod consumer;
mod devices;
mod directory;
mod fingerprint;
mod follow;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod kept;
mod ledger;
mod lines;
mod paths;
mod producer;
mod reach;
mod reader;
mod renamed;
mod rotated;
mod rows;
mod settings;
mod standard;
mod told;
mod trace;
mod writer;

pub use connector::FileConnector;
