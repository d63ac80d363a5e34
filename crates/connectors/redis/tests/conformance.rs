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

fn fixture(connector: Arc<dyn Connector>, server: Redis, settings: serde_json::Value) -> Fixture {
    let server = Arc::new(server);
    let mut settings = settings;
    settings["url"] = server.url().into();
    let queue = QueueSpec::new("suite", "shop", settings);
    let victim = Arc::clone(&server);
    let env = ConnectorEnv { state: MemoryState::new() };
    Fixture::new(connector, env, queue).keep(server).disturb(move || victim.restart())
}

mod streams {
    brigade_testkit::conformance!(|| {
        // Its user may do no more than the documentation says that it has to.
        let server = brigade_testkit::servers::Redis::start_restricted();
        let connector = std::sync::Arc::new(brigade_redis::RedisStreams);
        super::fixture(connector, server, serde_json::json!({}))
    });
}

mod rsmq {
    brigade_testkit::conformance!(|| {
        let server = brigade_testkit::servers::Redis::start();
        let connector = std::sync::Arc::new(brigade_redis::Rsmq);
        super::fixture(connector, server, serde_json::json!({ "vt": "5s" }))
    });
}
