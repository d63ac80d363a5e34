//! Avro, Protobuf and JSON with a real registry.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{
    ConnectorError, Format, Formats as _, QueueSpec, SchemaRegistry as Keys,
};
use brigade_schemas::SchemaRegistries;
use brigade_testkit::servers::SchemaRegistry;
use bytes::Bytes;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(180);
const AVRO: &str = r#"{
    "type": "record", "name": "Order", "namespace": "shop",
    "fields": [
        { "name": "id", "type": "long" },
        { "name": "customer", "type": "string" },
        { "name": "total", "type": ["null", "double"], "default": null },
        { "name": "lines", "type": { "type": "array", "items": {
            "type": "record", "name": "Line",
            "fields": [{ "name": "sku", "type": "string" }, { "name": "count", "type": "int" }]
        } } },
        { "name": "state", "type": { "type": "enum", "name": "State", "symbols": ["NEW", "PAID"] } },
        { "name": "labels", "type": { "type": "map", "values": "string" } }
    ]
}"#;
const PROTOBUF: &str = r#"
syntax = "proto3";
package shop;
message Order {
    message Line { string sku = 1; int32 count = 2; }
    enum State { NEW = 0; PAID = 1; }
    int64 id = 1;
    string customer_name = 2;
    optional double total = 3;
    repeated Line lines = 4;
    State state = 5;
    map<string, string> labels = 6;
}
message Other { string text = 1; }
"#;
const JSON: &str = r#"{ "$schema": "http://json-schema.org/draft-07/schema#", "type": "object" }"#;

fn keys(server: &SchemaRegistry) -> Keys {
    serde_json::from_value(json!({ "url": server.url() })).unwrap()
}

/// Opens the subject `orders-value` with this schema, by the file's name.
async fn opened(server: &SchemaRegistry, file: &str, text: &str) -> Arc<dyn Format> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(file);
    std::fs::write(&path, text).unwrap();
    let register = Some(path.display().to_string());
    let keys = Keys { register, message: Some("shop.Order".into()), ..keys(server) };
    let queue = QueueSpec::new("shop", "orders", json!({}));
    patiently(async || SchemaRegistries.open(&queue, &keys, true).await).await
}

/// Asks a registry that is up: one that has just started, on a busy machine, may not answer in time at first.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, ConnectorError>) -> T {
    let begun = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => assert!(error.is_transient() && begun.elapsed() < PATIENCE, "{error}"),
        }
    }
}

/// Opens until what is told has this in it, as [`patiently`].
async fn opening_tells(queue: &QueueSpec, keys: &Keys, part: &str) -> ConnectorError {
    let begun = Instant::now();
    loop {
        let error = SchemaRegistries.open(queue, keys, true).await.err().unwrap();
        if error.to_string().contains(part) {
            return error;
        }
        let passes = error.is_transient() && begun.elapsed() < PATIENCE;
        assert!(passes, "`{part}` is not in: {error}");
    }
}

fn bytes(value: &Value) -> Bytes {
    serde_json::to_vec(value).unwrap().into()
}

async fn written(format: &Arc<dyn Format>, value: &Value) -> Bytes {
    patiently(async || format.write(&bytes(value)).await).await.unwrap()
}

async fn read(format: &Arc<dyn Format>, payload: &Bytes) -> Value {
    let read = patiently(async || format.read(payload).await).await;
    serde_json::from_slice(&read.unwrap()).unwrap()
}

#[tokio::test]
async fn avro_goes_out_and_comes_back() {
    let server = SchemaRegistry::start();
    let format = opened(&server, "order.avsc", AVRO).await;
    let order = json!({
        "id": 9_007_199_254_740_993_i64, "customer": "größe", "total": 1.5,
        "lines": [{ "sku": "a", "count": 2 }], "state": "PAID", "labels": { "k": "v" },
    });
    let payload = written(&format, &order).await;
    assert_eq!(payload[0], 0, "Confluent's prefix");
    assert!(payload.len() < 60, "it is binary: {payload:?}");
    assert_eq!(read(&format, &payload).await, order);
    // What has a default may be left out; what has none may not.
    let without = json!({ "id": 1, "customer": "c", "total": null, "lines": [], "state": "NEW", "labels": {} });
    assert_eq!(read(&format, &written(&format, &without).await).await, without);
    let wrong = bytes(&json!({ "id": "one" }));
    let wrong = patiently(async || format.write(&wrong).await).await;
    assert!(wrong.is_err(), "it does not fit the schema: {wrong:?}");
    // Another queue reads it without knowing the subject.
    let queue = QueueSpec::new("shop", "others", json!({}));
    let keys = keys(&server);
    let reader = patiently(async || SchemaRegistries.open(&queue, &keys, false).await).await;
    assert_eq!(read(&reader, &payload).await, order);
}

