//! Queues shared with the clients that others use, in both directions: RSMQ's with the Node package
//! `rsmq` and the Python package `PyRSMQ`, streams with `redis-py`, as they are published, on a
//! real server.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use brigade_core::connector::{
    Connector as _, ConnectorEnv, Consumer, Failed, FailedReason, Incoming, Order, Outgoing,
    Produced, Producer, QueueSpec, Reader, Receipt, Want,
};
use brigade_core::{Message, MessageId, Timestamp};
use brigade_memory::MemoryState;
use brigade_redis::{RedisStreams, Rsmq};
use brigade_testkit::servers::{Redis, RsmqClient};
use common::{PATIENCE, again, ask, connect, patient};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

fn env() -> ConnectorEnv {
    ConnectorEnv { state: MemoryState::new() }
}

/// The queue `jobs` with these settings beside the server's.
fn jobs(server: &Redis, more: Value) -> QueueSpec {
    let mut settings = json!({ "url": server.url() });
    let more: serde_json::Map<String, Value> = serde_json::from_value(more).unwrap();
    settings.as_object_mut().unwrap().extend(more);
    QueueSpec::new("shop", "jobs", settings)
}

async fn producer(queue: &QueueSpec) -> Arc<dyn Producer> {
    again(async || Rsmq.producer(queue, &env()).await).await
}

async fn consumer(queue: &QueueSpec) -> Arc<dyn Consumer> {
    let reader = Reader { stage: "test".into(), group: "".into(), order: Order::None };
    again(async || Rsmq.consumer(queue, &reader, &env()).await).await
}

async fn send(producer: &Arc<dyn Producer>, bodies: &[String]) {
    let batch: Vec<Outgoing> =
        bodies.iter().map(|body| Message::new(body.clone()).into()).collect();
    let outcomes = producer.produce(&batch).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Produced::Confirmed)), "{outcomes:?}");
}

async fn take(consumer: &Arc<dyn Consumer>, messages: usize) -> Vec<Incoming> {
    let (mut taken, begun) = (Vec::new(), Instant::now());
    while taken.len() < messages {
        assert!(begun.elapsed() < PATIENCE, "{} of {messages}", taken.len());
        let want = Want { messages: messages - taken.len(), bytes: usize::MAX };
        taken.extend(consumer.consume(want).await.unwrap());
    }
    taken
}

fn body(incoming: &Incoming) -> String {
    String::from_utf8(incoming.message.payload.as_deref().unwrap().to_vec()).unwrap()
}

/// Bodies of all kinds: numbers in order, other scripts, quotes and line ends, a long one.
fn bodies() -> Vec<String> {
    let mut bodies: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    bodies.push("größer 日本語 🦀 \"quoted\"\n\u{0}end".to_owned());
    bodies.push("x".repeat(66_000));
    bodies
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() * 1000.0
}

/// A client, with what its methods answer when there is nothing.
struct Client {
    inner: RsmqClient,
    is_node: bool,
}

impl Client {
    fn node(server: &Redis) -> Self {
        Self { inner: RsmqClient::node(server.port(), false), is_node: true }
    }

    fn python(server: &Redis) -> Self {
        Self { inner: RsmqClient::python(server.port()), is_node: false }
    }

    fn call(&mut self, operation: &str, mut options: Value) -> Value {
        options["qname"] = "jobs".into();
        self.inner.call(operation, options).unwrap()
    }

    fn attribute(&mut self, name: &str) -> i64 {
        let attributes = self.call("getQueueAttributes", json!({}));
        let value = &attributes[name];
        // The Python client tells some as texts.
        let number = || value.as_f64().map(|number| number as i64);
        let number = number().or_else(|| value.as_str()?.parse().ok());
        number.unwrap_or_else(|| panic!("{name} of {attributes}"))
    }

    /// The next message, if one is there: `receiveMessage` or `popMessage`.
    fn next(&mut self, operation: &str, mut options: Value) -> Option<Value> {
        options["qname"] = "jobs".into();
        match self.inner.call(operation, options) {
            Ok(message) => (message["id"].is_string()).then_some(message),
            Err(error) => {
                assert!(error.starts_with("NoMessageInQueue"), "{error}");
                None
            }
        }
    }

    /// Whether it said that it did.
    fn did(&mut self, operation: &str, options: Value) -> bool {
        match self.call(operation, options) {
            Value::Bool(did) => did,
            number => number == 1,
        }
    }
}

