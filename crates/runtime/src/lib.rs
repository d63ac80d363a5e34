//! The actors and the supervisor: what turns a checked pipeline file into a running pipeline.
//!
//! This is the only crate that names the actor framework. Reading order: [`Supervisor`] and
//! [`Running`], the way in; [`Pipeline`] and [`Registry`], what is started; then, inside, `plan`
//! (what the actors read), `tree` (the actor that supervises), `actors` (consumer, worker,
//! producer), `runner` (how one message is handled) and `actors::settler` (how its outcome becomes
//! durable).

mod supervisor;

mod events;
mod pipeline;
mod registry;
mod status;

mod actors;
mod call;
mod clock;
mod codec;
mod conversions;
mod edge;
mod format;
mod lane;
mod outbox;
mod plan;
mod pool;
mod route;
mod runner;
#[cfg(feature = "sabotage")]
mod sabotage;
mod states;
mod stats;
mod tree;

pub use conversions::{conversions, measure_conversions};
pub use edge::Entry;
pub use events::{Event, Events};
pub use pipeline::{LoadError, Pipeline, StartError, dead_letter_queue, redrive_queue};
pub use registry::{OpenState, Registry};
pub use status::{
    Counts, Outputs, PipelineStatus, PlaceKind, QueueDepth, QueueTimes, StageState, StageStatus,
    Stopped, Times, Unaccounted,
};
pub use supervisor::{CommandError, Running, Supervisor, Watcher};
