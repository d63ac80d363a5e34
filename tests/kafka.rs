//! Pipelines over a real Kafka (and Redis), with processes and servers killed: nothing is lost, and
//! with `guarantee: exactly_once` nothing comes twice.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use brigade_testkit::servers::{Kafka, Redis};

const MESSAGES: usize = 20_000;
const PATIENCE: Duration = Duration::from_secs(240);

/// What all pipelines here begin with. A dead member is given up soon.
const HEAD: &str = "
pipeline: shop
state: state
queues:
  in: { type: file, path: in.jsonl }
  out: { type: file, path: out.jsonl }
";
/// The keys of each queue on Kafka.
const KAFKA: &str = "type: kafka
    create: { partitions: 4 }
    config:
      bootstrap.servers: '${BROKERS}'
      session.timeout.ms: 2000
      heartbeat.interval.ms: 300
      reconnect.backoff.max.ms: 500
      transaction.timeout.ms: 5000";

struct Place {
    directory: tempfile::TempDir,
    servers: Vec<(&'static str, String)>,
}

impl Place {
    fn new(pipeline: &str, servers: Vec<(&'static str, String)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let input: String = (0..MESSAGES).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        fs::write(directory.path().join("in.jsonl"), input).unwrap();
        fs::write(
            directory.path().join("p.yaml"),
            format!("{HEAD}{}", pipeline.replace("KAFKA", KAFKA)),
        )
        .unwrap();
        Self { directory, servers }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn start(&self, stage: &str) -> Child {
        let log = self.path().join(format!("{stage}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(self.path()).args(["run", "p.yaml", "--until-idle", "--stage", stage]);
        command.envs(self.servers.iter().cloned()).env("RUST_LOG", "info");
        command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    }

    fn written(&self) -> u64 {
        fs::metadata(self.path().join("out.jsonl")).map_or(0, |file| file.len())
    }

    /// How often each number is in the output.
    fn counted(&self) -> BTreeMap<usize, usize> {
        let text = fs::read_to_string(self.path().join("out.jsonl")).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("no torn line");
            assert_eq!(value["billed"], true);
            *counts.entry(value["n"].as_u64().unwrap() as usize).or_default() += 1;
        }
        counts
    }

    fn logs(&self) -> String {
        let files = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = files.filter(|path| path.extension().is_some_and(|ext| ext == "log"));
        let tail = |path: std::path::PathBuf| {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(15).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            format!("{}:\n{}\n", path.display(), lines.join("\n"))
        };
        logs.map(tail).collect()
    }

    /// Waits until a condition holds, or all have ended; says whether somebody still runs.
    fn wait(&self, running: &mut [Child], until: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        loop {
            // One that starts after all have finished would wait for a run of the others.
            if running.iter_mut().all(|child| child.try_wait().unwrap().is_some()) {
                return false;
            }
            if until() {
                return true;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not go on:\n{}", self.logs());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn finish(&self, mut running: Vec<Child>) -> BTreeMap<usize, usize> {
        self.wait(&mut running, || false);
        for mut child in running {
            assert!(child.wait().unwrap().success(), "{}", self.logs());
        }
        let counts = self.counted();
        let missing: Vec<usize> = (0..MESSAGES).filter(|n| !counts.contains_key(n)).collect();
        assert!(missing.is_empty(), "{} are missing, as {:?}", missing.len(), &missing[..1]);
        counts
    }
}

#[test]
fn from_kafka_over_redis_to_kafka_processes_and_servers_are_killed_and_nothing_is_lost() {
    const STAGES: [&str; 4] = ["feed", "bill", "pass_on", "keep"];
    const KILLS: usize = 8;
    let (kafka, redis) = (Kafka::start(), Redis::start());
    let servers = vec![("BROKERS", kafka.servers()), ("REDIS_URL", redis.url())];
    let place = Place::new(
        "  bills: { type: redis_stream, url: '${REDIS_URL}' }
  orders:
    KAFKA
  sent:
    KAFKA
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  bill: { component: { map: '.billed = true' }, input: orders, outputs: [bills] }
  pass_on: { component: pass, input: bills, outputs: [sent] }
  keep: { component: pass, input: sent, outputs: [out] }
",
        servers,
    );
    let mut running: Vec<Child> = STAGES.iter().map(|stage| place.start(stage)).collect();
    let mut random = fastrand::Rng::with_seed(7);
    for kill in 0..KILLS {
        let until = place.written() + random.u64(10_000..40_000);
        if !place.wait(&mut running, || place.written() >= until) {
            println!("done after {kill} of {KILLS} deaths");
            break;
        }
        match kill % 4 {
            2 => kafka.restart(),
            3 => redis.restart(),
            _ => {
                let at = random.usize(..STAGES.len());
                running[at].kill().unwrap();
                running[at].wait().unwrap();
                running[at] = place.start(STAGES[at]);
            }
        }
    }
    let counts = place.finish(running);
    let twice = counts.values().filter(|count| **count > 1).count();
    println!("{twice} of {MESSAGES} came more than once, after {KILLS} deaths");
    // What a dying process or server had in flight may come again: its credit, each time.
    assert!(twice <= KILLS * 2 * 1024, "{twice} came more than once");
}

#[test]
fn exactly_once_from_kafka_to_kafka_over_kills_and_restarts() {
    const KILLS: usize = 6;
    let kafka = Kafka::start();
    let place = Place::new(
        "  orders:
    guarantee: exactly_once
    KAFKA
  billed:
    KAFKA
  dead:
    KAFKA
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  bill: { component: { map: '.billed = true' }, input: orders, outputs: [billed], dead_letter: dead }
  keep: { component: pass, input: billed, outputs: [out] }
",
        vec![("BROKERS", kafka.servers())],
    );
    // What feeds and what counts is not killed: a file is no part of a transaction.
    let mut running: Vec<Child> =
        ["bill", "feed", "keep"].iter().map(|stage| place.start(stage)).collect();
    let mut random = fastrand::Rng::with_seed(11);
    for kill in 0..KILLS {
        let until = place.written() + random.u64(10_000..40_000);
        if !place.wait(&mut running, || place.written() >= until) {
            println!("done after {kill} of {KILLS} deaths");
            break;
        }
        running[0].kill().unwrap();
        running[0].wait().unwrap();
        running[0] = place.start("bill");
    }
    let counts = place.finish(running);
    let twice = counts.values().filter(|count| **count > 1).count();
    assert_eq!(twice, 0, "exactly once");
}

#[test]
fn topics_and_dead_letters_on_kafka_are_looked_into_and_sent_back() {
    let directory = tempfile::tempdir().unwrap();
    let yaml = "
pipeline: shop
state: state
queues:
  in: { type: generator, count: 10, template: { n: '{{seq}}' } }
  orders: KAFKA
  dead: KAFKA
  out: KAFKA
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  bill:
    component: { map: 'if .n == 3 then error(\"three\") else . end' }
    input: orders
    outputs: [out]
    dead_letter: dead
";
    let queue =
        "{ type: kafka, create: { partitions: 3 }, config: { bootstrap.servers: '${BROKERS}' } }";
    fs::write(directory.path().join("p.yaml"), yaml.replace("KAFKA", queue)).unwrap();
    let server = Kafka::start();
    let brigade = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(directory.path()).args(arguments).env("BROKERS", server.servers());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, told) = brigade(&["run", "p.yaml", "--until-idle"]);
    assert_eq!(code, Some(3), "{told}");
    let ready = |queue: &str| -> String {
        let (_, listed) = brigade(&["queues", "list", "p.yaml"]);
        let row = listed.lines().find(|line| line.trim_start().starts_with(queue));
        let row = row.unwrap_or_else(|| panic!("{listed}"));
        row.split_whitespace().nth(2).unwrap().to_owned()
    };
    assert_eq!((&*ready("out"), &*ready("dead"), &*ready("orders")), ("9", "1", "0"));
    let (_, shown) = brigade(&["dead-letters", "list", "p.yaml"]);
    assert!(shown.contains("three"), "{shown}");
    let number = shown.lines().find(|line| line.contains("three")).unwrap();
    let number = number.split_whitespace().next().unwrap();
    let (_, whole) = brigade(&["dead-letters", "show", "p.yaml", number]);
    assert!(whole.contains("\"stage\": \"bill\""), "{whole}");
    let (code, told) = brigade(&["dead-letters", "redrive", "p.yaml"]);
    assert_eq!(code, Some(0), "{told}");
    let (code, told) =
        brigade(&["run", "p.yaml", "--until-idle", "--set", "stages.bill.component.map=."]);
    assert_eq!(code, Some(0), "{told}");
    assert_eq!((&*ready("out"), &*ready("dead")), ("10", "0"));
    let (_, peeked) = brigade(&["queues", "peek", "p.yaml", "out"]);
    assert_eq!(peeked.matches("{\"n\":").count(), 10, "{peeked}");
    let (_, purged) = brigade(&["queues", "purge", "p.yaml", "out"]);
    assert!(purged.contains("10"), "{purged}");
    assert_eq!(ready("out"), "0");
}
