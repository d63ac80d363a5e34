//! A registry that does not give what it is asked for, as no real one does when it is asked to.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use brigade_core::connector::{ConnectorError, Format, Formats as _, QueueSpec};
use brigade_schemas::SchemaRegistries;
use bytes::Bytes;
use serde_json::{Value, json};

const AVRO: &str =
    r#"{ "type": "record", "name": "R", "fields": [{ "name": "at", "type": "shop.Place" }] }"#;
const PLACE: &str = r#"{
    "type": "record", "name": "Place", "namespace": "shop",
    "fields": [{ "name": "n", "type": "double" }]
}"#;
const PROTOBUF: &str = "syntax = \"proto3\"; message R { int64 n = 1; }";
/// What stands for an answer that is cut short.
const CUT: u16 = 200;
/// What stands for the 404 of something that stands before the registry.
const PROXY: u16 = 1404;

/// A registry with one schema, and those that it refers to.
struct Registry {
    url: String,
    /// What the next requests are answered with instead; the schema if there is none.
    refusals: Arc<Mutex<VecDeque<Option<u16>>>>,
}

impl Registry {
    fn start(kind: &'static str, schema: &str) -> Self {
        Self::of(vec![("", json!({ "id": 1, "schemaType": kind, "schema": schema }))])
    }

    /// Has an Avro schema that refers to another.
    fn avro() -> Self {
        let references = [("shop.Place", "place")];
        Self::of(vec![("/subjects/place/", avro(2, PLACE, &[])), ("", avro(1, AVRO, &references))])
    }

    /// Answers with the first whose path the request's begins with.
    fn of(schemas: Vec<(&'static str, Value)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let refusals: Arc<Mutex<VecDeque<Option<u16>>>> = Arc::default();
        let refused = Arc::clone(&refusals);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let refusal = || refused.lock().unwrap().pop_front().flatten();
                answer(stream.unwrap(), refusal, &schemas);
            }
        });
        Self { url, refusals }
    }

    fn refuses(&self, refusals: &[Option<u16>]) {
        self.refusals.lock().unwrap().extend(refusals);
    }

    /// Whether nothing was asked since it was told to refuse the next.
    fn was_left_alone(&self) -> bool {
        self.refusals.lock().unwrap().drain(..).count() == 1
    }

    async fn open(&self, writes: bool) -> Arc<dyn Format> {
        self.try_open(writes).await.unwrap()
    }

    async fn try_open(&self, writes: bool) -> Result<Arc<dyn Format>, ConnectorError> {
        let keys = json!({ "url": self.url, "message": "R" });
        let keys = serde_json::from_value(keys).unwrap();
        let queue = QueueSpec::new("shop", "orders", json!({}));
        SchemaRegistries.open(&queue, &keys, writes).await
    }
}

/// What a registry answers with; `references` are names and subjects.
fn avro(id: u32, schema: &str, references: &[(&str, &str)]) -> Value {
    let reference =
        |(name, subject): &(&str, &str)| json!({ "name": name, "subject": subject, "version": 1 });
    let references: Vec<Value> = references.iter().map(reference).collect();
    json!({ "id": id, "version": 1, "schema": schema, "references": references })
}

fn answer(stream: TcpStream, refusal: impl Fn() -> Option<u16>, schemas: &[(&'static str, Value)]) {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().unwrap().unwrap();
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let path = request.split(' ').nth(1).unwrap();
    let (_, whole) = schemas.iter().find(|(of, _)| path.starts_with(of)).unwrap();
    let whole = whole.to_string();
    let (status, body) = match refusal() {
        None => (200, &whole[..]),
        Some(CUT) => (200, &whole[..whole.len() / 2]),
        Some(PROXY) => (404, "<html>default backend - 404</html>"),
        Some(404) => (404, r#"{ "error_code": 40403, "message": "Schema not found" }"#),
        Some(status) => (status, r#"{ "error_code": 1, "message": "not now" }"#),
    };
    let head =
        format!("HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close");
    let text = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    (&stream).write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_registry_that_refuses_once_is_asked_again_and_no_message_is_given_up_on() {
    let kinds = [
        (Registry::avro(), "{\"at\":{\"n\":7.0}}"),
        (Registry::start("PROTOBUF", PROTOBUF), "{\"n\":7}"),
    ];
    for (registry, output) in kinds {
        let output = Bytes::from_static(output.as_bytes());
        for status in [401, 403, 429, 500, 503, 504, CUT, PROXY] {
            // The schema is asked for first, then what it refers to, or once more.
            for refusals in [&[Some(status)][..], &[None, Some(status)]] {
                registry.refuses(refusals);
                let error = registry.try_open(true).await.err().unwrap();
                assert!(error.is_transient(), "{status}: {error}");
                let payload = registry.open(true).await.write(&output).await.unwrap().unwrap();
                let reader = registry.open(false).await;
                registry.refuses(refusals);
                let error = reader.read(&payload).await.unwrap_err();
                assert!(error.is_transient(), "{status}: {error}");
                assert_eq!(reader.read(&payload).await.unwrap().unwrap(), output);
            }
        }
    }
}

#[tokio::test]
async fn a_schema_is_asked_for_once() {
    let registry = Registry::avro();
    let (writer, reader) = (registry.open(true).await, registry.open(false).await);
    let output = Bytes::from_static(b"{\"at\":{\"n\":7.0}}");
    registry.refuses(&[Some(500)]);
    let payload = writer.write(&output).await.unwrap().unwrap();
    assert!(registry.was_left_alone(), "what it writes with it has from when it was opened");
    assert_eq!(reader.read(&payload).await.unwrap().unwrap(), output);
    registry.refuses(&[Some(500)]);
    assert_eq!(reader.read(&payload).await.unwrap().unwrap(), output);
    assert!(registry.was_left_alone());
}

#[tokio::test]
async fn a_subject_that_is_gone_is_waited_for_and_a_schema_that_is_gone_is_the_payloads_fault() {
    let registry = Registry::avro();
    let output = Bytes::from_static(b"{\"at\":{\"n\":7.0}}");
    let payload = registry.open(true).await.write(&output).await.unwrap().unwrap();
    for refusals in [&[Some(404)][..], &[None, Some(404)]] {
        registry.refuses(refusals);
        assert!(registry.try_open(true).await.err().unwrap().is_transient());
        let reader = registry.open(false).await;
        registry.refuses(refusals);
        assert!(reader.read(&payload).await.unwrap().is_err());
        assert_eq!(reader.read(&payload).await.unwrap().unwrap(), output, "it is there again");
    }
}

/// Both refer to the place, which is defined once.
#[tokio::test]
async fn what_two_schemas_refer_to_and_one_uses_twice_is_one_definition() {
    const ORDER: &str = r#"{ "type": "record", "name": "Order", "namespace": "shop", "fields": [
        { "name": "billing", "type": "Place" }, { "name": "shipping", "type": "shop.Place" },
        { "name": "by", "type": "Person" }
    ] }"#;
    const PERSON: &str = r#"{ "type": "record", "name": "Person", "namespace": "shop", "fields": [
        { "name": "home", "type": "Place" }
    ] }"#;
    let place = ("shop.Place", "place");
    for references in [[("shop.Person", "person"), place], [place, ("shop.Person", "person")]] {
        let registry = Registry::of(vec![
            ("/subjects/place/", avro(1, PLACE, &[])),
            ("/subjects/person/", avro(2, PERSON, &[place])),
            ("", avro(3, ORDER, &references)),
        ]);
        let (n, place) = (Value::from(1.5), |n: &Value| json!({ "n": n }));
        let order =
            json!({ "billing": place(&n), "shipping": place(&n), "by": { "home": place(&n) } });
        let output = serde_json::to_vec(&order).unwrap().into();
        let payload = registry.open(true).await.write(&output).await.unwrap().unwrap();
        assert_eq!(payload.len(), 5 + 3 * 8);
        let read = registry.open(false).await.read(&payload).await.unwrap().unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&read).unwrap(), order);
    }
}

