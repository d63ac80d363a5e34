//! Redis Streams and RSMQ in the conformance suite, on a real server that is killed and started again, cut off
//! and filled.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use brigade_core::connector::{Connector, ConnectorEnv, QueueSpec};
use brigade_memory::MemoryState;
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::Fixture;
use brigade_testkit::conformance::{
    a_disturbed_backend_loses_nothing, what_a_disturbed_backend_settles_is_put_once,
};
use brigade_testkit::servers::{Door, Redis};
use serde_json::{Value, json};

fn fixture(connector: Arc<dyn Connector>, url: String, settings: Value) -> Fixture {
    let mut settings = settings;
    settings["url"] = url.into();
    let queue = QueueSpec::new("suite", "shop", settings);
    Fixture::new(connector, ConnectorEnv { state: MemoryState::new() }, queue)
}

/// Its server is killed and started again.
fn killed(connector: Arc<dyn Connector>, server: Redis, settings: Value) -> Fixture {
    let server = Arc::new(server);
    let victim = Arc::clone(&server);
    fixture(connector, server.url(), settings).keep(server).disturb(move || victim.restart())
}

/// Its server is cut off, also from a few of those that connect anew.
fn cut_off(connector: Arc<dyn Connector>, server: Redis, settings: Value) -> Fixture {
    let door = Door::open(server.port());
    let url = server.url_through(&door);
    fixture(connector, url, settings).keep(server).disturb(move || door.cut(3))
}

async fn nothing_is_lost(fixture: impl Fn() -> Fixture) {
    a_disturbed_backend_loses_nothing(&fixture()).await;
    what_a_disturbed_backend_settles_is_put_once(&fixture()).await;
}

/// Its server has no room for a moment, and refuses somebody each time that it is used.
async fn a_full_server_loses_nothing(connector: Arc<dyn Connector>, settings: Value) {
    let refusals = Arc::new(AtomicU32::new(0));
    let filled = || {
        let server = Arc::new(Redis::start());
        let (victim, refusals) = (Arc::clone(&server), Arc::clone(&refusals));
        let fixture = fixture(Arc::clone(&connector), server.url(), settings.clone());
        fixture.keep(server).disturb(move || {
            refusals.fetch_add(u32::from(victim.fill()), Relaxed);
        })
    };
    a_disturbed_backend_loses_nothing(&filled()).await;
    let first = refusals.load(Relaxed);
    what_a_disturbed_backend_settles_is_put_once(&filled()).await;
    assert!(first > 0 && refusals.load(Relaxed) > first, "{first} and then {refusals:?}");
}

mod streams {
    use super::*;

    brigade_testkit::conformance!(|| {
        // Its user may do no more than the documentation says that it has to.
        killed(Arc::new(RedisStreams), Redis::start_restricted(), json!({}))
    });

    #[tokio::test]
    async fn a_server_that_is_cut_off_loses_nothing() {
        let server = Redis::start_restricted;
        nothing_is_lost(|| cut_off(Arc::new(RedisStreams), server(), json!({}))).await;
    }

    #[tokio::test]
    async fn a_full_server_loses_nothing() {
        super::a_full_server_loses_nothing(Arc::new(RedisStreams), json!({})).await;
    }
}

mod rsmq {
    use super::*;

    /// Where answers are lost, and what was received is waited for.
    fn settings() -> Value {
        json!({ "vt": "5s" })
    }

    brigade_testkit::conformance!(|| {
        let server = Redis::start();
        // What is held stays held on a machine that stands still for a while.
        fixture(Arc::new(Rsmq), server.url(), json!({ "vt": "20s" })).keep(server)
    });

    #[tokio::test]
    async fn a_killed_server_loses_nothing() {
        nothing_is_lost(|| killed(Arc::new(Rsmq), Redis::start(), settings())).await;
    }

    #[tokio::test]
    async fn a_server_that_is_cut_off_loses_nothing() {
        nothing_is_lost(|| cut_off(Arc::new(Rsmq), Redis::start(), settings())).await;
    }

    #[tokio::test]
    async fn a_full_server_loses_nothing() {
        super::a_full_server_loses_nothing(Arc::new(Rsmq), settings()).await;
    }
}
