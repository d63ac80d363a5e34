//! Kafka in the conformance suite, on a real server that is cut off, killed and started again, or has no room on its
//! disk.
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
use brigade_testkit::conformance::{
    a_disturbed_backend_loses_nothing, what_a_disturbed_backend_settles_is_put_once,
};
use brigade_testkit::servers::{Kafka, KafkaDoor};
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

fn fixture(queue: QueueSpec) -> Fixture {
    Fixture::new(Arc::new(Connector), ConnectorEnv { state: MemoryState::new() }, queue)
}

/// Cuts clients off from the server that all share, also some of those that connect anew.
fn cut_off(change: impl FnOnce(&mut QueueSpec)) -> Fixture {
    let door = KafkaDoor::open(Kafka::shared());
    let mut queue = queue(&door.servers());
    change(&mut queue);
    fixture(queue).disturb(move || door.cut(3))
}

/// On a server of its own, which is killed and started again in use. While it is not, it stays what clients know of.
fn killed(change: impl FnOnce(&mut QueueSpec)) -> Fixture {
    let server = Arc::new(Kafka::start_steady());
    let mut queue = queue(&server.servers());
    change(&mut queue);
    let victim = Arc::clone(&server);
    fixture(queue).keep(server).disturb(move || victim.restart())
}

fn exactly_once(queue: &mut QueueSpec) {
    queue.guarantee = Guarantee::ExactlyOnce;
}

/// With retry topics, what fails waits there.
fn retry_topics(queue: &mut QueueSpec) {
    queue.settings["retry_topics"] = json!(["1s", "1m"]);
}

fn both(queue: &mut QueueSpec) {
    exactly_once(queue);
    retry_topics(queue);
}

mod at_least_once {
    brigade_testkit::conformance!(|| super::cut_off(|_| ()));
}

mod exactly_once {
    brigade_testkit::conformance!(|| super::cut_off(super::exactly_once));
}

mod retry_topics {
    brigade_testkit::conformance!(|| super::cut_off(super::retry_topics));

    mod exactly_once {
        brigade_testkit::conformance!(|| super::super::cut_off(super::super::both));
    }
}

#[tokio::test]
async fn a_killed_server_loses_nothing() {
    a_disturbed_backend_loses_nothing(&killed(|_| ())).await;
}

#[tokio::test]
async fn what_a_killed_server_settles_is_put_once() {
    what_a_disturbed_backend_settles_is_put_once(&killed(both)).await;
}

/// A server whose disk is full for a while: it halts, and is started again when there is room.
#[cfg(feature = "machine")]
mod full {
    use std::fs::{self, File};
    use std::io::Write as _;
    use std::time::{Duration, Instant};

    use brigade_testkit::servers::Mount;

    use super::*;

    /// How long it may take until the server has something to write.
    const PATIENCE: Duration = Duration::from_secs(180);

    struct Full {
        /// Dropped first: the server writes to the file system, and that is mounted on the directory.
        server: Kafka,
        _disk: Mount,
        directory: tempfile::TempDir,
    }

    impl Full {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let disk = Mount::new(directory.path(), "96m");
            Self { server: Kafka::start_in(directory.path()), _disk: disk, directory }
        }

        /// Takes all of the room until the server has noticed.
        fn fill(&self) {
            let (path, begun) = (self.directory.path().join("filler"), Instant::now());
            let mut filler = File::create(&path).unwrap();
            while !self.server.has_ended() {
                assert!(begun.elapsed() < PATIENCE, "it does not halt");
                while filler.write_all(&[0; 4096]).is_ok() {}
                std::thread::park_timeout(Duration::from_millis(10));
            }
            drop(filler);
            fs::remove_file(path).unwrap();
            self.server.restart();
        }
    }

    fn fixture(change: impl FnOnce(&mut QueueSpec)) -> Fixture {
        let full = Arc::new(Full::start());
        let mut queue = queue(&full.server.servers());
        change(&mut queue);
        let victim = Arc::clone(&full);
        super::fixture(queue).keep(full).disturb(move || victim.fill())
    }

    #[tokio::test]
    async fn a_full_disk_loses_nothing() {
        a_disturbed_backend_loses_nothing(&fixture(|_| ())).await;
    }

    #[tokio::test]
    async fn what_is_settled_over_a_full_disk_is_put_once() {
        what_a_disturbed_backend_settles_is_put_once(&fixture(both)).await;
    }
}