/// What Brigade puts on a queue that the client made comes to the client; what the client sends comes
/// to Brigade; both count and delete as the other expects.
async fn both_directions(server: &Redis, mut client: Client) {
    client.call("createQueue", json!({ "vt": 30, "delay": 0, "maxsize": -1 }));
    let queue = jobs(server, json!({ "maxsize": -1 }));
    let sent = bodies();
    send(&producer(&queue).await, &sent).await;
    assert_eq!(client.attribute("msgs"), sent.len() as i64);
    assert_eq!(client.attribute("totalsent"), sent.len() as i64);
    let (mut got, mut ids) = (Vec::new(), BTreeSet::new());
    while let Some(message) = client.next("receiveMessage", json!({})) {
        let id = message["id"].as_str().unwrap().to_owned();
        assert!(id.len() == 32 && id.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
        assert_eq!(message["rc"], 1);
        if client.is_node {
            let age = now() - message["sent"].as_f64().unwrap();
            assert!(age.abs() < 60_000.0, "the id tells when it was sent: {message}");
        }
        got.push(message["message"].as_str().unwrap().to_owned());
        assert!(client.did("deleteMessage", json!({ "id": id })));
        assert!(!client.did("deleteMessage", json!({ "id": id })), "it is gone");
        assert!(ids.insert(id), "twice");
    }
    assert_eq!(got, sent, "in the order of sending");
    assert_eq!(client.attribute("msgs"), 0);
    // The other way.
    for body in &sent {
        client.call("sendMessage", json!({ "message": body }));
    }
    let consumer = consumer(&queue).await;
    let taken = take(&consumer, sent.len()).await;
    assert_eq!(taken.iter().map(body).collect::<Vec<_>>(), sent);
    assert_eq!(client.attribute("hiddenmsgs"), sent.len() as i64, "they are held");
    let receipts = taken.iter().map(|incoming| incoming.receipt).collect();
    assert!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced.is_empty());
    assert_eq!(client.attribute("msgs"), 0);
    assert_eq!(client.attribute("totalrecv"), 2 * sent.len() as i64);
    // Nothing is left behind but the queue itself.
    let left: Vec<String> = fields(server).await;
    assert!(left.iter().all(|field| !field.contains(':') && field.len() < 32), "{left:?}");
}

async fn connection(server: &Redis) -> redis::aio::MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection_with_config(&patient()).await.unwrap()
}

async fn fields(server: &Redis) -> Vec<String> {
    let mut connection = connection(server).await;
    redis::cmd("HKEYS").arg("rsmq:jobs:Q").query_async(&mut connection).await.unwrap()
}

#[tokio::test]
async fn queues_are_shared_with_the_node_client() {
    let server = Redis::start();
    both_directions(&server, Client::node(&server)).await;
}

#[tokio::test]
async fn queues_are_shared_with_the_python_client() {
    let server = Redis::start();
    both_directions(&server, Client::python(&server)).await;
}

