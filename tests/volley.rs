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
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use brigade_testkit::servers::{Kafka, Postgres, Redis};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};

#[path = "../examples/volley/postgres.rs"]
mod postgres;

const REQUESTS: usize = 300;
const PATIENCE: Duration = Duration::from_secs(120);

mod the_connector {
    use std::sync::Arc;

    use brigade::MemoryState;
    use brigade::connector::{ConnectorEnv, QueueSpec};
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
}

/// The example's process; it is killed with the test.
struct Worker(Child);

impl Worker {
    fn start(directory: &Path, servers: &[(&str, String)]) -> Self {
        let examples = Path::new(env!("CARGO_BIN_EXE_brigade")).parent().unwrap().join("examples");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/volley/volley.yaml");
        let log = directory.join("worker.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(examples.join("volley"));
        command.arg("run").arg(file).arg("--state").arg(directory.join("state"));
        // A killed member is given up soon.
        let soon = "{ session.timeout.ms: 3000, heartbeat.interval.ms: 500 }";
        command.arg("--set").arg(format!("queues.input-topic.config={soon}"));
        command.envs(servers.iter().cloned()).env("KAFKA_CONSUMER_GROUP", "volley");
        Self(command.stdout(Stdio::null()).stderr(log).spawn().expect("`cargo build --examples`"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Requests, some with many values, some that violate the schema, some that are no JSON, and some that
/// have nothing to take a mean of.
fn requests() -> Vec<(String, Vec<u8>)> {
    let request = |n: usize| {
        let id = format!("r{n}");
        let values: Vec<usize> = (0..n % 6).collect();
        let bytes = match n {
            _ if n % 50 == 7 => b"{ no json".to_vec(),
            _ if n % 50 == 9 => json!({ "request_id": id, "values": "none" }).to_string().into(),
            _ => json!({ "request_id": id, "values": values }).to_string().into(),
        };
        (id, bytes)
    };
    (0..REQUESTS).map(request).collect()
}

fn send(servers: &str) {
    let mut config = ClientConfig::new();
    let producer: BaseProducer = config.set("bootstrap.servers", servers).create().unwrap();
    for (id, bytes) in requests() {
        producer.send(BaseRecord::to("input-topic").key(&id).payload(&bytes)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

fn reader(servers: &str, topic: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    // Each sees all of it.
    let group = format!("outside-{}", fastrand::u64(..));
    config.set("bootstrap.servers", servers).set("group.id", group);
    config.set("auto.offset.reset", "earliest").set("allow.auto.create.topics", "false");
    let reader: BaseConsumer =
        config.set("topic.metadata.refresh.interval.ms", "500").create().unwrap();
    reader.subscribe(&[topic]).unwrap();
    reader
}

/// Reads until so many different ones have come: by key for answers, by payload for dead letters.
fn read(servers: &str, topic: &str, wanted: usize, log: &Path) -> BTreeMap<String, Vec<Value>> {
    let (reader, begun) = (reader(servers, topic), Instant::now());
    let mut all = BTreeMap::<String, Vec<Value>>::new();
    while all.len() < wanted {
        let log = || fs::read_to_string(log).unwrap_or_default();
        assert!(begun.elapsed() < PATIENCE, "{} of {wanted} on {topic}\n{}", all.len(), log());
        let Some(Ok(record)) = reader.poll(Duration::from_millis(200)) else { continue };
        let value: Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
        let key = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
        all.entry(key).or_default().push(value);
    }
    all
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
    send(&kafka.servers());
    let bad = |n: usize| n % 50 == 7 || n % 50 == 9;
    let empty = |n: usize| !bad(n) && n.is_multiple_of(6);
    let answered: BTreeSet<usize> = (0..REQUESTS).filter(|n| !bad(*n) && !empty(*n)).collect();
    // Some have come: killed, and started again.
    read(&kafka.servers(), "output-topic", 20, &log);
    drop(worker);
    let mut worker = Worker::start(directory.path(), &servers);
    let answers = read(&kafka.servers(), "output-topic", answered.len(), &log);
    for n in &answered {
        let values = n % 6;
        for answer in &answers[&format!("r{n}")] {
            assert_eq!(answer["mean"], (values - 1) as f64 / 2.0, "r{n}: {answer}");
            assert_eq!(answer["rounds"], u32::from(values > 3), "r{n}: {answer}");
        }
    }
    // Each message that was given up on, as it came.
    let given_up: BTreeSet<usize> = (0..REQUESTS).filter(|n| bad(*n) || empty(*n)).collect();
    let letters = directory.path().join("letters");
    let (reader, begun) = (reader(&kafka.servers(), "dead-letter-queue"), Instant::now());
    let mut kinds = BTreeMap::<String, BTreeSet<String>>::new();
    while kinds.values().map(BTreeSet::len).sum::<usize>() < given_up.len() {
        assert!(begun.elapsed() < PATIENCE, "{kinds:?}, {}", letters.display());
        let Some(Ok(record)) = reader.poll(Duration::from_millis(200)) else { continue };
        let letter: Value = serde_json::from_slice(record.payload().unwrap()).unwrap();
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
