//! A Kafka broker whose disk is full: it halts. That is told, and nothing is lost when it is back.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use brigade_testkit::servers::{Kafka, Mount};

const MESSAGES: usize = 2000;
const PATIENCE: Duration = Duration::from_secs(180);
const PIPELINE: &str = "
pipeline: shop
state: state
queues:
  in: { type: file, path: in.jsonl }
  orders:
    type: kafka
    create: { partitions: 1 }
    config: { bootstrap.servers: '${BROKERS}', reconnect.backoff.max.ms: 500, compression.type: none }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [orders], max_in_flight: { messages: 200 } }
  keep: { component: { map: '{n}' }, input: orders, outputs: [out] }
";

struct Brigade(Child);

impl Drop for Brigade {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_broker_whose_disk_is_full_halts_and_nothing_is_lost_when_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let records = directory.path().join("records");
    fs::create_dir(&records).unwrap();
    let mount = Mount::new(&records, "24m");
    let kafka = Kafka::start_in(&records);
    let place = directory.path();
    // Twenty kilobytes each: forty megabytes in all.
    let filling = "x".repeat(20_000);
    let line = |n: usize| format!("{{\"n\":{n},\"filling\":\"{filling}\"}}\n");
    fs::write(place.join("in.jsonl"), (0..MESSAGES).map(line).collect::<String>()).unwrap();
    fs::write(place.join("p.yaml"), PIPELINE).unwrap();
    let log = fs::File::create(place.join("log")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(place).args(["run", "p.yaml", "--until-idle"]);
    command.env("BROKERS", kafka.servers()).stdout(Stdio::null()).stderr(log);
    let mut brigade = Brigade(command.spawn().unwrap());
    let told = || fs::read_to_string(place.join("log")).unwrap();
    let begun = Instant::now();
    while !told().contains("the producer has no broker") {
        assert!(begun.elapsed() < PATIENCE, "it is not told:\n{}", told());
        assert!(brigade.0.try_wait().unwrap().is_none(), "it gave up:\n{}", told());
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let line = told().lines().find(|line| line.contains("no broker")).unwrap().to_owned();
    assert!(line.contains("orders") && line.contains(&kafka.servers()), "{line}");
    mount.resize("400m");
    kafka.restart();
    while brigade.0.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < 2 * PATIENCE, "it does not go on:\n{}", told());
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(brigade.0.wait().unwrap().success(), "{}", told());
    let out = fs::read_to_string(place.join("out.jsonl")).unwrap();
    let numbers = out.lines().map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["n"].as_u64().unwrap() as usize
    });
    assert_eq!(numbers.collect::<BTreeSet<usize>>(), (0..MESSAGES).collect());
}
