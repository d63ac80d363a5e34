//! Servers that are away when a pipeline starts, or go away while it runs: it waits for them and
//! says so, a stop still has its bound, nothing is done twice meanwhile, and nothing is lost.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::ops::Range;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use brigade_testkit::servers::{Kafka, Redis};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(180);
/// `stop_deadline` of the pipelines here, what `docs/src/operating.md` adds to it, and some time for a machine that
/// is busy or stands still meanwhile: what hangs does so for longer.
const STOP_MAX: Duration = Duration::from_secs(1 + 20 + 15);
const MESSAGES: usize = 10_000;
/// The keys of each queue on Kafka.
const KAFKA: &str = "type: kafka, create: { partitions: 1 }, \
    config: { bootstrap.servers: '${BROKERS}', reconnect.backoff.max.ms: 500, session.timeout.ms: 3000, \
    heartbeat.interval.ms: 300 }";
/// What is told while Kafka, or Redis, is away.
const NO_BROKER: &str = "the producer has no broker";
const NO_REDIS: &str = "is the server up, and `url` right?";
/// What is told of Kafka by who has not met it yet.
const NO_KAFKA: &str = "up, and `config: bootstrap.servers` right?";

/// A directory to run a pipeline in, with 10,000 numbers as its input.
struct Place {
    directory: tempfile::TempDir,
    servers: Vec<(&'static str, String)>,
}

impl Place {
    fn new(yaml: &str, servers: Vec<(&'static str, String)>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let yaml = format!(
            "pipeline: shop\nstate: state\nstop_deadline: 1s\nlog: {{ stats: 50ms }}\n{yaml}"
        );
        fs::write(directory.path().join("p.yaml"), yaml.replace("KAFKA", KAFKA)).unwrap();
        let input: String = (0..MESSAGES).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        fs::write(directory.path().join("in.jsonl"), input).unwrap();
        Self { directory, servers }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(self.directory.path()).args(arguments).env_remove("RUST_LOG");
        command.envs(self.servers.iter().cloned());
        command
    }

    fn run(&self, arguments: &[&str]) -> Run<'_> {
        let log = fs::File::create(self.directory.path().join("log")).unwrap();
        let mut command = self.command(&[&["run", "p.yaml"], arguments].concat());
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Run { place: self, child }
    }

    fn put(&self, queue: &str, numbers: Range<usize>) {
        let mut put = self.command(&["queues", "put", "p.yaml", queue]);
        let mut put = put.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let lines: String = numbers.map(|n| format!("{{\"n\":{n}}}\n")).collect();
        put.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(put.wait().unwrap().success());
    }

    fn told(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// How many messages a stage had in flight when it last told.
    fn in_flight(&self, stage: &str) -> usize {
        let told = self.told();
        let of = format!(" stage={stage} ");
        let last = told.lines().rfind(|line| line.contains("STATS") && line.contains(&of));
        let count = last.and_then(|line| line.split_once(" in_flight=")?.1.split(' ').next());
        count.map_or(0, |count| count.parse().unwrap())
    }

    /// The numbers in an output file, as often as they are there.
    fn numbers(&self, file: &str) -> Vec<u64> {
        let text = fs::read_to_string(self.directory.path().join(file)).unwrap_or_default();
        // The last line may be on its way.
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let number = |line: &str| serde_json::from_str::<Value>(line).unwrap()["n"].as_u64();
        whole.map(|line| number(line).unwrap()).collect()
    }

    fn has_all(&self, file: &str) {
        let different: BTreeSet<u64> = self.numbers(file).into_iter().collect();
        assert!(different == (0..MESSAGES as u64).collect(), "{file}: {} came", different.len());
    }
}

/// A process that is killed at the end of its test.
struct Run<'p> {
    place: &'p Place,
    child: Child,
}

