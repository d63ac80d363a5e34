//! Documents of pipelines, by the real command, taken by AsyncAPI's own parser.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]
#![allow(dead_code, reason = "of the types only the schemas are used")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use brigade_testkit::servers::asyncapi_complaints;
use schemars::{JsonSchema, schema_for};
use serde_json::{Value, json};

/// A type that holds others, and itself.
#[derive(JsonSchema)]
struct Order {
    lines: Vec<Line>,
    replaces: Option<Box<Order>>,
}

#[derive(JsonSchema)]
struct Line {
    article: String,
    /// Of what it is made.
    parts: Vec<Line>,
}

const PIPELINE: &str = r##"
pipeline: shop
queues:
  orders:
    type: kafka
    topics: [shop.orders, shop.returns, "^extra-.*"]
    schema: order.json
  checked:
    type: kafka
    topic: shop.checked
    config: { bootstrap.servers: "secure-a:9093,secure-b:9093", security.protocol: sasl_ssl,
              sasl.mechanism: PLAIN, sasl.username: user, sasl.password: hidden }
    registry: { url: "http://registry:8081", message: shop.Order }
  bills: { type: redis_stream, stream: shop-bills, schema: { $id: "https://example.com/bill", $ref: "#/$defs/Bill",
           $defs: { Bill: { type: object, properties: { of: { $ref: "#named" }, again: { $ref: "#" } } },
                    Named: { $anchor: named, type: string } } } }
  jobs: { type: rsmq, url: "rediss://user:hidden@redis-b:6390/1", queue: shop_jobs, codec: cbor }
  old:
    type: embedded
    schema: { $schema: "http://json-schema.org/draft-07/schema#", $ref: "#/definitions/K",
              definitions: { K: { type: object, properties: { k: { $ref: "#/definitions/K" } } } } }
  dead: { type: file, path: dead.jsonl }
stages:
  check: { component: pass, input: orders, outputs: [checked, bills], copy: true, dead_letter: dead }
  bill: { component: pass, input: checked, outputs: [jobs, old], copy: true }
"##;

fn document(directory: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory).args(["asyncapi", "p.yaml"]);
    command.env("REDIS_HOST", "redis-a:6380").env("KAFKA_BROKERS", "plain-a:9092, plain-b:9092");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_document_is_one_for_asyncapis_own_parser() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("p.yaml"), PIPELINE).unwrap();
    let order = serde_json::to_string(&schema_for!(Order)).unwrap();
    assert!(order.contains("$ref"), "{order}");
    std::fs::write(place.path().join("order.json"), order).unwrap();
    let text = document(place.path());
    assert!(!text.contains("hidden"), "{text}");
    let document: Value = serde_json::from_str(&text).unwrap();
    let server = |host: &str| {
        let servers = document["servers"].as_object().unwrap().values();
        let protocols = servers.filter(|server| server["host"] == host);
        protocols.map(|server| server["protocol"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((server("plain-a:9092"), server("plain-b:9092")), (vec!["kafka"], vec!["kafka"]));
    assert_eq!(server("secure-a:9093"), ["kafka-secure"]);
    assert_eq!(server("secure-b:9093"), ["kafka-secure"]);
    assert_eq!((server("redis-a:6380"), server("redis-b:6390")), (vec!["redis"], vec!["rediss"]));
    assert_eq!(document["servers"].as_object().unwrap().len(), 6);
    let channels = document["channels"].as_object().unwrap();
    let addresses: BTreeSet<_> = channels.values().map(|one| one["address"].to_string()).collect();
    let expected =
        ["shop.orders", "shop.returns", "shop.checked", "shop-bills", "shop_jobs", "old"];
    let expected = expected.into_iter().chain(["dead.jsonl"]).map(|address| json!(address));
    let expected = expected.chain([Value::Null]).map(|address| address.to_string());
    assert_eq!(addresses, expected.collect());
    assert_eq!(channels["orders.shop.orders"]["servers"].as_array().unwrap().len(), 2);
    let content = |queue: &str| &document["components"]["messages"][queue]["contentType"];
    assert_eq!(
        (content("checked"), content("jobs")),
        (&json!("application/protobuf"), &json!("application/cbor"))
    );
    // Otherwise the parser would not read what is in them.
    for queue in ["orders", "bills", "old"] {
        let payload = &document["components"]["messages"][queue]["payload"];
        assert_eq!(payload["schemaFormat"], "application/schema+json;version=draft-07");
    }
    assert_eq!(document["operations"]["check.receive.orders.shop.returns"]["action"], "receive");
    assert_eq!(asyncapi_complaints(&text), Vec::<String>::new());
}

/// What is wrong is told by the parser, so that silence means something.
#[test]
fn a_reference_to_nothing_is_told_by_the_parser() {
    let place = tempfile::tempdir().unwrap();
    let pipeline = PIPELINE.replace("schema: order.json", "schema: { type: object }");
    std::fs::write(place.path().join("p.yaml"), pipeline).unwrap();
    let wrong = document(place.path()).replace("schema/$defs/Named", "schema/$defs/Gone");
    assert!(asyncapi_complaints(&wrong).concat().contains("Gone"));
}

/// It reads what is in the schemas.
#[test]
fn a_schema_that_is_none_is_told_by_the_parser() {
    let place = tempfile::tempdir().unwrap();
    let pipeline = PIPELINE.replace("schema: order.json", "schema: { type: object }");
    std::fs::write(place.path().join("p.yaml"), pipeline).unwrap();
    let wrong = document(place.path()).replace("\"type\": \"string\"", "\"type\": \"text\"");
    assert!(asyncapi_complaints(&wrong).concat().contains("\"type\" property"));
}
