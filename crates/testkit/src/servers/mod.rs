//! Real servers for tests, each on a port and in a directory of its own, to be killed and started
//! again.

use std::net::TcpListener;
use std::time::Duration;

mod kafka;
mod redis;
mod redis_groups;

pub use kafka::Kafka;
pub use redis::Redis;
pub use redis_groups::{MASTER, RedisCluster, RedisSentinel};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(10);
/// Ports below those that connections get by themselves: else a client that tries to reach a server
/// that is down may be given the server's own port, and the server cannot come back.
const PORTS: std::ops::Range<u16> = 15_000..30_000;

fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| fastrand::u16(PORTS)).find(free).expect("it tries for ever")
}
