//! A storm of members: they join, leave and are killed every second, and one is stopped and goes on
//! later, while messages come. None is lost, and each key's messages are handled in order.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use brigade_testkit::servers::Kafka;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

const KEYS: u64 = 50;
const PARTITIONS: i32 = 8;
/// How many members there are at most.
const MEMBERS_MAX: usize = 4;
/// Within this long after the storm everything that came is handled.
const CALM: Duration = Duration::from_secs(60);

const PIPELINE: &str = "
pipeline: storm
state: state
queues:
  in: { type: kafka, config: &kafka {
    bootstrap.servers: '${BROKERS}', session.timeout.ms: 2000, heartbeat.interval.ms: 300,
    reconnect.backoff.max.ms: 500 } }
  out: { type: kafka, config: *kafka }
stages:
  work: { component: { map: '.by = \"nobody\"' }, input: in, outputs: [out], order: key }
";

/// How long it blows: a minute where the full figures are asked for.
fn length() -> Duration {
    let full = std::env::var_os("BRIGADE_FULL").is_some();
    Duration::from_secs(if full { 60 } else { 15 })
}

/// What came out, in the order of the partition that its key is in.
#[derive(Debug, Clone)]
struct Handled {
    n: u64,
    by: String,
    /// Milliseconds, of the broker's clock.
    at: i64,
}

struct Storm {
    directory: tempfile::TempDir,
    servers: String,
    members: Vec<(String, Child)>,
    joined: usize,
}

impl Storm {
    fn join(&mut self) {
        let name = format!("m{}", self.joined);
        self.joined += 1;
        let log = fs::File::create(self.directory.path().join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(self.directory.path()).args(["run", "p.yaml", "--set"]);
        command.arg(format!("stages.work.component.map=.by = \"{name}\""));
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

    /// One goes: killed, or asked to.
    fn leave(&mut self, at: usize, killed: bool) {
        self.signal(at, if killed { "-KILL" } else { "-TERM" });
        let (name, mut child) = self.members.remove(at);
        let ended = child.wait().unwrap();
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
    let mut config = ClientConfig::new();
    let admin: AdminClient<_> = config.set("bootstrap.servers", servers).create().unwrap();
    let topic = |name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (topics, options) = ([topic("in"), topic("out")], Default::default());
    let made = runtime.block_on(admin.create_topics(&topics, &options));
    assert!(made.unwrap().iter().all(Result::is_ok));
}

/// Puts messages on `in` until it is told to stop; says how many.
fn feed(servers: &str, stop: &AtomicBool, sent: &AtomicU64) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("linger.ms", "5");
    let producer: BaseProducer =
        config.set("enable.idempotence", "true").set("partitioner", "murmur2").create().unwrap();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..10 {
            let (key, payload) = (format!("k{}", n % KEYS), format!("{{\"n\":{n}}}"));
            producer.send(BaseRecord::to("in").key(&key).payload(&payload)).unwrap();
            n += 1;
        }
        // A pace, not a wait for something.
        producer.poll(Duration::from_millis(5));
        std::thread::park_timeout(Duration::from_millis(5));
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    sent.store(n, Ordering::Relaxed);
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

    /// Takes in what is there.
    fn read(&mut self) {
        while let Some(record) = self.client.poll(Duration::from_millis(20)) {
            let Ok(record) = record else { continue };
            let value: serde_json::Value =
                serde_json::from_slice(record.payload().unwrap()).unwrap();
            let (n, by) = (value["n"].as_u64().unwrap(), value["by"].as_str().unwrap().to_owned());
            let at = record.timestamp().to_millis().unwrap();
            self.seen.insert(n);
            self.by_key.entry(n % KEYS).or_default().push(Handled { n, by, at });
        }
    }
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// What the member that was stopped wrote after it went on, though others had handled it by then.
fn late<'a>(handled: &'a [Handled], stopped: &str, woke: i64) -> Vec<&'a Handled> {
    let mut seen: BTreeMap<u64, &str> = BTreeMap::new();
    let mut late = Vec::new();
    for one in handled {
        let before = seen.entry(one.n).or_insert(&one.by);
        if one.by == stopped && one.at >= woke && *before != stopped {
            late.push(one);
        }
    }
    late
}

/// First occurrences are in order, and whoever repeats something goes on from there to the end.
fn check_order(key: u64, handled: &[&Handled]) -> usize {
    let (mut newest, mut last, mut repeats) = (None, None, 0);
    for one in handled {
        match newest {
            Some(newest) if one.n <= newest => {
                repeats += 1;
                let goes_on = last.is_some_and(|last: &Handled| {
                    one.n > last.n || one.by != last.by || last.n == newest
                });
                assert!(goes_on, "k{key}: {} by {} after {last:?}", one.n, one.by);
            }
            Some(newest) => {
                assert_eq!(one.n, newest + KEYS, "k{key}: by {}, after {newest}", one.by);
            }
            None => assert_eq!(one.n, key, "k{key} begins with it"),
        }
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
    let mut storm = Storm { directory, servers: kafka.servers(), members: vec![], joined: 0 };
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
    // The first is the one that is stopped; it neither leaves nor is killed.
    let stopped = storm.members[0].0.clone();
    let (begun, mut changes, mut woke) = (Instant::now(), 0, None);
    let mut random = fastrand::Rng::with_seed(5);
    let (mut joins, mut leaves, mut kills) = (0, 0, 0);
    while begun.elapsed() < length() {
        reader.read();
        if begun.elapsed() < Duration::from_secs(changes) {
            continue;
        }
        changes += 1;
        let part = begun.elapsed().as_secs_f64() / length().as_secs_f64();
        if woke.is_none() && part > 0.3 {
            storm.signal(0, "-STOP");
            woke = Some(None);
        } else if woke == Some(None) && part > 0.7 {
            storm.signal(0, "-CONT");
            woke = Some(Some(now()));
        }
        let others = storm.others();
        match random.u32(..3) {
            0 if others.len() > 1 => {
                storm.leave(others[random.usize(..others.len())], false);
                leaves += 1;
            }
            1 if others.len() > 1 => {
                storm.leave(others[random.usize(..others.len())], true);
                kills += 1;
            }
            _ if storm.members.len() < MEMBERS_MAX => {
                storm.join();
                joins += 1;
            }
            _ => {}
        }
    }
    stop.store(true, Ordering::Relaxed);
    feeder.join().unwrap();
    let (sent, calm) = (sent.load(Ordering::Relaxed), Instant::now());
    while (reader.seen.len() as u64) < sent {
        reader.read();
        let seen = reader.seen.len();
        assert!(calm.elapsed() < CALM, "{seen} of {sent} after {CALM:?}:\n{}", storm.logs());
    }
    let woke = woke.flatten().expect("it was stopped and woken");
    println!(
        "{sent} messages over {joins} joins, {leaves} leaves, {kills} kills, one stopped; all handled \
         {:.1} s after the storm",
        calm.elapsed().as_secs_f64()
    );
    let (mut repeats, mut late_ones) = (0, Vec::new());
    for (key, handled) in &reader.by_key {
        let late: Vec<u64> = late(handled, &stopped, woke).iter().map(|one| one.n).collect();
        let is_late = |one: &&Handled| one.by == stopped && one.at >= woke && late.contains(&one.n);
        let others: Vec<&Handled> = handled.iter().filter(|one| !is_late(one)).collect();
        repeats += check_order(*key, &others);
        late_ones.extend(late);
    }
    println!("{repeats} repeats; {} late ones of {stopped}: {late_ones:?}", late_ones.len());
}
