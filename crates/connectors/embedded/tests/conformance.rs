//! The embedded connector in the conformance suite.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::Arc;

use brigade_core::connector::{ConnectorEnv, QueueSpec};
use brigade_embedded::{Embedded, Options, Store};
use brigade_testkit::Fixture;

brigade_testkit::conformance!(|| {
    let directory = tempfile::tempdir().unwrap();
    let state = Store::open(directory.path(), Options::default()).unwrap();
    Fixture {
        connector: Arc::new(Embedded),
        env: ConnectorEnv { state },
        queue: QueueSpec::new("suite", "queue", serde_json::json!({})),
        keep: Box::new(directory),
    }
});