/// Another program with a group of its own reads each field of what Brigade puts; what it puts
/// comes with all of them, and with nothing but a payload.
#[tokio::test]
async fn streams_are_shared_with_the_python_client() {
    const ID: u128 = 0xabc;
    let server = Redis::start();
    let mut python = RsmqClient::python(server.port());
    let mut call = |operation: &str, options: Value| python.call(operation, options).unwrap();
    let group = json!({ "args": ["orders", "py", "0"], "mkstream": true });
    assert_eq!(call("xgroup_create", group), true);
    let queue = QueueSpec::new("shop", "orders", json!({ "url": server.url() }));
    let producer = again(async || RedisStreams.producer(&queue, &env()).await).await;
    let reader = Reader { stage: "test".into(), group: "".into(), order: Order::None };
    let consumer = again(async || RedisStreams.consumer(&queue, &reader, &env()).await).await;
    let mut message = Message::new("größer 日本語\n").with_id(MessageId(ID)).with_key("k");
    message.event_time = Some(Timestamp(1_700_000_000_123));
    message.headers.push("trace", Some("a:b".into()));
    message.headers.push("none", None);
    let fields = json!({
        "payload": "größer 日本語\n", "key": "k", "id": format!("{ID:032x}"),
        "event_time": "1700000000123", "h:trace": "a:b", "n:none": "",
    });
    let outcomes = producer.produce(&[message.clone().into()]).await.unwrap();
    assert!(matches!(outcomes[..], [Produced::Confirmed]), "{outcomes:?}");
    let read = call("xreadgroup", json!({ "args": ["py", "one", { "orders": ">" }] }));
    let entries = call("xrange", json!({ "name": "orders" }));
    let [entry] = &entries.as_array().unwrap()[..] else { panic!("{entries}") };
    assert_eq!(entry[1], fields);
    assert!(read.to_string().contains(&entry.to_string()), "{read}");
    assert_eq!(call("xack", json!({ "args": ["orders", "py", entry[0]] })), 1);
    assert_eq!(take(&consumer, 1).await[0].message, message);
    // The other way.
    call("xadd", json!({ "name": "orders", "fields": fields }));
    call("xadd", json!({ "name": "orders", "fields": { "payload": "plain" } }));
    let taken = take(&consumer, 2).await;
    assert_eq!(taken[0].message, message);
    assert_eq!(body(&taken[1]), "plain");
    let Message { key, event_time, headers, .. } = &taken[1].message;
    assert!(key.is_none() && event_time.is_none() && headers.is_empty(), "{:?}", taken[1]);
    let held = |pending: Value| pending["pending"].as_u64().unwrap();
    assert_eq!(held(call("xpending", json!({ "args": ["orders", "shop"] }))), 3);
    let receipts = taken.iter().map(|incoming| incoming.receipt).collect();
    assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
    assert_eq!(held(call("xpending", json!({ "args": ["orders", "shop"] }))), 1, "the first");
}

/// A queue that a client deletes under who reads and who writes is whole again, as the clients see it.
#[tokio::test]
async fn a_queue_that_a_client_deletes_is_made_again() {
    let server = Redis::start();
    for mut client in [Client::node(&server), Client::python(&server)] {
        let queue = jobs(&server, json!({ "vt": "7s", "maxsize": 2048 }));
        let (producer, consumer) = (producer(&queue).await, consumer(&queue).await);
        for _ in 0..2 {
            client.call("deleteQueue", json!({}));
            send(&producer, &["one".to_owned()]).await;
            let listed = client.inner.call("listQueues", json!({})).unwrap();
            assert!(listed.as_array().unwrap().contains(&json!("jobs")), "{listed}");
            let wanted =
                [("vt", 7), ("delay", 0), ("maxsize", 2048), ("msgs", 1), ("totalsent", 1)];
            for (name, value) in wanted {
                assert_eq!(client.attribute(name), value, "{name}");
            }
            let taken = take(&consumer, 1).await;
            let ops = producer.stage(&[Message::new("two").into()]).await.unwrap().ops;
            assert_eq!(consumer.ack(vec![taken[0].receipt], ops).await.unwrap().fenced, []);
            assert_eq!(client.attribute("msgs"), 1);
            assert_eq!(client.next("popMessage", json!({})).unwrap()["message"], "two");
        }
        client.call("deleteQueue", json!({}));
    }
}

/// Counts, hiding and giving back mean the same to all of them.
#[tokio::test]
async fn receive_counts_and_visibility_are_told_to_the_clients_and_by_them() {
    let server = Redis::start();
    for mut client in [Client::node(&server), Client::python(&server)] {
        let queue = jobs(&server, json!({}));
        let (producer, consumer) = (producer(&queue).await, consumer(&queue).await);
        send(&producer, &["once".to_owned()]).await;
        let taken = take(&consumer, 1).await;
        assert!(client.next("receiveMessage", json!({})).is_none(), "it is held");
        let reason = FailedReason::Attempt { attempts: 1, error: "no".into() };
        let failed = Failed { receipt: taken[0].receipt, reason, delay: Duration::ZERO };
        consumer.on_fail(vec![failed]).await.unwrap();
        let message = client.next("receiveMessage", json!({ "vt": 60 })).expect("it is back");
        assert_eq!((&message["rc"], &message["message"]), (&json!(2), &json!("once")));
        let id = message["id"].clone();
        assert!(client.did("changeMessageVisibility", json!({ "id": id, "vt": 0 })));
        let again = take(&consumer, 1).await;
        assert_eq!(
            (again[0].attempts, again[0].redeliveries),
            (1, 1),
            "the client's is no attempt"
        );
        let receipts = vec![again[0].receipt];
        assert!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced.is_empty());
        // Delayed ones are there, and hidden.
        let delay = Some(Duration::from_secs(600));
        let late = Outgoing { message: Message::new("later"), delay };
        producer.produce(&[late]).await.unwrap();
        assert_eq!((client.attribute("msgs"), client.attribute("hiddenmsgs")), (1, 1));
        assert!(client.next("popMessage", json!({})).is_none());
        send(&producer, &["now".to_owned()]).await;
        let popped = client.next("popMessage", json!({})).expect("it is there");
        assert_eq!(popped["message"], "now");
        consumer.shutdown().await.unwrap();
        client.call("deleteQueue", json!({}));
    }
}

