//! Pipelines on a Kafka with something wrong: a password, a topic that is not there. It is told,
//! and they go on by themselves when it is mended there.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "common/topics.rs"]
mod topics;
#[path = "common/watched.rs"]
mod watched;

use std::ops::Range;
use std::time::{Duration, Instant};

use brigade_testkit::servers::Kafka;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use watched::Watched;

const PATIENCE: Duration = Duration::from_secs(180);

const YAML: &str = "
pipeline: shop
state: state
queues:
  in: { type: file, path: in.jsonl, follow: true }
  orders: { type: kafka, topic: orders, CREATE config: { CONFIG, reconnect.backoff.max.ms: 500 } }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [orders] }
  keep: { component: pass, input: orders, outputs: [out] }
";

/// Gives it more to do.
fn append(running: &Watched, numbers: Range<usize>) {
    let lines: String = numbers.map(|n| format!("{{\"n\":{n}}}\n")).collect();
    running.append("in.jsonl", &lines);
}

/// Waits until something is told by both stages, which have to name the queue with it.
fn wait_for(running: &Watched, text: &str) {
    for stage in ["feed", "keep"] {
        running.wait_for_line(&[&format!(" stage={stage} "), "queue `orders`", text]);
    }
}

/// At the start, and when the connections of a running pipeline are lost.
#[test]
fn a_pipeline_that_kafka_does_not_let_in_goes_on_when_its_password_is_right() {
    const WHY: &str = "`sasl.password`";
    let kafka = Kafka::start_secured();
    kafka.set_password("other");
    let config = "bootstrap.servers: '${BROKERS}', ssl.ca.location: '${CA}', \
        security.protocol: sasl_ssl, sasl.mechanism: SCRAM-SHA-256, sasl.username: alice, \
        sasl.password: '${PASSWORD}'";
    let yaml = YAML.replace("CREATE", "create: { partitions: 1 },").replace("CONFIG", config);
    let variables = [
        ("BROKERS", kafka.scram_servers().unwrap()),
        ("CA", kafka.certificate().display().to_string()),
        ("PASSWORD", "secret".to_owned()),
    ];
    let mut running = Watched::start(&yaml, &[], &variables);
    append(&running, 0..500);
    wait_for(&running, WHY);
    kafka.set_password("secret");
    running.wait_for_output(500);
    kafka.set_password("other");
    kafka.restart();
    append(&running, 500..1000);
    running.wait_for_line(&["cannot consume", "queue `orders`", WHY]);
    running.wait_for_line(&["cannot produce", "queue `orders`", WHY]);
    kafka.set_password("secret");
    running.wait_for_output(1000);
    running.stop();
    assert_eq!(running.end(), (Some(0), 1000), "{}", running.told());
}

fn config(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.servers());
    config
}

async fn make_topic(kafka: &Kafka) {
    let new = NewTopic::new("orders", 1, TopicReplication::Fixed(1));
    topics::make_topic(&kafka.servers(), &new).await;
}

/// Deletes it, and waits until the broker does not know it.
async fn delete_topic(kafka: &Kafka) {
    let admin: AdminClient<DefaultClientContext> = config(kafka).create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    let deleted = admin.delete_topics(&["orders"], &options).await.unwrap();
    deleted.into_iter().for_each(|one| drop(one.unwrap()));
    let begun = Instant::now();
    let reader: BaseConsumer = config(kafka).create().unwrap();
    let topics = || reader.fetch_metadata(None, PATIENCE).unwrap();
    while topics().topics().iter().any(|topic| topic.name() == "orders") {
        assert!(begun.elapsed() < PATIENCE, "it is still there");
    }
}

/// What comes after that is handled.
#[tokio::test]
async fn a_topic_that_is_not_there_is_told_and_read_when_it_is_made() {
    const WHY: &str = "make the topic";
    let kafka = Kafka::start();
    let config = "bootstrap.servers: '${BROKERS}', topic.metadata.refresh.interval.ms: 1000, \
        topic.metadata.propagation.max.ms: 1000";
    let yaml = YAML.replace("CREATE", "").replace("CONFIG", config);
    let mut running = Watched::start(&yaml, &[], &[("BROKERS", kafka.servers())]);
    append(&running, 0..500);
    wait_for(&running, WHY);
    make_topic(&kafka).await;
    running.wait_for_output(500);
    delete_topic(&kafka).await;
    append(&running, 500..1000);
    running.wait_for_line(&["cannot consume", "queue `orders`", WHY]);
    running.wait_for_line(&["the queue takes nothing", "stage=feed", "queue `orders`", WHY]);
    make_topic(&kafka).await;
    running.wait_for_output(1000);
    running.stop();
    assert_eq!(running.end(), (Some(0), 1000), "{}", running.told());
}