impl Run<'_> {
    fn wait(&mut self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            let told = || self.place.told();
            assert!(begun.elapsed() < PATIENCE, "never came: {what}\n{}", told());
            assert!(self.child.try_wait().unwrap().is_none(), "it ended before {what}\n{}", told());
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    fn wait_until_told(&mut self, text: &str) {
        let place = self.place;
        self.wait(text, || place.told().contains(text));
    }

    /// Sends SIGTERM, and waits for the end, which has to come within its bound.
    fn stop(&mut self) -> ExitStatus {
        let process = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
        self.ends_within(STOP_MAX)
    }

    fn end(&mut self) {
        let ended = self.ends_within(PATIENCE);
        assert!(ended.success(), "{ended}\n{}", self.place.told());
    }

    fn ends_within(&mut self, patience: Duration) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(ended) = self.child.try_wait().unwrap() {
                return ended;
            }
            assert!(begun.elapsed() < patience, "it does not end\n{}", self.place.told());
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// To and from the queue that goes away.
const THROUGH: &str = "queues:
  in: { type: file, path: in.jsonl }
  orders: { KIND }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [orders], throttle: { rate: 600, per: 1s, burst: 50 } }
  keep: { component: pass, input: orders, outputs: [out] }
";

/// Stops a process while its server is away, and lets another do the rest when it is back.
fn stopped_while_away(place: &Place, told: &str, kill: impl Fn(), restart: impl Fn()) {
    let mut run = place.run(&[]);
    run.wait("messages go through", || place.numbers("out.jsonl").len() > 100);
    kill();
    run.wait_until_told(told);
    run.wait("many outputs wait", || place.in_flight("feed") > 500);
    let ended = run.stop();
    assert_eq!(ended.code(), Some(0), "{}", place.told());
    restart();
    place.run(&["--until-idle"]).end();
    place.has_all("out.jsonl");
}

#[test]
fn a_process_that_is_stopped_while_kafka_is_away_ends_within_its_bound() {
    let kafka = Kafka::start();
    let place = Place::new(&THROUGH.replace("KIND", KAFKA), vec![("BROKERS", kafka.servers())]);
    stopped_while_away(&place, NO_BROKER, || kafka.kill(), || kafka.restart());
}

#[test]
fn a_process_that_is_stopped_while_redis_is_away_ends_within_its_bound() {
    for kind in ["type: redis_stream", "type: rsmq, vt: 2s"] {
        let redis = Redis::start();
        let yaml = THROUGH.replace("KIND", &format!("{kind}, url: '${{REDIS_URL}}'"));
        let place = Place::new(&yaml, vec![("REDIS_URL", redis.url())]);
        stopped_while_away(&place, NO_REDIS, || redis.kill(), || redis.restart());
    }
}

/// Starts a process while its server is away: each stage tells why it does not start, tries again
/// after longer and longer, and does all its work when the server is there.
fn started_while_away(place: &Place, why: &str, restart: impl Fn()) {
    const LATER: [&str; 3] = ["back_off=200ms", "back_off=400ms", "back_off=800ms"];
    let mut run = place.run(&["--until-idle"]);
    for stage in ["feed", "keep"] {
        let of = format!(" stage={stage} ");
        let is_told = |line: &&str| {
            // The last line may be on its way.
            line.ends_with('\n') && line.contains("not started") && line.contains(&of)
        };
        let tries = || place.told().split_inclusive('\n').filter(is_told).count();
        run.wait("the third try", || tries() >= LATER.len());
        let told = place.told();
        for (line, later) in told.split_inclusive('\n').filter(is_told).zip(LATER) {
            let is_whole = line.contains("queue `orders`") && line.contains(why);
            assert!(is_whole && line.trim_end().ends_with(later), "{later}: {line}");
        }
    }
    restart();
    run.end();
    place.has_all("out.jsonl");
}

/// To and from the queue, as fast as it goes.
fn unthrottled(kind: &str) -> String {
    THROUGH.replace(", throttle: { rate: 600, per: 1s, burst: 50 }", "").replace("KIND", kind)
}

#[test]
fn a_process_that_starts_while_kafka_is_away_says_so_and_waits_for_it() {
    let kafka = Kafka::start();
    kafka.kill();
    let place = Place::new(&unthrottled(KAFKA), vec![("BROKERS", kafka.servers())]);
    started_while_away(&place, NO_KAFKA, || kafka.restart());
}

#[test]
fn a_process_that_starts_while_redis_is_away_says_so_and_waits_for_it() {
    for kind in ["type: redis_stream", "type: rsmq, vt: 2s"] {
        let redis = Redis::start();
        redis.kill();
        let yaml = unthrottled(&format!("{kind}, url: '${{REDIS_URL}}'"));
        let place = Place::new(&yaml, vec![("REDIS_URL", redis.url())]);
        started_while_away(&place, NO_REDIS, || redis.restart());
    }
}

