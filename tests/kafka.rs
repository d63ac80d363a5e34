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
#[path = "common/topics.rs"]
mod topics;

use brigade_testkit::servers::{Kafka, Redis};
use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use repeats::{Blows, LINE, all_fell, ranges};
use serde_json::Value;
use topics::{Topic, make_topic};

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
      session.timeout.ms: SESSION
      heartbeat.interval.ms: 300
      reconnect.backoff.max.ms: 500
      transaction.timeout.ms: 5000";

/// After how many milliseconds a member that is not heard of is given up.
const SESSION: &str = "2000";
/// The same where what comes again has to have a cause: a live one is not to be taken for dead by a machine that
/// stands still for a moment.
const LONG_SESSION: &str = "6000";

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
            format!("{HEAD}{}", pipeline.replace("KAFKA", KAFKA).replace("SESSION", SESSION)),
        )
        .unwrap();
        Self { messages, directory, servers }
    }

    /// The same with members that are given up after so many milliseconds.
    fn with_session(self, session: &str) -> Self {
        let path = self.path().join("p.yaml");
        let text = fs::read_to_string(&path).unwrap();
        let own = |session: &str| format!("session.timeout.ms: {session}\n");
        fs::write(path, text.replace(&own(SESSION), &own(session))).unwrap();
        self
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

    fn lines(&self) -> usize {
        fs::read_to_string(self.path().join("out.jsonl")).unwrap_or_default().lines().count()
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

    /// `look` is called again and again meanwhile.
    fn finish(&self, mut running: Vec<Child>, mut look: impl FnMut()) -> BTreeMap<usize, usize> {
        self.wait(&mut running, || {
            look();
            false
        });
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

/// Which numbers are there more than once.
fn repeated(counts: &BTreeMap<usize, usize>) -> String {
    let repeats: Vec<usize> = counts.iter().filter(|(_, n)| **n > 1).map(|(n, _)| *n).collect();
    ranges(&repeats)
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
    )
    .with_session(LONG_SESSION);
    let begun = Instant::now();
    let mut running: Vec<Child> = STAGES.iter().map(|stage| place.start(stage)).collect();
    let mut random = fastrand::Rng::with_seed(7);
    let blows = blows(&figures, &mut random);
    // They are spread over the run.
    let pace = figures.messages as u64 * LINE / (blows.len() as u64 + 1);
    let (mut done, mut fell) = (Blows::default(), 0);
    for blow in &blows {
        let until = place.written() + random.u64(pace / 2..pace);
        let is_far = || {
            done.look();
            place.written() >= until
        };
        if !place.wait(&mut running, is_far) {
            break;
        }
        fell += 1;
        match blow {
            Blow::Kill => {
                let at = random.usize(..STAGES.len());
                done.kill(STAGES[at], || {
                    running[at].kill().unwrap();
                    running[at].wait().unwrap();
                });
                // It may have been the end of a run, which one that starts alone would begin anew, and wait for
                // others.
                if place.lines() >= figures.messages {
                    for (stage, child) in STAGES.iter().zip(&mut running) {
                        done.kill(stage, || {
                            child.kill().unwrap();
                            child.wait().unwrap();
                        });
                    }
                    running = vec![place.start(&STAGES.join(","))];
                    break;
                }
                running[at] = place.start(STAGES[at]);
            }
            Blow::RestartKafka => done.restart("Kafka", || kafka.restart()),
            Blow::RestartRedis => done.restart("Redis", || redis.restart()),
        }
    }
    place.finish(running, || done.look());
    println!(
        "{} messages over {}, in {:.0?}: none lost",
        figures.messages,
        done.told(),
        begun.elapsed()
    );
    all_fell(fell, blows.len());
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
    let orders = put(&kafka, figures.messages);
    // With what feeds, which has nothing more to do: a run of this process's only, which ends however often it is
    // killed.
    const STAGES: &str = "feed,bill";
    let mut running = vec![place.start(STAGES)];
    let mut out = topic(&kafka, "billed");
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
                running[0] = place.start(STAGES);
                kills += 1;
            }
        }
    }
    place.wait(&mut running, || false);
    assert!(running.remove(0).wait().unwrap().success(), "{}", place.logs());
    read_all(&mut [&mut out], &orders);
    println!("{} messages over {kills} kills and {restarts} restarts", figures.messages);
    all_fell(kills + restarts, figures.kills + figures.restarts);
    assert!(out.counts == orders, "exactly once: more than once came {}", repeated(&out.counts));
    let offsets = committed(&kafka.servers(), "orders");
    assert!(offsets.iter().all(|(committed, end)| committed == end), "{offsets:?}");
    let all: i64 = offsets.iter().map(|(_, end)| end).sum();
    assert_eq!(all, orders.values().sum::<usize>() as i64, "what was put is committed");
}

