//! A storm of members: they join, leave and are killed every second, and one is stopped and goes on
//! later, while messages come. None is lost, and each key's messages are handled in order; what the stopped
//! one wrote when others had done it is found and named.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "common/topics.rs"]
mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use brigade_testkit::servers::Kafka;
use rdkafka::ClientConfig;
use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use topics::make_topic;

const KEYS: u64 = 50;
const PARTITIONS: i32 = 8;
/// How many members there are at most.
const MEMBERS_MAX: usize = 4;
/// How long anything here may take at most.
const CALM: Duration = Duration::from_secs(180);
/// Within this long after the storm everything that came is handled, where the full figures are asked for: other
/// tests beside it may leave it no core.
const PROGRESS: Duration = Duration::from_secs(60);

const PIPELINE: &str = "
pipeline: storm
state: state
queues:
  in: { type: kafka, config: &kafka {
    bootstrap.servers: '${BROKERS}', session.timeout.ms: 10000, heartbeat.interval.ms: 300,
    reconnect.backoff.max.ms: 500 } }
  out: { type: kafka, config: *kafka }
stages:
  work: { component: { map: '.by = \"nobody\"' }, input: in, outputs: [out], order: key }
";

/// The first member does less than what comes to it, so that it has work in hand at any moment.
const SLOW: [&str; 2] = [
    "stages.work.throttle={ rate: 100, per: 1s, burst: 1 }",
    "stages.work.max_in_flight={ messages: 64 }",
];

fn is_full() -> bool {
    std::env::var_os("BRIGADE_FULL").is_some()
}

/// How long it blows: a minute where the full figures are asked for.
fn length() -> Duration {
    Duration::from_secs(if is_full() { 60 } else { 15 })
}

/// What came out, in the order of the partition that its key is in.
#[derive(Debug, Clone)]
struct Handled {
    n: u64,
    by: String,
    /// When the broker wrote it down, in milliseconds.
    at: i64,
}

struct Storm {
    directory: tempfile::TempDir,
    servers: String,
    members: Vec<(String, Child)>,
    random: fastrand::Rng,
    joins: usize,
    leaves: usize,
    kills: usize,
}

