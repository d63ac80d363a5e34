//! The memory of a process that works on a long backlog, and whose output's server goes away.

use std::process::Command;
use std::time::{Duration, Instant};

use brigade_testkit::servers::Redis;

use crate::redis::connect;
use crate::support::{Goal, Row, resident};

/// How many messages wait: on a Redis stream they take about 600 MB of the server's memory, which a machine of 8 GB
/// has.
pub(crate) const WAITING: usize = 5_000_000;
/// For how long the output's server is away.
const OUTAGE: Duration = Duration::from_secs(60);
/// How many are put on a stream at once.
const BATCH: usize = 10_000;

/// Each of the messages.
pub(crate) fn payload(n: usize) -> String {
    format!("{{\"n\":{n},\"text\":\"{n:064}\"}}")
}

/// Over an input with all of them, the keys of a queue.
pub(crate) fn watched(name: &'static str, input: &str) -> Row {
    let redis = Redis::start();
    let directory = tempfile::tempdir().expect("a directory can be made");
    let text = format!(
        "pipeline: bench
state: state
queues:
  in: {{ {input} }}
  out: {{ type: redis_stream, url: '{}' }}
stages:
  pass: {{ component: pass, input: in, outputs: [out] }}
",
        redis.url()
    );
    std::fs::write(directory.path().join("p.yaml"), text).expect("the directory can be written");
    let mut brigade = Command::new(env!("CARGO_BIN_EXE_brigade"));
    brigade.current_dir(directory.path()).args(["run", "p.yaml"]);
    let log = std::fs::File::create(directory.path().join("log"))
        .expect("the file is there or can be made");
    let mut running = brigade.stderr(log).spawn().expect("the program is there");
    let mut row =
        Row { name, unit: "MB resident", ours: vec![], by_hand: vec![], goal: Goal::AtMost(200.0) };
    let mut watch = |period: Duration| {
        let begun = Instant::now();
        while begun.elapsed() < period {
            std::thread::sleep(Duration::from_millis(200));
            row.ours.push(resident(&running.id().to_string()));
        }
    };
    watch(Duration::from_secs(10));
    redis.kill();
    watch(OUTAGE);
    redis.restart();
    watch(Duration::from_secs(5));
    running.kill().expect("it runs");
    running.wait().expect("nobody else waits for it");
    row
}

/// From a Redis stream to one on another server.
pub(crate) fn streams(name: &'static str) -> Row {
    let server = Redis::start();
    let mut client = connect(&server);
    for n in (0..WAITING).step_by(BATCH) {
        let mut fill = redis::pipe();
        for n in n..n + BATCH {
            fill.cmd("XADD").arg(&["in", "*", "payload"]).arg(payload(n)).ignore();
        }
        fill.query::<()>(&mut client).expect("Redis answers");
    }
    let row = watched(name, &format!("type: redis_stream, url: '{}'", server.url()));
    let left: usize = redis::cmd("XLEN").arg("in").query(&mut client).expect("Redis answers");
    assert!(left > 0, "the backlog did not last");
    row
}
