//! Actor-based multi-stage pipelines that move messages between queues and lose none.
//!
//! Write a component (a Rust function), name queues and stages in a pipeline file, run it:
//!
//! ```no_run
//! use brigade::prelude::*;
//!
//! #[derive(serde::Deserialize)]
//! struct Order { id: u64, total: f64 }
//!
//! #[derive(serde::Serialize, Output)]
//! struct Invoice { order: u64, due: f64 }
//!
//! async fn bill(order: Order) -> Result<Invoice, Failure> {
//!     if order.total < 0.0 {
//!         return Err(Failure::reject("negative total"));
//!     }
//!     Ok(Invoice { order: order.id, due: order.total * 1.2 })
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let registry = brigade::registry().component("bill", bill);
//! let pipeline = Pipeline::from_file("shop.yaml", &registry)?;
//! let running = Supervisor::new().add(pipeline).start().await?;
//! running.until_idle(None).await?;
//! running.drain().await;
//! # Ok(())
//! # }
//! ```
//!
//! With `brigade::main! { bill }` a program has the whole command line with its own components.

pub use brigade_core::{
    BoxError, ByteSize, Cause, CauseKind, Codec, DeadLetter, DeadLetterError, Failure, Headers,
    IncarnationId, Message, MessageId, Period, Timestamp, Truncated,
};
pub use brigade_core::{component, connector, field, state};
pub use brigade_embedded::{
    Options as EmbeddedOptions, Store as EmbeddedStore, Sync as EmbeddedSync,
};
pub use brigade_macros::Output;
pub use brigade_memory::{Memory, MemoryState};
pub use brigade_pipeline as pipeline_file;
pub use brigade_runtime::{
    CommandError, Counts, Entry, Event, Events, LoadError, OpenState, Outputs, Pipeline,
    PipelineStatus, PlaceKind, QueueDepth, QueueTimes, Registry, Running, StageState, StageStatus,
    StartError, Stopped, Supervisor, Times, Unaccounted, Watcher,
};

/// What programs with components usually need.
pub mod prelude {
    pub use crate::component::{BatchComponent, Component, Context, Emit, Raw, Setup};
    pub use crate::{BoxError, Failure, Message, Output, Pipeline, Supervisor};
}

/// What components that read from Kafka may need.
#[cfg(feature = "kafka")]
pub mod kafka {
    pub use brigade_kafka::{NoPosition, Position};
}

#[cfg(feature = "watch")]
pub use brigade_watch as watch;

/// The command line: `cli::main(registry)` is the whole `main` of a program with connectors of its
/// own; one that adds components only has [`main!`].
#[cfg(feature = "cli")]
pub use brigade_cli as cli;

use std::sync::Arc;

/// Everything that this crate was built with: the connectors `embedded`, `file`, `generator`, `memory`,
/// `redis_stream` and `rsmq`, and with the feature `kafka` also `kafka`; with the feature
/// `schema-registry`, the formats of schema registries; the built-in components; and the state on SQLite.
pub fn registry() -> Registry {
    let mut registry = Registry::new()
        .connector(Arc::new(brigade_embedded::Embedded))
        .connector(Arc::new(brigade_file::FileConnector))
        .connector(Arc::new(brigade_generator::Generator))
        .connector(Arc::new(Memory::new()))
        .connector(Arc::new(brigade_redis::RedisStreams))
        .connector(Arc::new(brigade_redis::Rsmq))
        .state(Arc::new(|directory| {
            let options = EmbeddedOptions::default();
            let opened = EmbeddedStore::open_aside(directory.to_path_buf(), options);
            Box::pin(async move { Ok(opened.await? as Arc<dyn state::StateStore>) })
        }));
    #[cfg(feature = "kafka")]
    {
        registry = registry.connector(Arc::new(brigade_kafka::Kafka));
    }
    #[cfg(feature = "schema-registry")]
    {
        registry = registry.formats(Arc::new(brigade_schemas::SchemaRegistries));
    }
    for factory in brigade_components::all() {
        registry = registry.factory(factory);
    }
    registry
}

/// What [`allocator!`] names.
#[doc(hidden)]
#[cfg(feature = "mimalloc")]
pub use mimalloc::MiMalloc;

/// The allocator that [`main!`] brings along with the feature `mimalloc`, for other programs with pipelines
/// in them. It carries a tenth more between topics than glibc's and a sixth more with typed JSON, and
/// keeps two to three times as much memory.
///
/// ```
/// brigade::allocator! {}
///
/// fn main() {}
/// ```
#[cfg(feature = "mimalloc")]
#[macro_export]
macro_rules! allocator {
    () => {
        #[global_allocator]
        static ALLOCATOR: $crate::MiMalloc = $crate::MiMalloc;
    };
}

/// Without the feature `mimalloc` it is nothing, and the program keeps its own allocator.
#[cfg(not(feature = "mimalloc"))]
#[macro_export]
macro_rules! allocator {
    () => {};
}

/// A program with the whole command line and these components, and with [`allocator!`].
///
/// ```no_run
/// use brigade::prelude::*;
///
/// async fn check(number: u64) -> Result<(), Failure> { Ok(()) }
///
/// brigade::main! { check, twice: |number: u64| Ok::<_, Failure>(Emit::value(number * 2)) }
/// ```
///
/// With `; schemas: [Flight]` at the end the Rust types named there, which implement
/// `schemars::JsonSchema` (of schemars 1), can be named as `schema:` of queues. What does not fit becomes a
/// dead letter, before a component sees it and instead of an output:
///
/// ```no_run
/// use brigade::prelude::*;
///
/// #[derive(serde::Deserialize, schemars::JsonSchema)]
/// struct Flight { number: String, #[schemars(range(max = 900))] seats: u16 }
///
/// async fn board(flight: Flight) -> Result<(), Failure> { Ok(()) }
///
/// // flights: { type: embedded, schema: Flight }
/// brigade::main! { board; schemas: [Flight] }
/// ```
#[cfg(feature = "cli")]
#[macro_export]
macro_rules! main {
    (@add $registry:ident) => {};
    (@add $registry:ident $(,)? ; schemas: [$($schema:ident),* $(,)?]) => {
        $(let $registry = $registry.schema_of::<$schema>(stringify!($schema));)*
    };
    (@add $registry:ident $name:ident : $component:expr $(, $($rest:tt)*)?) => {
        let $registry = $registry.component(stringify!($name), $component);
        $crate::main!(@add $registry $($($rest)*)?);
    };
    (@add $registry:ident $name:ident : $component:expr ; $($rest:tt)*) => {
        let $registry = $registry.component(stringify!($name), $component);
        $crate::main!(@add $registry ; $($rest)*);
    };
    (@add $registry:ident $name:ident $(, $($rest:tt)*)?) => {
        let $registry = $registry.component(stringify!($name), $name);
        $crate::main!(@add $registry $($($rest)*)?);
    };
    (@add $registry:ident $name:ident ; $($rest:tt)*) => {
        let $registry = $registry.component(stringify!($name), $name);
        $crate::main!(@add $registry ; $($rest)*);
    };
    ($($components:tt)*) => {
        $crate::allocator! {}

        fn main() -> ::std::process::ExitCode {
            let registry = $crate::registry();
            $crate::main!(@add registry $($components)*);
            $crate::cli::main(registry)
        }
    };
}
