//! The file connector in the conformance suite.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::Arc;

use brigade_core::connector::{ConnectorEnv, QueueSpec};
use brigade_embedded::{Options, Store};
use brigade_file::FileConnector;
use brigade_testkit::Fixture;

fn fixture(name: &str) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let state = Store::open(&directory.path().join("state"), Options::default()).unwrap();
    let settings = serde_json::json!({ "path": directory.path().join(name) });
    Fixture::new(
        Arc::new(FileConnector),
        ConnectorEnv { state },
        QueueSpec::new("suite", "queue", settings),
    )
    .keep(directory)
}

mod lines {
    brigade_testkit::conformance!(|| super::fixture("queue.jsonl"));
}

mod gzip {
    brigade_testkit::conformance!(|| super::fixture("queue.jsonl.gz"));
}

mod zstd {
    brigade_testkit::conformance!(|| super::fixture("queue.jsonl.zst"));
}
