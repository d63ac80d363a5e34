//! RSMQ: simple queues with a visibility timeout, as the Node client `rsmq` and the Python client
//! `PyRSMQ` keep them. Queues made by one are used by the other.
//!
//! # On the wire
//!
//! For a namespace `rsmq` and a queue `q`: the set `rsmq:QUEUES` has the queues' names; the sorted set
//! `rsmq:q` has message ids by the millisecond from which they may be received; the hash `rsmq:q:Q` has
//! `vt`, `delay`, `maxsize`, `created`, `modified`, `totalsent`, `totalrecv`, and for each message its
//! body by its id, `ID:rc` (how often it was received) and `ID:fr` (when first, in milliseconds). An id
//! is the microsecond of its sending in base 36 (10 digits) and 22 random characters.
//!
//! Brigade keeps one key more: the hash `rsmq:q:brigade:attempts` (failed attempts, since the receive
//! count also counts crashes). A late holder does nothing: whatever is done to a message compares its
//! receive count. Ids carry the time, so sending again after a lost answer makes another message; an
//! output that is sent in the script of its ack is sent once.

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
