//! The vocabulary of Brigade and every decision it makes, pure.
//!
//! This crate does no IO, reads no clock and spawns nothing: time and randomness are arguments.
//! Connectors and components depend on no other crate of the project; the runtime turns its
//! decisions into actors.
//!
//! Reading order: [`Message`], the [`component`] API, the [`connector`] contract, [`state`], then
//! the machines that decide: [`delivery`], [`outcome`], [`flight`], [`group`], [`retry`], [`order`], [`credit`],
//! [`restart`], [`throttle`], [`watermark`].

pub mod books;
mod codec;
pub mod component;
pub mod connector;
pub mod credit;
mod dead_letter;
pub mod delivery;
mod failure;
pub mod field;
pub mod flight;
pub mod group;
mod id;
mod message;
pub mod order;
pub mod outcome;
pub mod restart;
pub mod retry;
pub mod state;
pub mod throttle;
mod units;
pub mod watermark;

pub use codec::{Codec, long_integer, numbers};
pub use dead_letter::{Cause, CauseKind, DeadLetter, DeadLetterError, Truncated};
pub use failure::{BoxError, Failure};
pub use id::{IncarnationId, MessageId};
pub use message::{Headers, Message, Timestamp};
pub use units::{ByteSize, Period, UnitError};