/// What a client holds by now is not touched by Brigade's late ack.
#[tokio::test]
async fn a_late_ack_does_not_take_a_message_from_a_client() {
    let server = Redis::start();
    let mut client = Client::node(&server);
    let mut beside = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let mut bob = redis::cmd("ACL");
    bob.arg(&["SETUSER", "bob", "reset", "on", ">secret", "~*", "&*", "+@all"]);
    bob.exec(&mut beside).unwrap();
    let url = server.url().replace("//", "//bob:secret@");
    let queue = jobs(&server, json!({ "vt": "1s", "url": url }));
    let (producer, consumer) = (producer(&queue).await, consumer(&queue).await);
    send(&producer, &["slow".to_owned()]).await;
    let taken = take(&consumer, 1).await;
    // It cannot be renewed: its second passes.
    redis::cmd("ACL").arg(&["SETUSER", "bob", "-zadd"]).exec(&mut beside).unwrap();
    let begun = Instant::now();
    let message = loop {
        assert!(begun.elapsed() < PATIENCE, "it is not given to another");
        match client.next("receiveMessage", json!({ "vt": 60 })) {
            Some(message) => break message,
            None => tokio::task::yield_now().await,
        }
    };
    let receipt = taken[0].receipt;
    assert_eq!(consumer.ack(vec![receipt], Vec::new()).await.unwrap().fenced, [receipt]);
    assert_eq!(client.attribute("msgs"), 1, "the client has it");
    assert!(client.did("deleteMessage", json!({ "id": message["id"] })));
}

/// By when a message is visible to all, in milliseconds.
fn visible_from(server: &Redis, id: &str) -> f64 {
    ask(&mut connect(server), &format!("ZSCORE rsmq:jobs {id}"))
}

/// Brigade holds a message that a client then has for a day: its receipt, and its id.
async fn overtaken(consumer: &Arc<dyn Consumer>, client: &mut Client) -> (Receipt, String) {
    client.call("sendMessage", json!({ "message": "theirs" }));
    let receipt = take(consumer, 1).await[0].receipt;
    let id = consumer.locate(receipt).rsplit_once('#').unwrap().1.to_owned();
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE, "the client does not get it");
        assert!(client.did("changeMessageVisibility", json!({ "id": id, "vt": 0 })));
        // Brigade may just have hidden it again: as yet it is Brigade's.
        if let Some(message) = client.next("receiveMessage", json!({ "vt": 24 * 60 * 60 })) {
            assert_eq!(message["id"], id);
            return (receipt, id);
        }
    }
}

/// Less than the day for which the client has hidden it, more than Brigade would ever do here.
const HALF_A_DAY_MS: f64 = 12.0 * 60.0 * 60.0 * 1000.0;

/// What Brigade holds it hides again and again, but not what a client has received since.
#[tokio::test]
async fn a_late_holder_does_not_change_for_how_long_a_client_has_a_message() {
    let server = Redis::start();
    let mut client = Client::node(&server);
    let queue = jobs(&server, json!({ "vt": "3s" }));
    let (producer, consumer) = (producer(&queue).await, consumer(&queue).await);
    let (receipt, theirs) = overtaken(&consumer, &mut client).await;
    // Received after that: when this one is hidden again, so would theirs have been.
    send(&producer, &["ours".to_owned()]).await;
    let held = take(&consumer, 1).await[0].receipt;
    let ours = consumer.locate(held).rsplit_once('#').unwrap().1.to_owned();
    let (before, begun) = (visible_from(&server, &ours), Instant::now());
    while visible_from(&server, &ours) <= before {
        assert!(begun.elapsed() < PATIENCE, "what is held is not hidden again");
        tokio::task::yield_now().await;
    }
    assert!(visible_from(&server, &theirs) > now() + HALF_A_DAY_MS, "it was taken from the client");
    let acked = consumer.ack(vec![receipt, held], Vec::new()).await.unwrap();
    assert_eq!(acked.fenced, [receipt]);
    assert!(client.did("deleteMessage", json!({ "id": theirs })));
}

