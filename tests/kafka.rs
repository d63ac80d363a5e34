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

#[path = "common/repeats.rs"]
mod repeats;

use brigade_testkit::servers::{Kafka, Redis};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use repeats::{Blows, LINE, ranges};
use serde_json::Value;

/// What a stage has in flight at most, and so repeats at most when it is killed.
const IN_FLIGHT: usize = 512;
const PATIENCE: Duration = Duration::from_secs(240);

/// How much is done to how many messages: the full figures where they are asked for, in minutes.
struct Figures {
    messages: usize,
    kills: usize,
    /// Of each server.
    restarts: usize,
}

impl Figures {
    fn get() -> Self {
        match std::env::var_os("BRIGADE_FULL") {
            Some(_) => Self { messages: 200_000, kills: 20, restarts: 5 },
            None => Self { messages: 20_000, kills: 4, restarts: 2 },
        }
    }
}

/// What all pipelines here begin with. A dead member is given up soon.
const HEAD: &str = "
pipeline: shop
state: state
queues:
  in: { type: file, path: in.jsonl }
  out: { type: file, path: out.jsonl }
";
const PARTITIONS: i32 = 4;
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
    messages: usize,
    directory: tempfile::TempDir,
    servers: Vec<(&'static str, String)>,
}

impl Place {
    fn new(messages: usize, pipeline: &str, servers: Vec<(&'static str, String)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let input: String = (0..messages).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        fs::write(directory.path().join("in.jsonl"), input).unwrap();
        fs::write(
            directory.path().join("p.yaml"),
            format!("{HEAD}{}", pipeline.replace("KAFKA", KAFKA)),
        )
        .unwrap();
        Self { messages, directory, servers }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn start(&self, stage: &str) -> Child {
        self.start_program(Path::new(env!("CARGO_BIN_EXE_brigade")), stage)
    }

    fn start_program(&self, program: &Path, stage: &str) -> Child {
        let log = self.path().join(format!("{stage}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(program);
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
            let value: Value = serde_json::from_str(line).expect("no torn line");
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
    fn wait(&self, running: &mut [Child], mut until: impl FnMut() -> bool) -> bool {
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
        let missing: Vec<usize> = (0..self.messages).filter(|n| !counts.contains_key(n)).collect();
        assert!(missing.is_empty(), "{} are missing, as {:?}", missing.len(), &missing[..1]);
        counts
    }
}

/// What is done to the processes and servers of a run.
enum Blow {
    Kill,
    RestartKafka,
    RestartRedis,
}

/// All of them, in random order.
fn blows(figures: &Figures, random: &mut fastrand::Rng) -> Vec<Blow> {
    let mut blows: Vec<Blow> = (0..figures.kills).map(|_| Blow::Kill).collect();
    for _ in 0..figures.restarts {
        blows.extend([Blow::RestartKafka, Blow::RestartRedis]);
    }
    random.shuffle(&mut blows);
    blows
}

/// Tells which numbers came more than once, and how often in all.
fn told_repeats(counts: &BTreeMap<usize, usize>) -> usize {
    let repeats: Vec<usize> = counts.iter().filter(|(_, n)| **n > 1).map(|(n, _)| *n).collect();
    println!("more than once: {}", ranges(&repeats));
    counts.values().map(|count| count - 1).sum()
}

#[test]
fn from_kafka_over_redis_to_kafka_processes_and_servers_are_killed_and_nothing_is_lost() {
    const STAGES: [&str; 4] = ["feed", "bill", "pass_on", "keep"];
    let figures = Figures::get();
    let (kafka, redis) = (Kafka::start(), Redis::start());
    let servers = vec![("BROKERS", kafka.servers()), ("REDIS_URL", redis.url())];
    let place = Place::new(
        figures.messages,
        "  bills: { type: redis_stream, url: '${REDIS_URL}' }
  orders:
    KAFKA
  sent:
    KAFKA
stages:
  feed: { component: { map: '.feed = now' }, input: in, outputs: [orders], max_in_flight: &most { messages: 512 } }
  bill: { component: { map: '.billed = true | .bill = now' }, input: orders, outputs: [bills], max_in_flight: *most }
  pass_on: { component: { map: '.pass_on = now' }, input: bills, outputs: [sent], max_in_flight: *most }
  keep: { component: { map: '.keep = now' }, input: sent, outputs: [out], max_in_flight: *most }
",
        servers,
    );
    let begun = Instant::now();
    let mut running: Vec<Child> = STAGES.iter().map(|stage| place.start(stage)).collect();
    let mut random = fastrand::Rng::with_seed(7);
    let blows = blows(&figures, &mut random);
    // They are spread over the run.
    let pace = figures.messages as u64 * LINE / (blows.len() as u64 + 1);
    let mut done = Blows::default();
    for blow in &blows {
        let until = place.written() + random.u64(pace / 2..pace);
        if !place.wait(&mut running, || place.written() >= until) {
            break;
        }
        match blow {
            Blow::Kill => {
                let at = random.usize(..STAGES.len());
                done.kill(STAGES[at], || {
                    running[at].kill().unwrap();
                    running[at].wait().unwrap();
                });
                running[at] = place.start(STAGES[at]);
            }
            Blow::RestartKafka => done.restart("Kafka", || kafka.restart()),
            Blow::RestartRedis => done.restart("Redis", || redis.restart()),
        }
    }
    place.finish(running);
    println!(
        "{} messages over {}, in {:.0?}: none lost",
        figures.messages,
        done.told(),
        begun.elapsed()
    );
    let out = fs::read_to_string(place.path().join("out.jsonl")).unwrap();
    done.account(&STAGES, &out, IN_FLIGHT);
}

#[test]
fn exactly_once_from_kafka_to_kafka_over_kills_and_restarts() {
    let figures = Figures::get();
    let kafka = Kafka::start();
    let place = Place::new(
        figures.messages,
        &"  orders:
    guarantee: exactly_once
    KAFKA
  billed:
    KAFKA
  dead:
    KAFKA
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  bill: { component: { map: '.billed = true' }, input: orders, outputs: [billed], dead_letter: dead,
    throttle: { rate: RATE, per: 1s, burst: RATE } }
"
        // So that it takes long enough for all that is done to it.
        .replace(
            "RATE",
            &(figures.messages / (3 * (figures.kills + figures.restarts))).to_string(),
        ),
        vec![("BROKERS", kafka.servers())],
    );
    // What feeds is not killed: a file is no part of a transaction. What came out is read here.
    let mut feeding = vec![place.start("feed")];
    place.wait(&mut feeding, || false);
    assert!(feeding.remove(0).wait().unwrap().success(), "{}", place.logs());
    let mut running = vec![place.start("bill")];
    let mut out = Topic::new(&kafka.servers(), "billed");
    let mut random = fastrand::Rng::with_seed(11);
    let blows = blows(&figures, &mut random);
    let pace = figures.messages / (blows.len() + 1);
    let (mut kills, mut restarts) = (0, 0);
    for blow in blows.iter().filter(|blow| !matches!(blow, Blow::RestartRedis)) {
        let until = out.counts.len() + random.usize(pace / 2..pace);
        if !place.wait(&mut running, || out.read() >= until) {
            break;
        }
        match blow {
            Blow::RestartKafka => {
                kafka.restart();
                restarts += 1;
            }
            _ => {
                running[0].kill().unwrap();
                running[0].wait().unwrap();
                running[0] = place.start("bill");
                kills += 1;
            }
        }
    }
    place.wait(&mut running, || false);
    assert!(running.remove(0).wait().unwrap().success(), "{}", place.logs());
    let begun = Instant::now();
    while out.read() < figures.messages {
        assert!(begun.elapsed() < PATIENCE, "{} of {}", out.counts.len(), figures.messages);
    }
    // Whatever else there may be.
    while out.read_on() {}
    println!("{} messages over {kills} kills and {restarts} restarts", figures.messages);
    assert_eq!(told_repeats(&out.counts), 0, "exactly once");
    let offsets = committed(&kafka.servers(), "orders");
    assert!(offsets.iter().all(|(committed, end)| committed == end), "{offsets:?}");
    let all: i64 = offsets.iter().map(|(_, end)| end).sum();
    assert_eq!(all, figures.messages as i64, "each was put once, and is committed");
}

/// What the pipeline has committed of each partition of a topic, and where that ends.
fn committed(servers: &str, topic: &str) -> Vec<(i64, i64)> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", "shop");
    let client: BaseConsumer = config.set("isolation.level", "read_committed").create().unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_range(topic, 0, PARTITIONS - 1);
    let offsets = client.committed_offsets(all, PATIENCE).unwrap();
    let of = |partition: i32| {
        let (_, end) = client.fetch_watermarks(topic, partition, PATIENCE).unwrap();
        match offsets.find_partition(topic, partition).unwrap().offset() {
            Offset::Offset(committed) => (committed, end),
            other => panic!("partition {partition}: {other:?}"),
        }
    };
    (0..PARTITIONS).map(of).collect()
}

/// What fails waits on a retry topic, whose copies and offsets are parts of the transactions.
#[test]
fn exactly_once_with_failures_that_wait_on_retry_topics_over_kills() {
    const MESSAGES: usize = 3000;
    const KILLS: usize = 4;
    let kafka = Kafka::start();
    let place = Place::new(
        MESSAGES,
        "  orders:
    guarantee: exactly_once
    retry_topics: [2s, 10s]
    KAFKA
  checked:
    KAFKA
  dead:
    KAFKA
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  check: { component: check, input: orders, outputs: [checked], dead_letter: dead,
    retry: { attempts: 50, min: 1200ms, max: 3s }, throttle: { rate: 400, per: 1s } }
",
        vec![("BROKERS", kafka.servers())],
    );
    let unreliable = Path::new(env!("CARGO_BIN_EXE_brigade")).with_file_name("examples/unreliable");
    assert!(unreliable.exists(), "`cargo build --examples --all-features` first");
    let start = |stage| place.start_program(&unreliable, stage);
    let mut feeding = vec![start("feed")];
    place.wait(&mut feeding, || false);
    assert!(feeding.remove(0).wait().unwrap().success(), "{}", place.logs());
    let mut running = vec![start("check")];
    let mut out = Topic::new(&kafka.servers(), "checked");
    for kill in 1..=KILLS {
        let until = kill * MESSAGES / (KILLS + 1);
        assert!(place.wait(&mut running, || out.read() >= until), "{}", place.logs());
        running[0].kill().unwrap();
        running[0].wait().unwrap();
        running[0] = start("check");
    }
    place.wait(&mut running, || false);
    // Dead letters make it end with 3.
    assert_eq!(running.remove(0).wait().unwrap().code(), Some(3), "{}", place.logs());
    let (begun, poisoned) = (Instant::now(), MESSAGES.div_ceil(97));
    while out.read() < MESSAGES - poisoned {
        assert!(begun.elapsed() < PATIENCE, "{} of {MESSAGES}", out.counts.len());
    }
    while out.read_on() {}
    assert_eq!(told_repeats(&out.counts), 0, "exactly once");
    let mut dead = Topic::new(&kafka.servers(), "dead");
    dead.number = |letter| {
        let payload: Value = serde_json::from_str(letter["payload"].as_str().unwrap()).unwrap();
        payload["n"].as_u64()
    };
    while dead.read() < poisoned {
        assert!(begun.elapsed() < PATIENCE, "{} of {poisoned} dead letters", dead.counts.len());
    }
    assert!(dead.counts.keys().all(|n| n % 97 == 0), "only poison: {:?}", dead.counts);
    assert_eq!(told_repeats(&dead.counts), 0, "exactly once");
}

/// An output that only the broker refuses is known when its transaction fails, others in it too. Its message
/// alone becomes a dead letter.
#[test]
fn exactly_once_an_output_that_the_broker_refuses_becomes_a_dead_letter() {
    too_large("exactly_once");
}

/// Neither lost with its input acked, nor in the way of the others.
#[test]
fn an_output_that_is_too_large_becomes_a_dead_letter_and_the_others_arrive() {
    too_large("at_least_once");
}

/// Some outputs are too large for the broker's topic, and one for the client.
fn too_large(guarantee: &str) {
    const MESSAGES: usize = 200;
    let kafka = Kafka::start();
    let place = Place::new(
        MESSAGES,
        &"  orders:
    guarantee: GUARANTEE
    KAFKA
  narrow: { type: kafka, config: { bootstrap.servers: '${BROKERS}' } }
  dead:
    KAFKA
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  widen:
    component: { map: 'if .n % 50 == 7 then .text = (\"x\" * (if .n == 57 then 2000000 else 3000 end)) else . end' }
    input: orders
    outputs: [narrow]
    dead_letter: dead
"
        .replace("GUARANTEE", guarantee),
        vec![("BROKERS", kafka.servers())],
    );
    make_narrow(&kafka.servers());
    // At its end all of the input is committed: the next run has nothing to do.
    for (stage, code) in [("feed", 0), ("widen", 3), ("feed", 0), ("widen", 0)] {
        let mut running = vec![place.start(stage)];
        place.wait(&mut running, || false);
        assert_eq!(running.remove(0).wait().unwrap().code(), Some(code), "{}", place.logs());
    }
    let mut out = Topic::new(&kafka.servers(), "narrow");
    let mut dead = Topic::new(&kafka.servers(), "dead");
    dead.number = |letter| {
        assert_eq!(letter["cause"]["kind"], "too_large");
        let payload: Value = serde_json::from_str(letter["payload"].as_str().unwrap()).unwrap();
        payload["n"].as_u64()
    };
    let begun = Instant::now();
    while out.read() < MESSAGES - 4 || dead.read() < 4 {
        assert!(begun.elapsed() < PATIENCE, "{} and {}", out.counts.len(), dead.counts.len());
    }
    while out.read_on() || dead.read_on() {}
    assert_eq!(dead.counts.keys().copied().collect::<Vec<_>>(), [7, 57, 107, 157]);
    assert!(out.counts.values().chain(dead.counts.values()).all(|times| *times == 1));
}

/// A topic `narrow` that takes records of some 2,000 bytes at most.
fn make_narrow(servers: &str) {
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
    let new = NewTopic::new("narrow", PARTITIONS, TopicReplication::Fixed(1));
    let new = new.set("max.message.bytes", "2000");
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let made = runtime.block_on(admin.create_topics([&new], &options)).unwrap();
    made.into_iter().for_each(|one| drop(one.unwrap()));
}

/// A topic, read as far as it is committed.
struct Topic {
    client: BaseConsumer,
    counts: BTreeMap<usize, usize>,
    /// The number in a record.
    number: fn(&Value) -> Option<u64>,
}

impl Topic {
    fn new(servers: &str, topic: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers).set("group.id", "reader");
        let client: BaseConsumer =
            config.set("isolation.level", "read_committed").create().unwrap();
        // Not as a member of a group, which might give out something twice.
        let mut all = TopicPartitionList::new();
        all.add_partition_range(topic, 0, PARTITIONS - 1);
        all.set_all_offsets(Offset::Beginning).unwrap();
        client.assign(&all).unwrap();
        Self { client, counts: BTreeMap::new(), number: |value| value["n"].as_u64() }
    }

    /// Takes in a record, if one comes soon; says whether it did.
    fn read_on(&mut self) -> bool {
        match self.client.poll(Duration::from_millis(500)) {
            Some(Ok(record)) => {
                let bytes = record.payload().unwrap();
                let value: Value = serde_json::from_slice(bytes).unwrap();
                let n = (self.number)(&value).unwrap() as usize;
                *self.counts.entry(n).or_default() += 1;
                true
            }
            // The broker may be away.
            Some(Err(_)) => true,
            None => false,
        }
    }

    /// Takes in what is there; says how many numbers have come by now.
    fn read(&mut self) -> usize {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(100) && self.read_on() {}
        self.counts.len()
    }
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