impl Storm {
    fn join(&mut self) {
        let name = format!("m{}", self.joins);
        self.joins += 1;
        let log = fs::File::create(self.directory.path().join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(self.directory.path()).args(["run", "p.yaml", "--set"]);
        command.arg(format!("stages.work.component.map=.by = \"{name}\""));
        if self.members.is_empty() {
            command.args(SLOW.iter().flat_map(|set| ["--set", *set]));
        }
        command.env("BROKERS", &self.servers).stdout(Stdio::null()).stderr(log);
        self.members.push((name, command.spawn().unwrap()));
    }

    fn signal(&self, at: usize, signal: &str) {
        let process = self.members[at].1.id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    /// Those that can go: they have begun, and they are not the first.
    fn others(&self) -> Vec<usize> {
        let log = |name: &str| fs::read_to_string(self.directory.path().join(name));
        let runs = |(name, _): &(String, Child)| {
            log(&format!("{name}.log")).is_ok_and(|log| log.contains("running"))
        };
        (1..self.members.len()).filter(|at| runs(&self.members[*at])).collect()
    }

    /// One joins, leaves or is killed, by chance.
    fn change(&mut self) {
        let others = self.others();
        match self.random.u32(..3) {
            what @ 0..2 if others.len() > 1 => {
                let at = self.random.usize(..others.len());
                self.leave(others[at], what == 1);
            }
            _ if self.members.len() < MEMBERS_MAX => self.join(),
            _ => {}
        }
    }

    /// One goes: killed, or asked to.
    fn leave(&mut self, at: usize, killed: bool) {
        self.signal(at, if killed { "-KILL" } else { "-TERM" });
        let (name, mut child) = self.members.remove(at);
        let ended = child.wait().unwrap();
        *(if killed { &mut self.kills } else { &mut self.leaves }) += 1;
        assert!(killed || ended.success(), "{name}: {}", self.logs());
    }

    fn logs(&self) -> String {
        let files = fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path());
        let logs = files.filter(|path| path.extension().is_some_and(|ext| ext == "log"));
        let tail = |path: std::path::PathBuf| {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(5).collect();
            format!(
                "{}:\n{}\n",
                path.display(),
                lines.into_iter().rev().collect::<Vec<_>>().join("\n")
            )
        };
        logs.map(tail).collect()
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        for (_, child) in &mut self.members {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn make_topics(servers: &str) {
    // By the broker's clock: a record may be made before its process is stopped, and written after.
    let topic = |name| {
        let topic = NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
        topic.set("message.timestamp.type", "LogAppendTime")
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for name in ["in", "out"] {
        runtime.block_on(make_topic(servers, &topic(name)));
    }
}

/// Puts messages on `in` until it is told to stop; says how many, before they are there.
fn feed(servers: &str, stop: &AtomicBool, sent: &AtomicU64) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("linger.ms", "5");
    let producer: BaseProducer =
        config.set("enable.idempotence", "true").set("partitioner", "murmur2").create().unwrap();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        sent.store(n + 10, Ordering::Relaxed);
        for _ in 0..10 {
            let (key, payload) = (format!("k{}", n % KEYS), format!("{{\"n\":{n}}}"));
            producer.send(BaseRecord::to("in").key(&key).payload(&payload)).unwrap();
            n += 1;
        }
        // A pace, not a wait for something.
        producer.poll(Duration::from_millis(5));
        std::thread::park_timeout(Duration::from_millis(5));
    }
    producer.flush(CALM).unwrap();
}

/// Reads `out`.
struct Reader {
    client: BaseConsumer,
    by_key: BTreeMap<u64, Vec<Handled>>,
    seen: BTreeSet<u64>,
}

impl Reader {
    fn new(servers: &str) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers).set("group.id", "reader");
        let client: BaseConsumer = config.set("auto.offset.reset", "earliest").create().unwrap();
        let mut all = rdkafka::TopicPartitionList::new();
        all.add_partition_range("out", 0, PARTITIONS - 1);
        all.set_all_offsets(rdkafka::Offset::Beginning).unwrap();
        client.assign(&all).unwrap();
        Self { client, by_key: BTreeMap::new(), seen: BTreeSet::new() }
    }

    /// Takes in what is there, for a moment.
    fn read(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(100)
            && let Some(record) = self.client.poll(Duration::from_millis(20))
        {
            let Ok(record) = record else { continue };
            let value: serde_json::Value =
                serde_json::from_slice(record.payload().unwrap()).unwrap();
            let (n, by) = (value["n"].as_u64().unwrap(), value["by"].as_str().unwrap().to_owned());
            let at = record.timestamp().to_millis().unwrap();
            self.seen.insert(n);
            self.by_key.entry(n % KEYS).or_default().push(Handled { n, by, at });
        }
    }

    /// Whether a member was the last to write to some key, of which more waits.
    fn is_behind(&self, member: &str, sent: u64) -> bool {
        let waits = |last: &Handled| last.by == member && last.n + 4 * KEYS < sent;
        self.by_key.values().filter_map(|handled| handled.last()).any(waits)
    }

    /// Whether all before this one are handled.
    fn is_past(&self, n: u64) -> bool {
        self.seen.range(..n).count() as u64 == n
    }
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// The member that is stopped: it neither leaves nor is killed.
struct Stopped {
    name: String,
    /// It may have had any before this one in hand when it was stopped.
    held: Option<u64>,
    /// When it went on; by then others had handled all of that.
    woke: Option<i64>,
}

impl Stopped {
    /// Stops it while it has work in hand, and lets it go on when others have done that work.
    fn go_on(&mut self, part: f64, storm: &Storm, reader: &Reader, sent: &AtomicU64) {
        match (self.held, self.woke) {
            (None, _)
                if part > 0.3 && reader.is_behind(&self.name, sent.load(Ordering::Relaxed)) =>
            {
                storm.signal(0, "-STOP");
                self.held = Some(sent.load(Ordering::Relaxed));
            }
            (Some(held), None) if part > 0.7 && reader.is_past(held) => {
                self.woke = Some(now());
                storm.signal(0, "-CONT");
            }
            _ => {}
        }
    }

    /// Whether it wrote this after it went on, though others had handled it by then.
    fn wrote_late(&self, one: &Handled) -> bool {
        let (held, woke) = (self.held.unwrap_or(0), self.woke.unwrap_or(i64::MAX));
        one.by == self.name && one.n < held && one.at >= woke
    }

    fn late<'a>(&self, reader: &'a Reader) -> Vec<&'a Handled> {
        reader.by_key.values().flatten().filter(|one| self.wrote_late(one)).collect()
    }
}