#[tokio::test]
async fn protobuf_goes_out_and_comes_back() {
    let server = SchemaRegistry::start();
    let format = opened(&server, "order.proto", PROTOBUF).await;
    let order = json!({
        "id": 9_007_199_254_740_993_i64, "customer_name": "größe", "total": 1.5,
        "lines": [{ "sku": "a", "count": 2 }], "state": "PAID", "labels": { "k": "v" },
    });
    let payload = written(&format, &order).await;
    assert_eq!(payload[0], 0, "Confluent's prefix");
    assert_eq!(read(&format, &payload).await, order);
    let wrong = bytes(&json!({ "id": "one" }));
    let wrong = patiently(async || format.write(&wrong).await).await;
    assert!(wrong.is_err(), "it does not fit the message: {wrong:?}");
    let queue = QueueSpec::new("shop", "orders", json!({}));
    opening_tells(&queue, &keys(&server), "message: ..").await;
}

#[tokio::test]
async fn json_has_its_prefix_and_stays_as_it_is() {
    let server = SchemaRegistry::start();
    let format = opened(&server, "order.json", JSON).await;
    let text = Bytes::from_static(b"{ \"n\": 1.50 }");
    let payload = patiently(async || format.write(&text).await).await.unwrap();
    assert_eq!((payload[0], payload.len()), (0, text.len() + 5));
    let read = patiently(async || format.read(&payload).await).await;
    assert_eq!(read.unwrap(), text);
}

#[tokio::test]
async fn what_is_no_such_payload_is_told_and_a_registry_that_is_away_is_waited_for() {
    let server = SchemaRegistry::start();
    let format = opened(&server, "order.avsc", AVRO).await;
    for odd in [&b""[..], b"{}", b"\x00\x00", b"\x01\x00\x00\x00\x01\x02"] {
        let odd = Bytes::from_static(odd);
        let told = patiently(async || format.read(&odd).await).await.unwrap_err();
        assert!(told.contains("schema's id"), "{told}");
    }
    let unknown = Bytes::from_static(b"\x00\x00\x0f\x42\x3f\x02");
    let told = patiently(async || format.read(&unknown).await).await.unwrap_err();
    assert!(told.contains("has no schema 999999"), "{told}");
    let torn = Bytes::from_static(b"\x00\x00\x00\x00\x01\x02");
    let read = patiently(async || format.read(&torn).await).await;
    assert!(read.is_err(), "its end is missing");
    // Nobody knows while it is away: no message is given up on.
    let queue = QueueSpec::new("shop", "orders", json!({}));
    let keys = keys(&server);
    let reader = patiently(async || SchemaRegistries.open(&queue, &keys, false).await).await;
    server.kill();
    let away = reader.read(&torn).await.unwrap_err();
    assert!(away.is_transient() && away.to_string().contains(&server.url()), "{away}");
    let error = SchemaRegistries.open(&queue, &keys, true).await.err().unwrap();
    assert!(error.is_transient() && error.to_string().contains("queue `orders`"), "{error}");
    server.restart();
    let error = opening_tells(&queue, &keys, "`orders-value`").await;
    assert!(error.is_transient() && error.to_string().contains("register"), "{error}");
}

/// Asks the server for what a connector does not; it has to do it.
fn ask(server: &SchemaRegistry, method: &str, path: &str, body: &Value) {
    let url = server.url();
    let host = url.split('/').nth(2).unwrap();
    let body = body.to_string();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
         Content-Type: application/json"
    );
    let mut stream = TcpStream::connect(host).unwrap();
    let length = body.len();
    stream
        .write_all(format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
}

/// Somebody may put it back, and no message between has to be wrong for ever.
#[tokio::test]
async fn a_schema_whose_reference_is_missing_is_asked_for_again() {
    let server = SchemaRegistry::start();
    let register = |subject: &str, schema: &Value, references: Value| {
        let body = json!({ "schema": schema.to_string(), "references": references });
        ask(&server, "POST", &format!("/apis/ccompat/v7/subjects/{subject}/versions"), &body);
    };
    let record = |name: &str, field: Value| json!({ "type": "record", "name": name, "namespace": "shop", "fields": [field] });
    register("line", &record("Line", json!({ "name": "n", "type": "int" })), json!([]));
    let order = record("Order", json!({ "name": "line", "type": "Line" }));
    let references = json!([{ "name": "shop.Line", "subject": "line", "version": 1 }]);
    register("orders-value", &order, references);
    let queue = QueueSpec::new("shop", "orders", json!({}));
    let open = |writes| {
        let (keys, queue) = (keys(&server), &queue);
        async move { patiently(async || SchemaRegistries.open(queue, &keys, writes).await).await }
    };
    let order = json!({ "line": { "n": 7 } });
    let payload = written(&open(true).await, &order).await;
    let reader = open(false).await;
    // The server deletes nothing that something refers to, but it can be told to keep it from everybody.
    let set = |state: &str| {
        let path = "/apis/registry/v2/groups/default/artifacts/line/versions/1/state";
        ask(&server, "PUT", path, &json!({ "state": state }));
    };
    set("DISABLED");
    for _ in 0..2 {
        let told = patiently(async || reader.read(&payload).await).await.unwrap_err();
        assert!(told.contains("404"), "{told}");
        let error = SchemaRegistries.open(&queue, &keys(&server), true).await.err().unwrap();
        assert!(error.is_transient(), "{error}");
    }
    set("ENABLED");
    assert_eq!(read(&reader, &payload).await, order);
    assert_eq!(written(&open(true).await, &order).await, payload);
}
