//! A pipeline whose topics have Avro and Protobuf with a schema registry: from JSON to Avro, from Avro to
//! Protobuf, and back to JSON, with the command.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use brigade_testkit::servers::{Kafka, SchemaRegistry};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const ORDERS: usize = 500;
const PATIENCE: Duration = Duration::from_secs(180);

const AVRO: &str = r#"{ "type": "record", "name": "Order", "fields": [
    { "name": "n", "type": "long" }, { "name": "note", "type": ["null", "string"], "default": null }
] }"#;
const PROTOBUF: &str = "syntax = \"proto3\";
package shop;
message Bill { int64 n = 1; bool billed = 2; optional string note = 3; }
";
const PIPELINE: &str = "
pipeline: shop
state: state
queues:
  in: { type: file, path: in.jsonl }
  orders:
    type: kafka
    create: { partitions: 2 }
    config: { bootstrap.servers: '${BROKERS}' }
    registry: { url: '${REGISTRY}', register: order.avsc }
    schema: { properties: { n: { maximum: 498 } } }
  bills:
    type: kafka
    create: { partitions: 2 }
    config: { bootstrap.servers: '${BROKERS}' }
    registry: { url: '${REGISTRY}', register: bill.proto, message: shop.Bill, subject: shop.bills }
  out: { type: file, path: out.jsonl }
  dead: { type: file, path: dead.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [orders], dead_letter: dead }
  bill: { component: { map: '.billed = true' }, input: orders, outputs: [bills], dead_letter: dead }
  keep: { component: pass, input: bills, outputs: [out], dead_letter: dead }
";

fn brigade(directory: &Path, servers: &[(&str, String)], arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory).args(arguments).envs(servers.iter().cloned());
    let output = command.output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&told).into_owned())
}

/// The first bytes of each payload of a topic, of so many.
fn prefixes(servers: &str, topic: &str, wanted: usize) -> BTreeSet<Vec<u8>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", "outside");
    let client: BaseConsumer = config.create().unwrap();
    let mut all = TopicPartitionList::new();
    all.add_partition_range(topic, 0, 1);
    all.set_all_offsets(Offset::Beginning).unwrap();
    client.assign(&all).unwrap();
    let (mut prefixes, mut seen, begun) = (BTreeSet::new(), 0, Instant::now());
    while seen < wanted {
        assert!(begun.elapsed() < PATIENCE, "{seen} of {wanted} on {topic}");
        let Some(Ok(record)) = client.poll(Duration::from_millis(100)) else { continue };
        prefixes.insert(record.payload().unwrap()[..5].to_vec());
        seen += 1;
    }
    prefixes
}

#[test]
fn payloads_are_read_and_written_with_the_registrys_schemas() {
    let (kafka, registry) = (Kafka::start(), SchemaRegistry::start());
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let line = |n: usize| match n {
        // It does not fit the Avro schema: a dead letter of who writes it.
        3 => "{\"n\":\"three\"}\n".to_owned(),
        n if n.is_multiple_of(2) => format!("{{\"n\":{n}}}\n"),
        n => format!("{{\"n\":{n},\"note\":\"größer\"}}\n"),
    };
    fs::write(place.join("in.jsonl"), (0..ORDERS).map(line).collect::<String>()).unwrap();
    fs::write(place.join("order.avsc"), AVRO).unwrap();
    fs::write(place.join("bill.proto"), PROTOBUF).unwrap();
    fs::write(place.join("p.yaml"), PIPELINE).unwrap();
    let servers = [("BROKERS", kafka.servers()), ("REGISTRY", registry.url())];
    // A stranger's record, with no schema's id: a dead letter of who reads it.
    let (code, told) =
        brigade(place, &servers, &["run", "p.yaml", "--stage", "feed", "--until-idle"]);
    assert_eq!(code, 3, "{told}");
    let mut config = ClientConfig::new();
    let producer: BaseProducer = config.set("bootstrap.servers", kafka.servers()).create().unwrap();
    producer.send(BaseRecord::<(), _>::to("orders").payload("{\"n\":1000}")).unwrap();
    producer.flush(PATIENCE).unwrap();
    let (code, told) = brigade(place, &servers, &["run", "p.yaml", "--until-idle"]);
    assert_eq!(code, 3, "{told}");
    let out = fs::read_to_string(place.join("out.jsonl")).unwrap();
    let values = out.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let seen: BTreeSet<usize> = values
        .map(|value| {
            let n = value["n"].as_u64().unwrap() as usize;
            assert_eq!(value["billed"], true, "{value}");
            let note = if n.is_multiple_of(2) { None } else { Some("größer") };
            assert_eq!(value["note"].as_str(), note, "{value}");
            n
        })
        .collect();
    let wanted: BTreeSet<usize> = (0..ORDERS - 1).filter(|n| *n != 3).collect();
    assert_eq!(seen, wanted);
    let dead = fs::read_to_string(place.join("dead.jsonl")).unwrap();
    let kind = |line: &str| {
        let letter: serde_json::Value = serde_json::from_str(line).unwrap();
        let (stage, kind) = (letter["stage"].as_str().unwrap(), &letter["cause"]["kind"]);
        format!("{stage} {}", kind.as_str().unwrap())
    };
    let kinds: BTreeSet<String> = dead.lines().map(kind).collect();
    // 499 is no order by the queue's own `schema`, "three" none by the registry's.
    let wanted = ["bill decode", "feed output", "feed refused"].map(str::to_owned);
    assert_eq!(kinds, wanted.into(), "{dead}");
    // Confluent's prefix, a zero byte and an id; and the stranger's record.
    let orders = prefixes(&kafka.servers(), "orders", ORDERS - 1);
    let bills = prefixes(&kafka.servers(), "bills", ORDERS - 2);
    assert_eq!((orders.len(), bills.len()), (2, 1), "one schema each: {orders:?}, {bills:?}");
    assert!(orders.first().unwrap()[0] == 0 && bills.first().unwrap()[0] == 0);
}

#[test]
fn what_is_wrong_with_a_registry_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let check = |registry: &str, more: &str| {
        let yaml = format!(
            "pipeline: shop\nqueues:\n  in: {{ type: memory, registry: {registry}{more} }}\n  out: {{ type: \
             memory }}\nstages:\n  s: {{ component: pass, input: in, outputs: [out] }}\n"
        );
        fs::write(directory.path().join("p.yaml"), yaml).unwrap();
        brigade(directory.path(), &[], &["check", "p.yaml"]).1
    };
    let told = check("{ url: 'registry:8081' }", "");
    assert!(told.contains("queues.in.registry.url") && told.contains("http://host:8081"), "{told}");
    let told = check("{ url: 'http://r', register: order.xml }", "");
    assert!(told.contains(".avsc, .proto or .json"), "{told}");
    let told = check("{ url: 'http://r' }", ", codec: cbor");
    assert!(told.contains("remove `codec`, or `registry`"), "{told}");
}
