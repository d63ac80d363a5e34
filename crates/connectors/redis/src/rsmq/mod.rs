//! RSMQ: simple queues with a visibility timeout, as the Node client `rsmq` and the Python client
//! `PyRSMQ` keep them. Queues made by one can be used by the others.
//!
//! # On the wire
//!
//! For a namespace `rsmq` and a queue `q`: the set `rsmq:QUEUES` holds the queues' names; the
//! sorted set `rsmq:q` holds message ids, by the millisecond from which they may be received; the
//! hash `rsmq:q:Q` holds `vt`, `delay`, `maxsize`, `created`, `modified`, `totalsent`, `totalrecv`,
//! and for each message its body under its id, `ID:rc` (how often it was received) and `ID:fr`
//! (when first, in milliseconds). An id is the microsecond at which it was sent in base 36 (10
//! digits), followed by 22 random characters.
//!
//! Brigade adds one key: the hash `rsmq:q:brigade:attempts` (failed attempts, since the receive
//! count also counts crashes). A late holder cannot do anything: every operation on a message
//! compares its receive count. Ids contain the time, so sending again after a lost answer makes
//! another message; an output that is sent in the script of its ack is sent once.

mod admin;
mod connector;
mod consumer;
mod definition;
mod producer;
mod received;
mod scripts;

pub use connector::Rsmq;
pub(crate) use definition::QueueDefinition;
pub(crate) use producer::random_part;
