//! Real servers for tests, each on a port and in a directory of its own, to be killed and started
//! again.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

mod asyncapi;
mod door;
mod kafka;
mod kafka_door;
mod keeper;
mod mount;
mod postgres;
mod redis;
mod redis_groups;
mod rsmq;
mod schema_registry;

pub use asyncapi::asyncapi_complaints;
pub use door::Door;
pub use kafka::Kafka;
pub use kafka_door::KafkaDoor;
pub use mount::Mount;
use parking_lot::Mutex;
pub use postgres::Postgres;
pub use redis::{Redis, STREAM_COMMANDS};
pub use redis_groups::{MASTER, RedisCluster, RedisSentinel};
pub use rsmq::RsmqClient;
pub use schema_registry::SchemaRegistry;

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often to check whether it does.
const LOOK: Duration = Duration::from_millis(10);
/// Ports below the ephemeral ones: otherwise a client that tries to reach a server that is down may
/// be given the server's own port, and the server cannot come back.
const PORTS: std::ops::Range<u16> = 15_000..30_000;

/// Ports for which the one 10,000 higher is not ephemeral either: a node of a Redis Cluster listens
/// there too.
const PORTS_OF_NODES: std::ops::Range<u16> = 15_000..22_700;

/// How far the second port of a node is from its first.
const NODE_BUS: u16 = 10_000;

fn free_port() -> u16 {
    free_port_of(PORTS, &[0])
}

/// A free port for a node of a Redis Cluster.
fn free_port_of_node() -> u16 {
    free_port_of(PORTS_OF_NODES, &[0, NODE_BUS])
}

/// A port from which all ports at these distances are free. No port is returned twice: a server
/// binds its own only some time later, and again on every restart, so in between it looks free.
/// Other processes do the same; to keep clear of them, each starts from a random place.
fn free_port_of(ports: std::ops::Range<u16>, higher: &[u16]) -> u16 {
    static TAKEN: Mutex<(Option<u16>, BTreeSet<u16>)> = Mutex::new((None, BTreeSet::new()));
    let (at, taken) = &mut *TAKEN.lock();
    let is_free =
        |port: u16| !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok();
    let at = at.get_or_insert_with(|| fastrand::u16(..));
    loop {
        *at = at.wrapping_add(1);
        let first = ports.start + *at % (ports.end - ports.start);
        if higher.iter().all(|higher| is_free(first + higher)) {
            taken.extend(higher.iter().map(|higher| first + higher));
            return first;
        }
    }
}

/// Notes which test uses a server, in the file that `BRIGADE_SERVERS_USED` names, if any; `cargo
/// xtask test` counts these for its last table.
fn used(server: &str) {
    let Some(file) = std::env::var_os("BRIGADE_SERVERS_USED") else { return };
    let thread = std::thread::current();
    let program = std::env::args().next().unwrap_or_default();
    let line = format!("{server}\t{program} {}\n", thread.name().unwrap_or("?"));
    let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
    // A count in a table that is one too low is no reason for a test to fail.
    let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
}

/// A directory in the user's cache for something that has to be fetched, by its name and a
/// description of its contents; fetched if it is not there.
fn cached(name: &str, what: &str, fetch: impl FnOnce(&Path)) -> PathBuf {
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/tmp".into());
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| Path::new(&home).join(".cache")).join("brigade");
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    let there = cache.join(format!("{name}-{:016x}", hasher.finish()));
    if there.exists() {
        return there;
    }
    std::fs::create_dir_all(&cache).expect("the cache directory can be made");
    // Under another name first, so that what is at the final name is complete.
    let fetched = tempfile::tempdir_in(&cache).expect("a directory can be made");
    fetch(fetched.path());
    let fetched = fetched.keep();
    // Another test may have been faster.
    if std::fs::rename(&fetched, &there).is_err() {
        assert!(there.exists(), "what was fetched cannot be put in {}", there.display());
        let _ = std::fs::remove_dir_all(&fetched);
    }
    there
}

/// A package for Node, fetched if it is not there; returns the directory where Node finds it.
fn npm(name: &str, package: &str) -> PathBuf {
    let fetched = cached(name, package, |directory| {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]);
        run(npm.arg(directory).arg(package));
    });
    fetched.join("node_modules")
}

fn run(command: &mut Command) {
    let program = command.get_program().display().to_string();
    let done = command.output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
}
