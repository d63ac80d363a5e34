//! A registry that does not give what it is asked for, as no real one does when it is asked to.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use brigade_core::connector::{ConnectorError, Format, Formats as _, QueueSpec};
use brigade_schemas::SchemaRegistries;
use bytes::Bytes;
use serde_json::json;

const AVRO: &str =
    r#"{ "type": "record", "name": "R", "fields": [{ "name": "n", "type": "long" }] }"#;
const PROTOBUF: &str = "syntax = \"proto3\"; message R { int64 n = 1; }";
/// What stands for an answer that is cut short.
const CUT: u16 = 200;
/// What stands for the 404 of something that stands before the registry.
const PROXY: u16 = 1404;

/// A registry with one schema.
struct Registry {
    url: String,
    /// What the next requests are answered with instead; the schema if there is none.
    refusals: Arc<Mutex<VecDeque<Option<u16>>>>,
}

impl Registry {
    fn start(kind: &'static str, schema: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let refusals: Arc<Mutex<VecDeque<Option<u16>>>> = Arc::default();
        let refused = Arc::clone(&refusals);
        let whole =
            json!({ "id": 1, "version": 1, "schemaType": kind, "schema": schema }).to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let refusal = || refused.lock().unwrap().pop_front().flatten();
                answer(stream.unwrap(), refusal, &whole);
            }
        });
        Self { url, refusals }
    }

    fn refuses(&self, refusals: &[Option<u16>]) {
        self.refusals.lock().unwrap().extend(refusals);
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

fn answer(stream: TcpStream, refusal: impl Fn() -> Option<u16>, whole: &str) {
    let mut lines = BufReader::new(&stream).lines();
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let (status, body) = match refusal() {
        None => (200, whole),
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
    for (kind, schema) in [("AVRO", AVRO), ("PROTOBUF", PROTOBUF)] {
        let registry = Registry::start(kind, schema);
        for status in [401, 403, 429, 500, 503, 504, CUT, PROXY] {
            let output = Bytes::from_static(b"{\"n\":7}");
            let writer = registry.open(true).await;
            registry.refuses(&[Some(status)]);
            let error = writer.write(&output).await.unwrap_err();
            assert!(error.is_transient(), "{kind}, {status}: {error}");
            let payload = writer.write(&output).await.unwrap().unwrap();
            // The schema's type is asked for first.
            let reader = registry.open(false).await;
            for refusals in [&[Some(status)][..], &[None, Some(status)]] {
                let reader = registry.open(false).await;
                registry.refuses(refusals);
                let error = reader.read(&payload).await.unwrap_err();
                assert!(error.is_transient(), "{kind}, {status}: {error}");
                assert_eq!(reader.read(&payload).await.unwrap().unwrap(), output);
            }
            assert_eq!(reader.read(&payload).await.unwrap().unwrap(), output);
        }
    }
}

#[tokio::test]
async fn a_subject_that_is_gone_is_waited_for_and_a_schema_that_is_gone_is_the_payloads_fault() {
    let registry = Registry::start("AVRO", AVRO);
    let output = Bytes::from_static(b"{\"n\":7}");
    let writer = registry.open(true).await;
    registry.refuses(&[Some(404)]);
    assert!(writer.write(&output).await.unwrap_err().is_transient());
    let payload = writer.write(&output).await.unwrap().unwrap();
    for refusals in [&[Some(404)][..], &[None, Some(404)]] {
        let reader = registry.open(false).await;
        registry.refuses(refusals);
        assert!(reader.read(&payload).await.unwrap().is_err());
    }
}

/// A reader has nothing to ask it for before the first message, and each would be the worse for it.
#[tokio::test]
async fn an_address_that_is_no_registrys_is_told_when_a_queue_is_opened() {
    let registry = Registry::start("AVRO", AVRO);
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
