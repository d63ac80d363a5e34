//! Components: the user's code. A message in, outputs out; no actor, no offset, no ack.
//!
//! A component is an async or plain function, with or without a [`Context`]:
//!
//! ```
//! use brigade_core::{Failure, component::{Context, Emit, into_any}};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! struct Flight { origin: String, delay: i64 }
//!
//! async fn check(flight: Flight) -> Result<Emit, Failure> {
//!     if flight.origin.is_empty() {
//!         return Err(Failure::reject("no origin"));
//!     }
//!     let output = if flight.delay > 15 { "late" } else { "on_time" };
//!     Ok(Emit::to(output, &flight.origin))
//! }
//! fn count(flight: Flight, cx: &Context) -> Result<(), Failure> {
//!     cx.counter("flights_seen").increment(1);
//!     Ok(())
//! }
//! let _ = (into_any(check), into_any(count));
//! ```
//!
//! or, with state or shared resources, a type that implements [`Component`]; or, for whole batches,
//! `async fn(Vec<In>) -> Vec<Result<Out, E>>` or a type that implements [`BatchComponent`].
//!
//! Futures need not be `Send`: they live on their lane, or on their blocking thread. Components,
//! inputs and outputs are `Send + 'static`.

mod any;
mod context;
mod conversion;
mod emit;
mod factory;
mod functions;
mod input;
mod output;
mod unsettled;

pub use any::{AnyComponent, BatchComponent, Component, HandleError, Handling, Kind};
pub use context::{Context, Setup, StageContext};
pub use conversion::{Conversion, measure};
pub use emit::{Emit, Emitted, StateWrite, Takeover};
pub use factory::{ComponentFactory, StageSite};
pub use functions::{IntoComponent, into_any, markers};
pub use input::{DecodeError, Input, Parsed, Raw};
pub use output::{Output, OutputError};
pub use unsettled::{Claim, Unsettled, Written};
