//! Redis Streams and RSMQ in the conformance suite, on a real server that is killed and started again.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use brigade_core::connector::{Connector, ConnectorEnv, QueueSpec};
use brigade_memory::MemoryState;
use brigade_testkit::Fixture;

/// A server of its own for each test, on a free port, that keeps what it confirmed.
struct Redis {
    directory: tempfile::TempDir,
    port: u16,
    child: Mutex<Option<Child>>,
}

impl Redis {
    fn start() -> Arc<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let redis = Arc::new(Self { directory, port, child: Mutex::default() });
        redis.run();
        redis
    }

    fn run(&self) {
        let path: PathBuf = self.directory.path().into();
        let mut server = Command::new("redis-server");
        server.args(["--port", &self.port.to_string(), "--save", "", "--appendonly", "yes"]);
        server.args(["--appendfsync", "always", "--dir"]).arg(path);
        let server = server.stdout(Stdio::null()).spawn();
        *self.child.lock().unwrap() = Some(server.expect("redis-server is installed"));
        let begun = Instant::now();
        let client = redis::Client::open(self.url()).unwrap();
        while client.get_connection().and_then(|mut c| redis::cmd("PING").exec(&mut c)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the server does not answer");
            std::thread::yield_now();
        }
    }

    fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn fixture(connector: Arc<dyn Connector>, settings: serde_json::Value) -> Fixture {
    let server = Redis::start();
    let mut settings = settings;
    settings["url"] = server.url().into();
    let queue = QueueSpec::new("suite", "queue", settings);
    let victim = Arc::clone(&server);
    let env = ConnectorEnv { state: MemoryState::new() };
    Fixture::new(connector, env, queue).keep(server).disturb(move || {
        victim.kill();
        victim.run();
    })
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