#[tokio::test]
async fn a_writer_with_which_nothing_could_be_written_does_not_open() {
    let odd = Registry::start("AVRO", r#"{ "type": "record", "name": "R" }"#);
    let unread = Registry::start("PROTOBUF", "message R { nonsense }");
    let other = "syntax = \"proto3\"; package shop; message R { int64 n = 1; } message S {}";
    let other = Registry::start("PROTOBUF", other);
    for (registry, expected) in [(odd, "schema 1"), (unread, "`R`"), (other, "`shop.R`, `shop.S`")]
    {
        let error = registry.try_open(true).await.err().unwrap();
        let told = error.to_string();
        assert!(!error.is_transient() && told.contains(expected), "{told}");
        assert!(told.contains("queue `orders`") && told.contains("`orders-value`"), "{told}");
    }
}

#[tokio::test]
async fn what_stands_behind_a_json_schemas_id_is_json() {
    let registry = Registry::start("JSON", "{}");
    let (writer, reader) = (registry.open(true).await, registry.open(false).await);
    let output = Bytes::from_static(b"{ \"n\": 123456789012345678901 }");
    let payload = writer.write(&output).await.unwrap().unwrap();
    assert_eq!(reader.read(&payload).await.unwrap().unwrap(), output, "with all digits");
    for odd in ["", "{", "{} {}", "\u{1}"] {
        let odd = Bytes::from([&payload[..5], odd.as_bytes()].concat());
        assert!(reader.read(&odd).await.unwrap().unwrap_err().contains("no JSON"));
    }
}

#[tokio::test]
async fn an_integer_that_would_become_another_is_not_written() {
    let avro = (Registry::avro(), "{\"at\":{\"n\":123456789012345678901}}");
    let text = PROTOBUF.replace("int64", "double");
    let protobuf = (Registry::start("PROTOBUF", &text), "{\"n\":123456789012345678901}");
    for (registry, output) in [avro, protobuf] {
        let writer = registry.open(true).await;
        let told = writer.write(&output.into()).await.unwrap().unwrap_err();
        assert!(told.contains("123456789012345678901"), "{told}");
    }
}

/// A reader has nothing to ask it for before the first message, and each would be the worse for it.
#[tokio::test]
async fn an_address_that_is_no_registrys_is_told_when_a_queue_is_opened() {
    let registry = Registry::avro();
    for status in [401, 500, 503, PROXY, 404] {
        for writes in [false, true] {
            registry.refuses(&[Some(status)]);
            match registry.try_open(writes).await {
                // The registry that says so is one: it has no schema yet.
                Ok(_) => assert!(status == 404 && !writes, "{status}"),
                Err(error) => {
                    assert!(error.is_transient() && error.to_string().contains(&registry.url))
                }
            }
        }
    }
}

/// The address stands in errors, and in dead letters.
#[test]
fn an_address_with_a_user_in_it_is_refused() {
    let problems = |url: &str| {
        let registry = serde_json::from_value(json!({ "url": url })).unwrap();
        SchemaRegistries.check(&registry)
    };
    assert!(problems("http://host:8081/a@b").is_empty());
    let told = problems("https://me:secret@host");
    assert!(told[0].message.contains("user") && !told[0].message.contains("secret"), "{told:?}");
}
