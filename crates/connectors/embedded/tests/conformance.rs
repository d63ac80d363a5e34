//! The embedded connector in the conformance suite.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorEnv, QueueSpec};
use brigade_embedded::{Embedded, Options, Store};
use brigade_testkit::Fixture;

fn fixture(settings: serde_json::Value) -> Fixture {
    fixture_of(QueueSpec::new("suite", "queue", settings))
}

fn fixture_of(queue: QueueSpec) -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let state = Store::open(directory.path(), Options::default()).unwrap();
    let file = directory.path().join("brigade.db");
    Fixture::new(Arc::new(Embedded), ConnectorEnv { state }, queue)
        .keep(directory)
        .disturb(move || hold_the_lock(&file))
}

/// Another process in the middle of a long transaction.
fn hold_the_lock(file: &std::path::Path) {
    const HELD: Duration = Duration::from_millis(150);
    let mut other = rusqlite::Connection::open(file).unwrap();
    other.busy_timeout(Duration::from_secs(10)).unwrap();
    let immediate = rusqlite::TransactionBehavior::Immediate;
    let transaction = other.transaction_with_behavior(immediate).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < HELD {
        std::thread::yield_now();
    }
    drop(transaction);
}

mod plain {
    brigade_testkit::conformance!(|| super::fixture(serde_json::json!({})));
}

mod with_dedup {
    brigade_testkit::conformance!(|| super::fixture(serde_json::json!({ "dedup": {} })));
}

/// Its outputs are part of the acks' transaction like those of any other.
mod with_a_limit_that_refuses {
    use brigade_core::ByteSize;
    use brigade_core::connector::{Limit, QueueSpec, WhenFull};

    fn fixture() -> brigade_testkit::Fixture {
        let mut queue = QueueSpec::new("suite", "queue", serde_json::json!({}));
        let bytes = Some(ByteSize(1 << 30));
        queue.limit = Limit { messages: None, bytes, when_full: WhenFull::Refuse };
        super::fixture_of(queue)
    }

    brigade_testkit::conformance!(fixture);
}