/// First occurrences are in order, and whoever repeats something goes on from there without a gap. What
/// the stopped one wrote late is left out.
fn check_order(key: u64, handled: &[&Handled]) -> usize {
    let (mut newest, mut last, mut repeats) = (None, None::<&Handled>, 0);
    for one in handled {
        let next = last.map_or(key, |last| last.n + KEYS);
        assert!(one.n <= next, "k{key}: {} by {} after {last:?}: a gap", one.n, one.by);
        if let Some(last) = last.filter(|_| one.n < next) {
            // Another one begins again, or the same with a partition that it has got again.
            let begins = one.by != last.by || Some(last.n) == newest;
            assert!(begins, "k{key}: {} by {} after {last:?}: not in order", one.n, one.by);
        }
        repeats += usize::from(Some(one.n) <= newest);
        newest = newest.max(Some(one.n));
        last = Some(*one);
    }
    repeats
}

#[test]
fn members_join_leave_are_killed_and_stopped_and_nothing_is_lost_or_out_of_order() {
    let kafka = Kafka::start();
    make_topics(&kafka.servers());
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("p.yaml"), PIPELINE).unwrap();
    let (servers, random) = (kafka.servers(), fastrand::Rng::with_seed(5));
    let mut storm =
        Storm { directory, servers, random, members: vec![], joins: 0, leaves: 0, kills: 0 };
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let feeder = std::thread::spawn({
        let (servers, stop, sent) = (kafka.servers(), Arc::clone(&stop), Arc::clone(&sent));
        move || feed(&servers, &stop, &sent)
    });
    let mut reader = Reader::new(&kafka.servers());
    (0..3).for_each(|_| storm.join());
    let begun = Instant::now();
    while reader.seen.is_empty() {
        assert!(begun.elapsed() < CALM, "nothing is handled:\n{}", storm.logs());
        reader.read();
    }
    let mut stopped = Stopped { name: storm.members[0].0.clone(), held: None, woke: None };
    let (begun, mut changes) = (Instant::now(), 0);
    while begun.elapsed() < length() || stopped.woke.is_none() {
        assert!(begun.elapsed() < length() + CALM, "it is not woken:\n{}", storm.logs());
        reader.read();
        let part = begun.elapsed().as_secs_f64() / length().as_secs_f64();
        stopped.go_on(part, &storm, &reader, &sent);
        // Each death costs the group a session; beyond the storm it has time to hand out what the dead had.
        if begun.elapsed() < length() && begun.elapsed() >= Duration::from_secs(changes) {
            changes += 1;
            storm.change();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let calm = Instant::now();
    feeder.join().unwrap();
    // What the slow one is behind with goes to the others.
    storm.leave(0, false);
    let sent = sent.load(Ordering::Relaxed);
    let within = if is_full() { PROGRESS } else { CALM };
    while !reader.is_past(sent) || stopped.late(&reader).is_empty() {
        reader.read();
        let told = || format!("{} late, {}", stopped.late(&reader).len(), storm.logs());
        assert!(calm.elapsed() < within, "{} of {sent}, {}", reader.seen.len(), told());
    }
    println!(
        "{sent} messages over {} joins, {} leaves, {} kills, one stopped; all handled {:.1} s after the storm",
        storm.joins,
        storm.leaves,
        storm.kills,
        calm.elapsed().as_secs_f64()
    );
    let in_time = |one: &&Handled| !stopped.wrote_late(one);
    let in_order = |(key, handled): (&u64, &Vec<Handled>)| {
        check_order(*key, &handled.iter().filter(in_time).collect::<Vec<_>>())
    };
    let repeats: usize = reader.by_key.iter().map(in_order).sum();
    let late: Vec<u64> = stopped.late(&reader).iter().map(|one| one.n).collect();
    println!("{repeats} repeats; {} late ones of {}: {late:?}", late.len(), stopped.name);
}
