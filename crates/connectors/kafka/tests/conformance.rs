//! Kafka in the conformance suite, on a real server.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::Arc;

use brigade_core::connector::{ConnectorEnv, Guarantee, QueueSpec};
use brigade_kafka::Kafka as Connector;
use brigade_memory::MemoryState;
use brigade_testkit::Fixture;
use brigade_testkit::servers::Kafka;
use serde_json::json;

/// A fresh topic of one partition, so that order can be told.
fn queue(servers: &str) -> QueueSpec {
    let topic = format!("queue-{:016x}", fastrand::u64(..));
    let settings = json!({
        "topic": topic,
        "group": topic,
        "create": { "partitions": 1 },
        "revoke_within": "500ms",
        "config": {
            "bootstrap.servers": servers,
            "session.timeout.ms": 15000,
            "heartbeat.interval.ms": 200,
            "reconnect.backoff.max.ms": 500,
        },
    });
    QueueSpec::new("suite", "queue", settings)
}

fn on_the_shared_server() -> Fixture {
    let env = ConnectorEnv { state: MemoryState::new() };
    Fixture::new(Arc::new(Connector), env, queue(&Kafka::shared().servers()))
}

mod at_least_once {
    brigade_testkit::conformance!(super::on_the_shared_server);
}

mod exactly_once {
    use super::*;

    brigade_testkit::conformance!(|| {
        let fixture = on_the_shared_server();
        fixture.with(|queue| queue.guarantee = Guarantee::ExactlyOnce)
    });
}

/// With retry topics, what fails waits there.
mod retry_topics {
    use super::*;

    fn fixture() -> Fixture {
        on_the_shared_server().with(|queue| queue.settings["retry_topics"] = json!(["1s", "1m"]))
    }

    brigade_testkit::conformance!(fixture);

    mod exactly_once {
        use super::*;

        brigade_testkit::conformance!(|| {
            fixture().with(|queue| queue.guarantee = Guarantee::ExactlyOnce)
        });
    }
}

/// On a server of its own, which is killed and started again in use.
#[tokio::test]
async fn a_killed_server_loses_nothing() {
    let server = Arc::new(Kafka::start());
    let env = ConnectorEnv { state: MemoryState::new() };
    let fixture = Fixture::new(Arc::new(Connector), env, queue(&server.servers()));
    let victim = Arc::clone(&server);
    let fixture = fixture.keep(server).disturb(move || victim.restart());
    brigade_testkit::conformance::a_disturbed_backend_loses_nothing(&fixture).await;
}
