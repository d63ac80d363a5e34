//! Volley's full example on real servers, end to end, and its connector of one's own in the conformance
//! suite.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use brigade_testkit::servers::{Kafka, Postgres, Redis};
use serde_json::Value;

#[path = "../examples/volley/postgres.rs"]
mod postgres;

const REQUESTS: usize = 300;
const PATIENCE: Duration = Duration::from_secs(180);

mod the_connector {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use brigade::connector::{Connector, ConnectorEnv, Consumer, Order, QueueSpec, Reader, Want};
    use brigade::{MemoryState, MessageId};
    use brigade_testkit::Fixture;
    use brigade_testkit::servers::Postgres;

    fn fixture() -> Fixture {
        let server = Arc::new(Postgres::start());
        let settings = serde_json::json!({ "url": server.url() });
        let queue = QueueSpec::new("suite", "queue", settings);
        let env = ConnectorEnv { state: MemoryState::new() };
        let victim = Arc::clone(&server);
        let fixture = Fixture::new(Arc::new(super::postgres::Postgres), env, queue);
        fixture.keep(server).disturb(move || victim.restart())
    }

    brigade_testkit::conformance!(|| fixture());

    /// They are told apart by what they are called there, each time they come.
    #[tokio::test]
    async fn rows_of_other_programs_have_an_id_each_whatever_theirs_look_like() {
        let server = Postgres::start();
        let settings = serde_json::json!({ "url": server.url() });
        let queue = QueueSpec::new("suite", "queue", settings);
        let env = ConnectorEnv { state: MemoryState::new() };
        let reader = Reader { stage: "s".into(), group: "".into(), order: Order::None };
        let open = || super::postgres::Postgres.consumer(&queue, &reader, &env);
        let consumer = open().await.unwrap();
        let connected = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await;
        let (client, connection) = connected.unwrap();
        tokio::spawn(connection);
        let put = "insert into queue (id, payload) values
                   ('order-1', '1'), ('c56a4180-65aa-42ec-a945-5fd21dec0538', '2'), ('', '3'), ('0', '4')";
        client.batch_execute(put).await.unwrap();
        let ids = async |consumer: &dyn Consumer| {
            let mut ids = BTreeSet::new();
            while ids.len() < 4 {
                let taken = consumer.consume(Want { messages: 4, bytes: 1 << 20 }).await.unwrap();
                ids.extend(taken.iter().map(|one| one.message.id));
            }
            ids
        };
        let first = ids(&*consumer).await;
        assert!(!first.contains(&MessageId::default()), "{first:?}");
        consumer.shutdown().await.unwrap();
        assert_eq!(ids(&*open().await.unwrap()).await, first);
    }
}

/// A program of the example.
fn example(name: &str) -> Command {
    let examples = Path::new(env!("CARGO_BIN_EXE_brigade")).parent().unwrap().join("examples");
    let program = examples.join(name);
    assert!(program.exists(), "{} is not there: `cargo build --examples`", program.display());
    Command::new(program)
}

/// The example's process; it is killed with the test.
struct Worker(Child);

