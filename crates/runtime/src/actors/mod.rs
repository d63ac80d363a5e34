//! The actors: thin shells around the decisions of `core` and the loops of this crate.

mod blocking;
mod consumer;
mod control;
mod desk;
mod producer;
mod pull;
mod settlement;
mod settler;
mod tries;
mod worker;

use actix::Message;

pub(crate) use consumer::{Consumer, ConsumerSite};
pub(crate) use control::{Control, Mode};
pub(crate) use desk::Desk;
pub(crate) use producer::{Outlet, Producer, one_for_each, only_of_the_batch};
pub(crate) use settler::{Ahead, Settler};
pub(crate) use tries::Told;
pub(crate) use worker::{Work, Worker};

/// Stop now; what is held is given back.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Halt;

/// Die, as if by a defect in Brigade; sent only by tests.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Crash;
