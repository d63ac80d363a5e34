//! The pipeline file: parsed, checked, and made into a [`Topology`].
//!
//! A file in YAML, TOML or JSON becomes one tree of nodes that know where they came from; the
//! environment and `--set` override its keys; `${VARIABLES}` are substituted; the tree is validated
//! against the JSON Schema that is generated from the types in [`mod@file`]; and the names in it
//! are resolved. Everything that is wrong is reported at once, each with its position, its key and
//! the closest correct spelling.
//!
//! The types follow these steps: [`PipelineFile`] is decoded but not checked, [`Topology`] is
//! checked and can run.

pub mod file;
pub mod reference;

mod changes;
mod coerce;
mod diagnostic;
mod document;
mod format;
mod graph;
mod layers;
mod lint;
mod load;
mod node;
mod payload_schema;
mod schema;
mod topology;

pub use changes::changes;
pub use diagnostic::{Diagnostic, Diagnostics, Severity};
pub use document::Document;
pub use file::{Exhausted, Expiry, LogFormat, MetricNames, PipelineFile};
pub use format::Format;
pub use graph::GraphFormat;
pub use load::{Catalog, CatalogComponent, Loaded, Overrides, load_str, read};
pub use node::Origin;
pub use payload_schema::payload_validator;
pub use schema::json_schema;
pub use topology::{
    Batch, ComponentChoice, Expire, Inputs, MaxInFlight, Queue, Stage, Throttle, Topology,
};