/// Nor is it given back by who held it before, and no attempt is noted.
#[tokio::test]
async fn a_late_failure_does_not_take_a_message_from_a_client() {
    let server = Redis::start();
    let mut client = Client::node(&server);
    // Nothing is renewed meanwhile: only the failure itself could find out.
    let queue = jobs(&server, json!({ "vt": "1h" }));
    let (_producer, consumer) = (producer(&queue).await, consumer(&queue).await);
    let (receipt, id) = overtaken(&consumer, &mut client).await;
    let reason = FailedReason::Attempt { attempts: 1, error: "no".into() };
    let failed = Failed { receipt, reason, delay: Duration::ZERO };
    assert_eq!(consumer.on_fail(vec![failed]).await.unwrap().fenced, [receipt]);
    assert!(visible_from(&server, &id) > now() + HALF_A_DAY_MS, "it was taken from the client");
    let noted: u64 = ask(&mut connect(&server), "HLEN rsmq:jobs:brigade:attempts");
    assert_eq!(noted, 0, "an attempt of one that has it no more");
    assert!(client.did("deleteMessage", json!({ "id": id })));
}

/// What the Node client's own tests look at, on a queue that Brigade works on: a queue that is not there, attributes set
/// one by one, an id that nobody knows, and the order of what is visible again.
#[tokio::test]
async fn the_node_clients_own_cases_hold_while_brigade_works() {
    let server = Redis::start();
    let mut client = Client::node(&server);
    let queue = jobs(&server, json!({ "vt": "30s", "maxsize": 1024 }));
    let (producer, consumer) = (producer(&queue).await, consumer(&queue).await);
    send(&producer, &["held".to_owned()]).await;
    let held = take(&consumer, 1).await;
    let lost = client.inner.call("sendMessage", json!({ "qname": "none", "message": "lost" }));
    assert!(lost.unwrap_err().starts_with("queueNotFound"));
    let mut wanted = BTreeMap::from([("vt", 30), ("delay", 0), ("maxsize", 1024)]);
    for (name, value) in [("vt", 12), ("delay", 7), ("maxsize", 2048), ("delay", 0)] {
        client.call("setQueueAttributes", json!({ name: value }));
        wanted.insert(name, value);
        for (name, value) in &wanted {
            assert_eq!(client.attribute(name), *value, "{name}");
        }
    }
    let id = "0".repeat(32);
    assert!(!client.did("changeMessageVisibility", json!({ "id": id, "vt": 5 })));
    assert!(!client.did("deleteMessage", json!({ "id": id })));
    assert_eq!((client.attribute("msgs"), client.attribute("hiddenmsgs")), (1, 1), "what is held");
    send(&producer, &["one", "two", "three"].map(str::to_owned)).await;
    let first = client.next("receiveMessage", json!({ "vt": 1 })).expect("it is there");
    assert_eq!(first["message"], "one");
    // The first is behind the others now, as its second ends after they were sent.
    let mut taken = take(&consumer, 3).await;
    assert_eq!(taken.iter().map(body).collect::<Vec<_>>(), ["two", "three", "one"]);
    assert_eq!(taken[2].redeliveries, 1, "the client's counts");
    taken.extend(held);
    let receipts = taken.iter().map(|incoming| incoming.receipt).collect();
    assert_eq!(consumer.ack(receipts, Vec::new()).await.unwrap().fenced, []);
    assert_eq!((client.attribute("msgs"), client.attribute("totalrecv")), (0, 5));
}