#[test]
fn one_of_two_outputs_is_away_and_nothing_is_lost_on_either() {
    let (kafka, redis) = (Kafka::start(), Redis::start());
    let place = Place::new(
        "queues:
  in: { type: file, path: in.jsonl }
  orders: { KAFKA }
  bills: { type: redis_stream, url: '${REDIS_URL}' }
  orders_out: { type: file, path: orders.jsonl }
  bills_out: { type: file, path: bills.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [orders, bills], copy: true,
    throttle: { rate: 600, per: 1s, burst: 50 } }
  keep_orders: { component: pass, input: orders, outputs: [orders_out] }
  keep_bills: { component: pass, input: bills, outputs: [bills_out] }
",
        vec![("BROKERS", kafka.servers()), ("REDIS_URL", redis.url())],
    );
    let mut run = place.run(&["--until-idle"]);
    run.wait("messages go through", || place.numbers("orders.jsonl").len() > 100);
    redis.kill();
    run.wait_until_told(NO_REDIS);
    redis.restart();
    run.wait("it goes on", || place.numbers("bills.jsonl").len() > 800);
    kafka.kill();
    run.wait_until_told(NO_BROKER);
    kafka.restart();
    run.end();
    place.has_all("orders.jsonl");
    place.has_all("bills.jsonl");
}

/// How long a message is invisible to others, unless who has it says that it still does.
const VISIBILITY: f64 = 30_000.0;

/// Where the messages of the queue `jobs` are in time (in milliseconds, when each is visible again), and how
/// often each was handed out.
fn jobs(connection: &mut redis::Connection) -> Vec<(f64, Option<u32>)> {
    let mut all = redis::cmd("ZRANGE");
    let all = all.arg("rsmq:jobs").arg(0).arg(-1).arg("WITHSCORES");
    let all: Vec<(String, f64)> = all.query(connection).unwrap();
    let received = |id: &str, connection: &mut redis::Connection| {
        let mut count = redis::cmd("HGET");
        count.arg("rsmq:jobs:Q").arg(format!("{id}:rc")).query(connection).unwrap()
    };
    all.into_iter().map(|(id, visible)| (visible, received(&id, connection))).collect()
}

/// What waits for its output stays with who has it: nobody gets it a second time, and it goes out once.
#[test]
fn from_rsmq_to_kafka_what_waits_for_a_broker_beyond_its_visibility_goes_out_once() {
    let (kafka, redis) = (Kafka::start(), Redis::start());
    let place = Place::new(
        "queues:
  jobs: { type: rsmq, url: '${REDIS_URL}', vt: 30s }
  sent: { KAFKA }
stages:
  send: { component: pass, input: jobs, outputs: [sent] }
",
        vec![("BROKERS", kafka.servers()), ("REDIS_URL", redis.url())],
    );
    place.put("jobs", 0..1);
    let mut run = place.run(&[]);
    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    run.wait("the first is sent", || jobs(&mut connection).is_empty());
    kafka.kill();
    place.put("jobs", 1..21);
    let received = |jobs: &[(f64, Option<u32>)]| jobs.iter().all(|(_, times)| times.is_some());
    run.wait("all are received", || received(&jobs(&mut connection)));
    let first = jobs(&mut connection).into_iter().map(|(visible, _)| visible);
    let first = first.fold(0.0, f64::max);
    run.wait("all are held beyond the time that they were received for", || {
        let held = jobs(&mut connection);
        assert_eq!(held.len(), 20, "none is acked while its output is nowhere");
        assert!(held.iter().all(|(_, times)| *times == Some(1)), "given out again: {held:?}");
        held.iter().all(|(visible, _)| *visible > first + VISIBILITY)
    });
    kafka.restart();
    run.wait("all are sent", || jobs(&mut connection).is_empty());
    assert_eq!(run.stop().code(), Some(0), "{}", place.told());
    let mut config = ClientConfig::new();
    let reader: BaseConsumer = config.set("bootstrap.servers", kafka.servers()).create().unwrap();
    let (_, records) = reader.fetch_watermarks("sent", 0, PATIENCE).unwrap();
    assert_eq!(records, 21, "one record for each message");
}
