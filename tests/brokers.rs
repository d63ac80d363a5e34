//! Whole pipelines on real servers: who may use them, which topics and partitions, what their metrics tell.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "common/command.rs"]
mod command;
mod common;
#[path = "common/scrape.rs"]
mod scrape;
#[path = "common/topics.rs"]
mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use brigade::component::{Context, Emit};
use brigade::kafka::Position;
use brigade::{CauseKind, Failure, StageState, Timestamp};
use brigade_testkit::servers::{Kafka, Redis};
use bytes::Bytes;
use common::{World, eventually};
use rdkafka::admin::{NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use scrape::{Metric, Run, differences, tables, told, value};
use serde::{Deserialize, Serialize};
use topics::{Topic, make_topic};

const PATIENCE: Duration = Duration::from_secs(180);

/// As Volley has it: SASL PLAIN over TLS without a word in the file.
#[test]
fn a_key_and_a_secret_in_the_environment_let_in_by_sasl_plain() {
    let kafka = Kafka::start_secured();
    let directory = tempfile::tempdir().unwrap();
    let yaml = "
pipeline: shop
state: state
queues:
  in: { type: generator, count: 10, template: { n: '{{seq}}' } }
  orders: { type: kafka, create: { partitions: 1 }, config: { ssl.ca.location: '${CA}' } }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  keep: { component: pass, input: orders, outputs: [out] }
";
    fs::write(directory.path().join("p.yaml"), yaml).unwrap();
    let brigade = |arguments: &[&str], secret: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(directory.path()).args(arguments).env_remove("RUST_LOG");
        command.env("KAFKA_BROKERS", kafka.plain_servers().unwrap());
        command
            .env("CA", kafka.certificate())
            .env("KAFKA_KEY", "alice")
            .env("KAFKA_SECRET", secret);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, said) = brigade(&["check", "--connect", "p.yaml"], "wr0ng-passw0rd");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("queue `orders`") && said.contains("sasl.password"), "{said}");
    assert!(!said.contains("wr0ng"), "{said}");
    let (code, said) = brigade(&["run", "p.yaml", "--until-idle"], "secret");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("INFO") && !said.contains("secret"), "no secret is logged: {said}");
    let out = fs::read_to_string(directory.path().join("out.jsonl")).unwrap();
    assert_eq!(out.lines().count(), 10);
}

/// What a component sees of a message, beside its payload.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Seen {
    topic: String,
    partition: i32,
    offset: u64,
    key: String,
    headers: Vec<(String, Option<String>)>,
    event_time: i64,
}

impl Seen {
    fn by(cx: &Context) -> Self {
        let Position { topic, partition, offset } = cx.position().parse().unwrap();
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let header = |(name, value): (&str, Option<&Bytes>)| (name.to_owned(), value.map(text));
        let (headers, event_time) = (cx.headers().iter().map(header).collect(), cx.event_time());
        let (key, event_time) = (text(cx.key().unwrap()), event_time.unwrap().0);
        Self { topic, partition, offset, key, headers, event_time }
    }

    /// Where a number is put, and with what: ten on each topic, every second one on a partition.
    fn of(n: u64, topics: &[String], begun: i64) -> Self {
        let (partition, offset) = ((n % 2) as i32, n % 10 / 2);
        let headers = vec![("n".to_owned(), Some(n.to_string())), ("none".to_owned(), None)];
        let (topic, key) = (topics[(n / 10) as usize].clone(), format!("k{n}"));
        Self { topic, partition, offset, key, headers, event_time: begun + n as i64 }
    }
}