/// The file decides how its stages use a queue, whoever made it and with what settings.
#[tokio::test]
async fn who_made_a_queue_does_not_decide_how_it_is_used() {
    let server = Redis::start();
    let mut client = Client::node(&server);
    client.call("createQueue", json!({ "vt": 5, "maxsize": 2048 }));
    let queue = jobs(&server, json!({ "vt": "500s", "maxsize": 1024 }));
    let (producer, consumer) = (producer(&queue).await, consumer(&queue).await);
    assert_eq!(
        (client.attribute("vt"), client.attribute("maxsize")),
        (5, 2048),
        "it is the client's"
    );
    client.call("sendMessage", json!({ "message": "held" }));
    take(&consumer, 1).await;
    let mut connection = connection(&server).await;
    let range = redis::cmd("ZRANGE").arg("rsmq:jobs").arg(0).arg(0).arg("WITHSCORES").clone();
    let held: Vec<(String, f64)> = range.query_async(&mut connection).await.unwrap();
    let hidden_for = held[0].1 - now();
    assert!((400_000.0..510_000.0).contains(&hidden_for), "for its own `vt`: {hidden_for} ms");
    let long: Outgoing = Message::new("x".repeat(1500)).into();
    let outcomes = producer.produce(&[long]).await.unwrap();
    assert!(matches!(outcomes[0], Produced::Rejected(_)), "its own `maxsize`: {outcomes:?}");
    // One that Brigade makes has the file's settings.
    client.call("deleteQueue", json!({}));
    again(async || Rsmq.producer(&queue, &env()).await).await;
    assert_eq!((client.attribute("vt"), client.attribute("maxsize")), (500, 1024));
    let long = json!({ "qname": "jobs", "message": "x".repeat(1500) });
    let error = client.inner.call("sendMessage", long).unwrap_err();
    assert!(error.contains("messageTooLong"), "{error}");
}

#[tokio::test]
async fn ids_are_unique_over_many_senders() {
    const SENDERS: usize = 10;
    let server = Redis::start();
    let queue = jobs(&server, json!({}));
    let senders = (0..SENDERS).map(async |sender| {
        let bodies: Vec<String> = (0..100).map(|n| format!("{sender}.{n}")).collect();
        send(&producer(&queue).await, &bodies).await;
    });
    futures_util::future::join_all(senders).await;
    let (mut client, mut ids, mut bodies) =
        (Client::node(&server), BTreeSet::new(), BTreeSet::new());
    while let Some(message) = client.next("popMessage", json!({})) {
        let id = message["id"].as_str().unwrap().to_owned();
        assert!(id.len() == 32 && ids.insert(id));
        bodies.insert(message["message"].as_str().unwrap().to_owned());
    }
    assert_eq!((ids.len(), bodies.len()), (SENDERS * 100, SENDERS * 100));
}

/// Both publish how many there are, on the same channel.
#[tokio::test]
async fn realtime_notices_are_those_of_the_node_client() {
    let server = Redis::start();
    let queue = jobs(&server, json!({ "realtime": true }));
    let producer = producer(&queue).await;
    let client = redis::Client::open(server.url()).unwrap();
    let mut heard = client.get_async_pubsub().await.unwrap();
    heard.subscribe("rsmq:rt:jobs").await.unwrap();
    let mut heard = heard.on_message();
    let mut node = Client { inner: RsmqClient::node(server.port(), true), is_node: true };
    let mut told = Vec::new();
    for turn in 0..4 {
        match turn % 2 {
            0 => drop(node.call("sendMessage", json!({ "message": "theirs" }))),
            _ => send(&producer, &["ours".to_owned()]).await,
        }
        let notice = tokio::time::timeout(PATIENCE, heard.next()).await.unwrap().unwrap();
        told.push(notice.get_payload::<String>().unwrap());
    }
    assert_eq!(told, ["1", "2", "3", "4"]);
}

#[test]
fn names_and_limits_that_the_clients_refuse_are_refused() {
    let problems = |settings: Value| {
        let mut queue = QueueSpec::new("shop", "jobs", settings);
        queue.settings["url"] = "redis://127.0.0.1".into();
        Rsmq.check(&queue).len()
    };
    let long = "x".repeat(65);
    for name in ["a b", "a:b", "a.b", "größe", "", &long] {
        assert_eq!(problems(json!({ "queue": name })), 1, "{name}");
    }
    for wrong in [json!({ "vt": "0s" }), json!({ "vt": "1500ms" }), json!({ "vt": "10000000s" })] {
        assert_eq!(problems(wrong.clone()), 1, "{wrong}");
    }
    for maxsize in [0, 1023, 65_537, -2] {
        assert_eq!(problems(json!({ "maxsize": maxsize })), 1, "{maxsize}");
    }
    for right in [json!({}), json!({ "queue": "A-b_9", "vt": "9999999s", "maxsize": -1 })] {
        assert_eq!(problems(right.clone()), 0, "{right}");
    }
}