impl Worker {
    fn start(directory: &Path, servers: &[(&str, String)]) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/volley/volley.yaml");
        let log = directory.join("worker.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = example("volley");
        command.arg("run").arg(file).arg("--state").arg(directory.join("state"));
        // A killed member is given up soon.
        let soon = "{ session.timeout.ms: 3000, heartbeat.interval.ms: 500 }";
        command.arg("--set").arg(format!("queues.input-topic.config={soon}"));
        command.envs(servers.iter().cloned()).env("KAFKA_CONSUMER_GROUP", "volley");
        Self(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program outside that reads a topic.
struct Outside {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Outside {
    fn of(topic: &str, servers: &[(&str, String)]) -> Self {
        let mut consumer = example("volley_consumer");
        consumer.arg(topic).envs(servers.iter().cloned()).stdout(Stdio::piped());
        let mut child = consumer.spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let told = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            told.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// The key and the payload of the next record.
    fn next(&self, missing: impl Fn() -> String) -> (String, Value) {
        let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{}", missing()));
        let (key, payload) = line.split_once('\t').unwrap();
        (key.to_owned(), serde_json::from_str(payload).unwrap())
    }

    /// Reads until answers to so many different requests have come.
    fn answers(&self, wanted: usize, log: &Path) -> BTreeMap<String, Vec<Value>> {
        let mut all = BTreeMap::<String, Vec<Value>>::new();
        while all.len() < wanted {
            let log = || fs::read_to_string(log).unwrap_or_default();
            let (key, value) = self.next(|| format!("{} of {wanted}\n{}", all.len(), log()));
            all.entry(key).or_default().push(value);
        }
        all
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn volleys_example_runs_end_to_end_and_is_killed_on_the_way() {
    let (kafka, redis, database) = (Kafka::start(), Redis::start(), Postgres::start());
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("worker.log");
    let servers = [
        ("KAFKA_BROKERS", kafka.servers()),
        ("REDIS_HOST", format!("127.0.0.1:{}", redis.port())),
        ("POSTGRES", database.url()),
    ];
    let worker = Worker::start(directory.path(), &servers);
    // It makes the topics.
    let begun = Instant::now();
    let made = || fs::read_to_string(&log).is_ok_and(|log| log.contains("assigned"));
    while !made() {
        assert!(begun.elapsed() < PATIENCE, "{}", fs::read_to_string(&log).unwrap_or_default());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let mut producer = example("volley_producer");
    let sent = producer.arg(REQUESTS.to_string()).envs(servers.iter().cloned()).status();
    assert!(sent.unwrap().success());
    // As `examples/volley/producer.rs` makes them.
    let bad = |n: usize| n % 50 == 7 || n % 50 == 9;
    let empty = |n: usize| !bad(n) && n.is_multiple_of(6);
    let answered: BTreeSet<usize> = (0..REQUESTS).filter(|n| !bad(*n) && !empty(*n)).collect();
    // Some have come: killed, and started again.
    Outside::of("output-topic", &servers).answers(20, &log);
    drop(worker);
    let mut worker = Worker::start(directory.path(), &servers);
    let answers = Outside::of("output-topic", &servers).answers(answered.len(), &log);
    for n in &answered {
        let values = n % 6;
        for answer in &answers[&format!("r{n}")] {
            assert_eq!(answer["mean"], (values - 1) as f64 / 2.0, "r{n}: {answer}");
            assert_eq!(answer["rounds"], u32::from(values > 3), "r{n}: {answer}");
        }
    }
    // Each message that was given up on, as it came.
    let given_up: BTreeSet<usize> = (0..REQUESTS).filter(|n| bad(*n) || empty(*n)).collect();
    let letters = Outside::of("dead-letter-queue", &servers);
    let mut kinds = BTreeMap::<String, BTreeSet<String>>::new();
    while kinds.values().map(BTreeSet::len).sum::<usize>() < given_up.len() {
        let (_, letter) = letters.next(|| format!("{kinds:?}"));
        let kind = letter["cause"]["kind"].as_str().unwrap().to_owned();
        let told = letter["position"].as_str().unwrap().to_owned() + &letter["payload"].to_string();
        let told = if kind == "decode" { told } else { letter["payload"].to_string() };
        kinds.entry(kind).or_default().insert(told);
    }
    let many = |of: &dyn Fn(usize) -> bool| (0..REQUESTS).filter(|n| of(*n)).count();
    let count = |kind: &str| kinds.get(kind).map_or(0, BTreeSet::len);
    assert_eq!(count("decode"), many(&|n| n % 50 == 7), "{kinds:?}");
    assert_eq!(count("schema"), many(&|n| n % 50 == 9), "{kinds:?}");
    assert_eq!(count("rejected"), many(&empty), "{kinds:?}");
    // The table has each answer; one that was sent twice has the same id, and is there once.
    let rows = rows(&database, answered.len());
    assert_eq!(rows, answered.iter().map(|n| format!("r{n}")).collect());
    // It ends well when it is asked to.
    let process = worker.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
    let ended = worker.0.wait().unwrap();
    assert!(matches!(ended.code(), Some(0 | 3)), "{ended}\n{}", fs::read_to_string(&log).unwrap());
}

/// The requests that the table has answers for.
fn rows(database: &Postgres, wanted: usize) -> BTreeSet<String> {
    let begun = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connected = tokio_postgres::connect(&database.url(), tokio_postgres::NoTls).await;
        let (client, connection) = connected.unwrap();
        tokio::spawn(connection);
        loop {
            let rows = client.query("select payload from answers", &[]).await.unwrap();
            let id = |row: &tokio_postgres::Row| {
                let answer: Value = serde_json::from_slice(row.get(0)).unwrap();
                answer["request_id"].as_str().unwrap().to_owned()
            };
            let ids: BTreeSet<String> = rows.iter().map(id).collect();
            if ids.len() >= wanted {
                return ids;
            }
            assert!(begun.elapsed() < PATIENCE, "{} of {wanted} rows", ids.len());
        }
    })
}
