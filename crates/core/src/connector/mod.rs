//! The contract between the runtime and a connector.
//!
//! A [`Connector`] makes [`Consumer`]s and [`Producer`]s for one technology. They never see an
//! actor, and the runtime never sees a broker. A connector declares its limitations as data, in its
//! [`Features`]; the conformance suite in `brigade-testkit` holds it to what it declares.
//!
//! # Rules for implementors
//!
//! - Methods take `&self`: the runtime has at most one [`Consumer::consume`] call pending per
//!   consumer, and may call everything else meanwhile.
//! - Futures are dropped at any await point (a stop, a restart): a message that `consume` has taken
//!   but not returned must be handed out again by a later call.
//! - Nothing blocks the calling thread: blocking work (a disk, a C library) runs on a thread of the
//!   connector's own.
//! - A consumer or producer that is dropped without `shutdown` gives back what it held, at once or
//!   when its lease runs out; it never acks.

mod consumer;
mod error;
mod features;
mod format;
mod producer;
mod queue;

pub use consumer::{
    Acked, Consumer, Defect, Failed, FailedReason, Incoming, Lag, PartitionLag, Receipt, Want,
};
pub use error::{ConnectorError, ErrorKind};
pub use features::Features;
pub use format::{Format, Formats, SchemaRegistry};
pub use producer::{Hold, Outgoing, Produced, Producer, Rejected, Staged};
pub use queue::{
    Connector, ConnectorEnv, Guarantee, Limit, Order, Peeked, Problem, QueueAdmin, QueuePlace,
    QueueSpec, QueueStatus, Reader, Used, WhenFull,
};
