//! Several Redis servers that belong together.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::redis::Redis;
use super::{LOOK, PATIENCE, free_port, free_port_of_node, used};

/// A master, a replica, and a Sentinel that watches them.
#[derive(Debug)]
pub struct RedisSentinel {
    servers: [Redis; 2],
    directory: tempfile::TempDir,
    port: u16,
    sentinel: Child,
}

/// The Sentinel's name for its master.
pub const MASTER: &str = "shop";
/// How many milliseconds a master has to be silent to be considered dead: longer than a live one
/// stalls on a busy machine or waits for its disk.
const DOWN_AFTER: u32 = 10_000;

impl RedisSentinel {
    /// Starts them, and waits until the Sentinel knows both servers.
    ///
    /// # Panics
    /// `redis-server` or `redis-cli` is not installed, or something does not answer.
    pub fn start() -> Self {
        used("redis, sentinel");
        let master = Redis::start();
        let of = format!("127.0.0.1 {}", master.port());
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &master.port().to_string()]);
        let directory = tempfile::tempdir().expect("a directory can be made");
        let port = free_port();
        let settings = format!(
            "port {port}\nsentinel monitor {MASTER} {of} 1\n\
             sentinel down-after-milliseconds {MASTER} {DOWN_AFTER}\n\
             sentinel failover-timeout {MASTER} 5000\n"
        );
        let path = directory.path().join("sentinel.conf");
        fs::write(&path, settings).expect("it can be written");
        let mut sentinel = Command::new("redis-server");
        sentinel.arg(&path).arg("--sentinel").stdout(Stdio::null());
        let sentinel = sentinel.spawn().expect("redis-server is installed");
        let group = Self { servers: [master, replica], directory, port, sentinel };
        group.wait("the Sentinel knows both servers", |master| {
            master.contains("num-slaves\n1") && group.is_in_step()
        });
        group
    }

    /// The Sentinel's address as a URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills the master, and waits until the Sentinel has promoted the replica.
    ///
    /// # Panics
    /// That does not happen within three minutes.
    pub fn fail_over(&self) {
        let [master, replica] = &self.servers;
        master.kill();
        let promoted = format!("port\n{}\n", replica.port());
        self.wait("the replica is the master", |master| master.contains(&promoted));
        let is_master = || cli(replica.port(), &["role"]).starts_with("master");
        let begun = Instant::now();
        while !is_master() {
            assert!(begun.elapsed() < PATIENCE, "the replica does not become the master");
            std::thread::sleep(LOOK);
        }
    }

    /// Whether the replica's link to its master is up.
    fn is_in_step(&self) -> bool {
        cli(self.servers[1].port(), &["info", "replication"]).contains("master_link_status:up")
    }

    fn wait(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !is_so(&cli(self.port, &["sentinel", "master", MASTER])) {
            assert!(begun.elapsed() < PATIENCE, "not within three minutes: {what}");
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for RedisSentinel {
    fn drop(&mut self) {
        // It may have ended by itself; its directory is removed after it.
        let _ = self.sentinel.kill();
        let _ = self.sentinel.wait();
        let _ = fs::remove_file(self.directory.path().join("sentinel.conf"));
    }
}

/// A Cluster of three masters.
#[derive(Debug)]
pub struct RedisCluster {
    servers: [Redis; 3],
}

impl RedisCluster {
    /// Starts the servers, and distributes the slots among them.
    ///
    /// # Panics
    /// `redis-server` or `redis-cli` is not installed, or the Cluster does not form.
    pub fn start() -> Self {
        used("redis, cluster");
        let server = |_| Redis::start_at(free_port_of_node(), &["--cluster-enabled", "yes"]);
        let cluster = Self { servers: [0, 1, 2].map(server) };
        let addresses = cluster.servers.each_ref().map(|s| format!("127.0.0.1:{}", s.port()));
        let mut make = Command::new("redis-cli");
        make.args(["--cluster", "create"]).args(addresses).arg("--cluster-yes");
        let made = make.output().expect("redis-cli is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        cluster.wait_until_well();
        cluster
    }

    /// The address of one of the servers, as a URL.
    pub fn url(&self) -> String {
        self.servers[0].url()
    }

    /// Moves all slots of the server that has this key to another server.
    ///
    /// # Panics
    /// They cannot be moved.
    pub fn move_away(&self, key: &str) {
        let slot = cli(self.servers[0].port(), &["cluster", "keyslot", key]);
        let slot: u16 = slot.trim().parse().expect("a number");
        let nodes = cli(self.servers[0].port(), &["cluster", "nodes"]);
        let has = |line: &&str| {
            line.split(' ').skip(8).any(|range| {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                let within = |from: u16, to: u16| (from..=to).contains(&slot);
                matches!((from.parse(), to.parse()), (Ok(from), Ok(to)) if within(from, to))
            })
        };
        let from = nodes.lines().find(has).expect("some server has the slot");
        let to = nodes.lines().find(|line| *line != from).expect("there are three");
        let id = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let mut reshard = Command::new("redis-cli");
        let at = format!("127.0.0.1:{}", self.servers[0].port());
        reshard.args(["--cluster", "reshard", &at, "--cluster-from", &id(from)]);
        reshard.args(["--cluster-to", &id(to), "--cluster-slots", "6000", "--cluster-yes"]);
        let moved = reshard.output().expect("redis-cli is installed");
        assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stdout));
        self.wait_until_well();
    }

    fn wait_until_well(&self) {
        let begun = Instant::now();
        let well =
            |server: &Redis| cli(server.port(), &["cluster", "info"]).contains("cluster_state:ok");
        while !self.servers.iter().all(well) {
            assert!(begun.elapsed() < PATIENCE, "the Cluster does not come to be");
            std::thread::sleep(LOOK);
        }
    }
}

/// A server's answer to a command.
fn cli(port: u16, command: &[&str]) -> String {
    let mut cli = Command::new("redis-cli");
    let answer = cli.args(["-p", &port.to_string()]).args(command).output();
    String::from_utf8_lossy(&answer.expect("redis-cli is installed").stdout).into_owned()
}
