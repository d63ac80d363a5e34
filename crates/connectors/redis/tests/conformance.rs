//! Redis Streams and RSMQ in the conformance suite, on a real server that is killed and started again.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::Arc;

use brigade_core::connector::{Connector, ConnectorEnv, QueueSpec};
use brigade_memory::MemoryState;
use brigade_testkit::Fixture;
use brigade_testkit::servers::Redis;

fn fixture(connector: Arc<dyn Connector>, settings: serde_json::Value) -> Fixture {
    let server = Arc::new(Redis::start());
    let mut settings = settings;
    settings["url"] = server.url().into();
    let queue = QueueSpec::new("suite", "queue", settings);
    let victim = Arc::clone(&server);
    let env = ConnectorEnv { state: MemoryState::new() };
    Fixture::new(connector, env, queue).keep(server).disturb(move || victim.restart())
}

mod streams {
    brigade_testkit::conformance!(|| {
        super::fixture(std::sync::Arc::new(brigade_redis::RedisStreams), serde_json::json!({}))
    });
}

mod rsmq {
    brigade_testkit::conformance!(|| {
        super::fixture(std::sync::Arc::new(brigade_redis::Rsmq), serde_json::json!({ "vt": "5s" }))
    });
}