fn topic(kafka: &Kafka, name: &str) -> Topic {
    Topic::new(&kafka.servers(), name, PARTITIONS)
}

/// How often each number was put on `orders` by what feeds it, which is at least once: it may put some again where the
/// broker was away for a moment.
fn put(kafka: &Kafka, messages: usize) -> BTreeMap<usize, usize> {
    let (begun, mut orders) = (Instant::now(), topic(kafka, "orders"));
    let all = orders.len();
    while orders.times() < all {
        orders.read();
        assert!(begun.elapsed() < PATIENCE, "{} of {all}", orders.times());
    }
    assert_eq!(orders.counts.len(), messages, "all are put");
    println!("put more than once: {}", repeated(&orders.counts));
    orders.counts
}

/// Reads topics until as many have come as were put, and whatever else there may be.
fn read_all(topics: &mut [&mut Topic], put: &BTreeMap<usize, usize>) {
    let (begun, all) = (Instant::now(), put.values().sum());
    let times = |topics: &[&mut Topic]| topics.iter().map(|topic| topic.times()).sum::<usize>();
    while times(topics) < all {
        for topic in topics.iter_mut() {
            topic.read();
        }
        assert!(begun.elapsed() < PATIENCE, "{} of {all}", times(topics));
    }
    for topic in topics {
        while topic.read_on() {}
    }
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
    let orders = put(&kafka, MESSAGES);
    // As above: with what feeds.
    const STAGES: &str = "feed,check";
    let mut running = vec![start(STAGES)];
    let mut out = topic(&kafka, "checked");
    for kill in 1..=KILLS {
        let until = kill * MESSAGES / (KILLS + 1);
        assert!(place.wait(&mut running, || out.read() >= until), "{}", place.logs());
        running[0].kill().unwrap();
        running[0].wait().unwrap();
        running[0] = start(STAGES);
    }
    place.wait(&mut running, || false);
    // Dead letters make it end with 3; the last process may have had none to write.
    assert!(matches!(running.remove(0).wait().unwrap().code(), Some(0 | 3)), "{}", place.logs());
    let mut dead = topic(&kafka, "dead");
    dead.number = |letter| {
        let payload: Value = serde_json::from_str(letter["payload"].as_str().unwrap()).unwrap();
        payload["n"].as_u64()
    };
    read_all(&mut [&mut out, &mut dead], &orders);
    assert!(dead.counts.keys().all(|n| n % 97 == 0), "only poison: {:?}", dead.counts);
    assert!(out.counts.keys().all(|n| n % 97 != 0), "no poison: {:?}", out.counts);
    let mut all = out.counts;
    all.extend(dead.counts);
    assert!(all == orders, "exactly once: more than once came {}", repeated(&all));
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
    // Nobody kills it; what is at least once comes once as long as it is there.
    let kafka = Kafka::start_steady();
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
    let mut out = topic(&kafka, "narrow");
    let mut dead = topic(&kafka, "dead");
    dead.number = |letter| {
        assert_eq!(letter["cause"]["kind"], "too_large");
        let payload: Value = serde_json::from_str(letter["payload"].as_str().unwrap()).unwrap();
        payload["n"].as_u64()
    };
    let orders = put(&kafka, MESSAGES);
    read_all(&mut [&mut out, &mut dead], &orders);
    assert_eq!(dead.counts.keys().copied().collect::<Vec<_>>(), [7, 57, 107, 157]);
    assert_eq!(out.counts.len(), MESSAGES - 4);
    let mut all = out.counts;
    all.extend(dead.counts);
    assert!(all == orders, "once each: more than once came {}", repeated(&all));
}

/// A topic `narrow` that takes records of some 2,000 bytes at most.
fn make_narrow(servers: &str) {
    let new = NewTopic::new("narrow", PARTITIONS, TopicReplication::Fixed(1));
    let new = new.set("max.message.bytes", "2000");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(make_topic(servers, &new));
}