/// Makes topics of two partitions, each with ten numbers.
async fn make_topics(servers: &str, topics: &[String], begun: i64) {
    for topic in topics {
        make_topic(servers, &NewTopic::new(topic, 2, TopicReplication::Fixed(1))).await;
    }
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers);
    // In the order in which they are put.
    let producer: BaseProducer = config.set("enable.idempotence", "true").create().unwrap();
    for n in 0..10 * topics.len() as u64 {
        let Seen { topic, partition, key, headers, event_time, .. } = Seen::of(n, topics, begun);
        let insert = |all: OwnedHeaders, (key, value): &(String, Option<String>)| {
            all.insert(Header { key, value: value.as_ref() })
        };
        let (headers, payload) = (headers.iter().fold(OwnedHeaders::new(), insert), n.to_string());
        let record = BaseRecord::to(&topic).partition(partition).key(&key).payload(&payload);
        producer.send(record.headers(headers).timestamp(event_time)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

/// What is on a topic of four partitions: of each number its partition, and what was seen of it.
fn spread(servers: &str, topic: &str, wanted: usize) -> BTreeMap<u64, (i32, Seen)> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", "outside");
    let reader: BaseConsumer = config.create().unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_range(topic, 0, 3);
    all.set_all_offsets(Offset::Beginning).unwrap();
    reader.assign(&all).unwrap();
    let (mut found, begun) = (BTreeMap::new(), Instant::now());
    while found.len() < wanted {
        assert!(begun.elapsed() < PATIENCE, "{found:?}");
        let Some(Ok(record)) = reader.poll(Duration::from_millis(200)) else { continue };
        let (n, seen): (u64, Seen) = serde_json::from_slice(record.payload().unwrap()).unwrap();
        assert!(found.insert(n, (record.partition(), seen)).is_none(), "{n} is there twice");
    }
    found
}

/// A stage reads a list of topics; its component sees where each message stands, its key, headers and
/// event time, and says to which partition its output goes. One that is not there makes a dead letter.
#[tokio::test]
async fn a_component_reads_several_topics_and_says_to_which_partition() {
    let (kafka, world) = (Kafka::shared(), World::new());
    let suffix = fastrand::u64(..);
    let topics = ["red", "blue"].map(|name| format!("{name}-{suffix:016x}"));
    // What is old is soon deleted.
    let begun = Timestamp::from(SystemTime::now()).0 - 60_000;
    make_topics(&kafka.servers(), &topics, begun).await;
    let place = |n: u64, cx: &Context| {
        let output = Emit::value((n, Seen::by(cx)));
        Ok::<_, Failure>(output.header("brigade-partition", (n % 5).to_string()))
    };
    let registry = world.registry().component("place", place);
    let yaml = format!(
        "
queues:
  both: {{ type: kafka, topics: [{}, {}], config: {{ bootstrap.servers: '{servers}' }} }}
  spread: {{ type: kafka, topic: spread-{suffix:016x}, create: {{ partitions: 4 }},
    config: {{ bootstrap.servers: '{servers}' }} }}
stages:
  place: {{ component: place, input: both, outputs: [spread] }}
",
        topics[0],
        topics[1],
        servers = kafka.servers()
    );
    let running = world.start(&yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let found = spread(&kafka.servers(), &format!("spread-{suffix:016x}"), 16);
    let came = |n: u64| (n, ((n % 5) as i32, Seen::of(n, &topics, begun)));
    assert_eq!(found, (0..20).filter(|n| n % 5 < 4).map(came).collect());
    let dead = world.dead_letters("place");
    assert_eq!(dead.len(), 4);
    for letter in dead {
        assert_eq!(letter.cause.kind, CauseKind::Refused);
        let why = &letter.cause.message;
        assert!(why.contains("has 4 partitions, and no number 4"), "{why}");
    }
}

/// What goes out of a stage that halts is acked, also what is still under way to the broker at that moment: when its
/// component is mended, only what did not go out comes again.
#[tokio::test]
async fn what_is_under_way_when_a_stage_halts_is_acked_and_goes_out_once() {
    const MESSAGES: u64 = 2000;
    let (kafka, world) = (Kafka::shared(), World::new());
    let (mended, handled) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let (is_mended, seen) = (Arc::clone(&mended), Arc::clone(&handled));
    let bill = move |n: u64| {
        if n == MESSAGES / 2 && !is_mended.load(Relaxed) {
            return Err(Failure::retry("it cannot be done"));
        }
        seen.lock().unwrap().push(n);
        Ok(serde_json::json!({ "n": n }))
    };
    let registry = world.registry().component("bill", bill);
    let more = format!(
        "create: {{ partitions: 1 }}, config: {{ bootstrap.servers: '{}' }}",
        kafka.servers()
    );
    let (orders, bills) = (fastrand::u64(..), format!("bills-{:016x}", fastrand::u64(..)));
    let yaml = format!(
        "
queues:
  in: {{ type: memory }}
  orders: {{ type: kafka, topic: orders-{orders:016x}, {more} }}
  bills: {{ type: kafka, topic: {bills}, {more} }}
stages:
  feed: {{ component: pass, input: in, outputs: [orders] }}
  bill: {{ component: bill, input: orders, outputs: [bills], on_exhausted: halt, retry: {{ attempts: 1 }} }}
"
    );
    world.put("in", 0..MESSAGES);
    let running = world.start(&yaml, &registry).await;
    eventually("the stage halts", async || {
        running.status().await[0].stage("bill").unwrap().state == StageState::Failed
    })
    .await;
    running.drain().await;
    let mut out = Topic::new(&kafka.servers(), &bills, 1);
    let given_back = handled.lock().unwrap().len() - out.len();
    mended.store(true, Relaxed);
    let running = world.start(&yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let begun = Instant::now();
    while out.read() < MESSAGES as usize {
        assert!(begun.elapsed() < PATIENCE, "{} have come", out.counts.len());
    }
    assert_eq!(out.len(), MESSAGES as usize, "some went out again");
    let handled = handled.lock().unwrap().len();
    assert_eq!(handled, MESSAGES as usize + given_back, "only what did not go out comes again");
}

/// All that the documentation names, those of Kafka and Redis too.
#[test]
fn with_kafka_and_redis_all_names_of_volley_are_told() {
    let (kafka, redis) = (Kafka::shared(), Redis::start());
    let yaml = "
pipeline: shop
state: state
metrics: { address: '127.0.0.1:0', names: volley }
queues:
  in: { type: generator, template: { n: '{{seq}}' }, rate: 200 }
  orders: { type: kafka, topic: TOPIC, create: { partitions: 1 }, config: { bootstrap.servers: '${BROKERS}' } }
  bills: { type: redis_stream, url: '${REDIS_URL}' }
  jobs: { type: rsmq, url: '${REDIS_URL}' }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  bill: { component: pass, input: orders, outputs: [bills] }
  pass_on: { component: pass, input: bills, outputs: [jobs] }
  keep: { component: pass, input: jobs, outputs: [out] }
";
    let yaml = yaml.replace("TOPIC", &format!("orders-{:016x}", fastrand::u64(..)));
    let servers = [("BROKERS", kafka.servers()), ("REDIS_URL", redis.url())];
    let run = Run::start_with(&yaml, &servers);
    let kept = "messages_consumed_count_total{volley_app=\"keep\",status=\"success\"}";
    let text = run.until("/metrics", |_, text| value(text, kept) > 100.0);
    assert!(value(&text, "delivery_report_status_total{status=\"success\"}") > 100.0, "{text}");
    for operation in ["read", "write", "delete"] {
        let labels = format!("{{operation=\"{operation}\"}}");
        let of = |name: &str| value(&text, &format!("redis_process_time_seconds_{name}{labels}"));
        assert!(of("count") > 0.0 && of("sum") > 0.0, "{operation}: {text}");
    }
    let told = told(&text).into_iter().filter(|(name, ..)| !name.ends_with("_created"));
    let (_, documented) = tables();
    let told: BTreeSet<Metric> = told.collect();
    assert_eq!(differences(&documented, &told), "", "names, types and labels");
}

#[test]
fn what_waits_in_each_partition_is_a_metric() {
    let (kafka, topic) = (Kafka::shared(), format!("orders-{:016x}", fastrand::u64(..)));
    let yaml = "
pipeline: shop
state: state
metrics: 127.0.0.1:0
queues:
  in: { type: generator, template: { n: '{{seq}}' }, rate: 200 }
  orders: { type: kafka, topic: TOPIC, create: { partitions: 2 }, config: { bootstrap.servers: '${BROKERS}' } }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  keep: { component: pass, input: orders, outputs: [out] }
";
    let run = Run::start_with(&yaml.replace("TOPIC", &topic), &[("BROKERS", kafka.servers())]);
    for partition in 0..2 {
        let name = "brigade_partition_messages";
        let labels = "pipeline=\"shop\",stage=\"keep\",queue=\"orders\"";
        let line = format!("{name}{{{labels},partition=\"{topic}/{partition}\"}} ");
        run.until("/metrics", |_, text| text.contains(&line));
    }
}

/// A member of the pipeline's group, as a stage that runs has one.
fn member_of_shop(servers: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", "shop");
    config.set("partition.assignment.strategy", "cooperative-sticky");
    let member: BaseConsumer = config.create().unwrap();
    member.subscribe(&["orders"]).unwrap();
    while member.assignment().unwrap().count() == 0 {
        drop(member.poll(Duration::from_millis(100)));
    }
    member
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
    let url = server.servers();
    let brigade =
        |arguments: &[&str]| command::brigade(directory.path(), ("BROKERS", &url), arguments);
    let (code, told) = brigade(&["run", "p.yaml", "--until-idle"]);
    assert_eq!(code, Some(3), "{told}");
    let ready = |queue: &str| command::ready(&brigade(&["queues", "list", "p.yaml"]).1, queue);
    assert_eq!((&*ready("out"), &*ready("dead"), &*ready("orders")), ("9", "1", "0"));
    let (_, shown) = brigade(&["dead-letters", "list", "p.yaml"]);
    assert!(shown.contains("three"), "{shown}");
    let number = shown.lines().find(|line| line.contains("three")).unwrap();
    let number = number.split_whitespace().next().unwrap();
    let (_, whole) = brigade(&["dead-letters", "show", "p.yaml", number]);
    assert!(whole.contains("\"stage\": \"bill\""), "{whole}");
    let member = member_of_shop(&server.servers());
    let (code, told) = brigade(&["dead-letters", "redrive", "p.yaml"]);
    assert!(code == Some(2) && told.contains("the group has members (`shop`)"), "{told}");
    let (_, peeked) = brigade(&["queues", "peek", "p.yaml", "~redrive.bill"]);
    assert!(!peeked.contains("three") && !peeked.contains("\"n\":3"), "it is not sent: {peeked}");
    drop(member);
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
