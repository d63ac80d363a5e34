//! The memory connector in the conformance suite.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::Arc;

use brigade_core::connector::{ConnectorEnv, QueueSpec};
use brigade_memory::{Memory, MemoryState};
use brigade_testkit::Fixture;

brigade_testkit::conformance!(|| Fixture::new(
    Arc::new(Memory::new()),
    ConnectorEnv { state: MemoryState::new() },
    QueueSpec::new("suite", "queue", serde_json::json!({}))
));
