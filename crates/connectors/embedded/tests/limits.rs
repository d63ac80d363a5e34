//! Queues with a limit: what has no room, in a transaction and without one.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{
    Connector, ConnectorEnv, ErrorKind, Limit, Order, Outgoing, Produced, Producer, QueueSpec,
    Reader, Want, WhenFull,
};
use brigade_core::{ByteSize, CauseKind, Message, MessageId};
use brigade_embedded::{Embedded, Options, Store};
use serde_json::{Value, json};

const MAX: u64 = 5;

/// A queue that holds a few messages, and the store that it is in.
struct Place {
    env: ConnectorEnv,
    queue: QueueSpec,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(settings: Value, limit: Limit) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = Store::open(directory.path(), Options::default()).unwrap();
        let mut queue = QueueSpec::new("p", "q", settings);
        queue.limit = limit;
        Self { env: ConnectorEnv { state }, queue, directory }
    }

    async fn producer(&self) -> Arc<dyn Producer> {
        Embedded.producer(&self.queue, &self.env).await.unwrap()
    }

    /// What the queue's groups hand out, each by its number.
    async fn held(&self, group: &str) -> Vec<u128> {
        let reader = Reader { stage: "s".into(), group: group.into(), order: Order::None };
        let consumer = Embedded.consumer(&self.queue, &reader, &self.env).await.unwrap();
        let want = Want { messages: 100, bytes: usize::MAX };
        let taken = consumer.consume(want).await.unwrap();
        consumer.shutdown().await.unwrap();
        taken.iter().map(|incoming| incoming.message.id.0).collect()
    }
}

fn refuses(messages: u64) -> Limit {
    Limit { messages: Some(messages), bytes: None, when_full: WhenFull::Refuse }
}

fn waits(messages: u64) -> Limit {
    Limit { messages: Some(messages), bytes: None, when_full: WhenFull::Wait }
}

fn numbered(n: u128) -> Outgoing {
    Message::new("{}").with_id(MessageId(n)).into()
}

#[tokio::test]
async fn what_a_full_queue_refuses_is_known_before_the_transaction() {
    let place = Place::new(json!({}), refuses(MAX));
    let producer = place.producer().await;
    assert_eq!(producer.store(), Some(place.env.state.store_id()), "one store");
    let batch: Vec<Outgoing> = (1..=8).map(numbered).collect();
    let staged = producer.stage(&batch).await.unwrap();
    let refused: Vec<usize> = staged.rejected.iter().map(|(at, _)| *at).collect();
    assert_eq!(refused, [5, 6, 7]);
    for (_, why) in &staged.rejected {
        assert_eq!(why.kind, CauseKind::Refused);
        assert_eq!(why.message, "queue `q` is full: its limit is 5 messages");
    }
    place.env.state.commit(staged.ops).await.unwrap();
    assert_eq!(place.held("").await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn room_that_is_gone_at_the_transaction_is_asked_for_again() {
    let place = Place::new(json!({}), refuses(MAX));
    let producer = place.producer().await;
    let staged = producer.stage(&[numbered(1), numbered(2)]).await.unwrap();
    assert!(staged.rejected.is_empty(), "{staged:?}");
    let others: Vec<Outgoing> = (10..14).map(numbered).collect();
    let put = producer.produce(&others).await.unwrap();
    assert!(put.iter().all(|outcome| matches!(outcome, Produced::Confirmed)), "{put:?}");
    let error = place.env.state.commit(staged.ops).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let staged = producer.stage(&[numbered(1), numbered(2)]).await.unwrap();
    assert_eq!(staged.rejected.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1]);
    place.env.state.commit(staged.ops).await.unwrap();
    assert_eq!(place.held("").await, [10, 11, 12, 13, 1]);
}

#[tokio::test]
async fn what_was_put_before_needs_no_room() {
    let mut place = Place::new(json!({ "dedup": {} }), refuses(MAX));
    place.queue.groups = vec!["one".into(), "two".into()];
    let producer = place.producer().await;
    producer.produce(&[numbered(1), numbered(2), numbered(3)]).await.unwrap();
    let batch: Vec<Outgoing> = [1, 4, 4, 5, 6, 2].map(numbered).into();
    let staged = producer.stage(&batch).await.unwrap();
    assert_eq!(staged.rejected.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [4]);
    place.env.state.commit(staged.ops).await.unwrap();
    assert_eq!(place.held("one").await, [1, 2, 3, 4, 5]);
    assert_eq!(place.held("two").await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn what_is_longer_than_the_limit_is_too_large_and_does_not_block() {
    let limit = Limit { messages: None, bytes: Some(ByteSize(200)), when_full: WhenFull::Wait };
    let place = Place::new(json!({}), limit);
    let producer = place.producer().await;
    let long = Message::new("x".repeat(150)).with_id(MessageId(2)).into();
    let batch = [numbered(1), long, numbered(3)];
    let said = "214 bytes are more than queue `q` ever holds: its limit is 200 bytes";
    let staged = producer.stage(&batch).await.unwrap();
    assert_eq!(staged.ops.len(), 2);
    let [(1, why)] = &staged.rejected[..] else { panic!("{staged:?}") };
    assert_eq!((why.kind, why.message.as_str()), (CauseKind::TooLarge, said));
    let put = producer.produce(&batch).await.unwrap();
    let [Produced::Confirmed, Produced::Rejected(why), Produced::Confirmed] = &put[..] else {
        panic!("{put:?}")
    };
    assert_eq!((why.kind, why.message.as_str()), (CauseKind::TooLarge, said));
    assert_eq!(place.held("").await, [1, 3]);
    let admin = Embedded.admin(&place.queue, &place.env).await.unwrap();
    let put = admin.put(vec![batch[1].clone()]).await.unwrap();
    assert!(matches!(&put[..], [Produced::Rejected(why)] if why.message == said), "{put:?}");
}

/// Who produces tries again what failed, after what was confirmed.
#[tokio::test]
async fn nothing_goes_ahead_of_what_has_no_room() {
    let limit = Limit { messages: None, bytes: Some(ByteSize(300)), when_full: WhenFull::Wait };
    let place = Place::new(json!({}), limit);
    let producer = place.producer().await;
    let of_a_key = |n: u128, length: usize| -> Outgoing {
        Message::new("x".repeat(length)).with_id(MessageId(n)).with_key("k").into()
    };
    let put =
        producer.produce(&[of_a_key(1, 150), of_a_key(2, 200), of_a_key(3, 1)]).await.unwrap();
    let [Produced::Confirmed, Produced::Failed(full), Produced::Failed(after)] = &put[..] else {
        panic!("{put:?}")
    };
    assert!(full.is_transient() && after.is_transient(), "{put:?}");
    assert_eq!(place.held("").await, [1]);
}

/// Else it would be full for it for ever, and its stage blocked: it cannot be put in parts.
#[tokio::test]
async fn an_empty_queue_takes_all_that_one_message_became() {
    let limits = [waits(MAX), Limit { bytes: Some(ByteSize(400)), ..Limit::default() }];
    for limit in limits {
        let place = Place::new(json!({}), limit);
        let (state, producer) = (&place.env.state, place.producer().await);
        let input = QueueSpec::new("p", "in", json!({}));
        let feed = Embedded.producer(&input, &place.env).await.unwrap();
        feed.produce(&[numbered(101), numbered(102)]).await.unwrap();
        let reader = Reader { stage: "s".into(), group: "".into(), order: Order::None };
        let consumer = Embedded.consumer(&input, &reader, &place.env).await.unwrap();
        let taken = consumer.consume(Want { messages: 2, bytes: usize::MAX }).await.unwrap();
        let receipts: Vec<_> = taken.iter().map(|incoming| incoming.receipt).collect();
        let batch: Vec<Outgoing> = (1..=8).map(numbered).collect();
        let became = producer.stage(&batch).await.unwrap();
        assert!(became.rejected.is_empty(), "{became:?}");
        let full = consumer.ack(receipts.clone(), became.ops.clone()).await.unwrap_err();
        assert!(full.is_transient(), "two messages are two parts: {full}");
        consumer.ack(vec![receipts[0]], became.ops.clone()).await.unwrap();
        let full = consumer.ack(vec![receipts[1]], became.ops.clone()).await.unwrap_err();
        assert!(full.is_transient(), "the queue is not empty: {full}");
        let admin = Embedded.admin(&place.queue, &place.env).await.unwrap();
        assert_eq!(admin.purge().await.unwrap(), 8);
        // Acks that are kept in the state go this way.
        state.commit(became.ops.clone()).await.unwrap_err();
        state.commit_of_one(became.ops).await.unwrap();
        assert_eq!(place.held("").await, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

/// Who waits for a queue that is full waits for ever if it is something else.
#[tokio::test]
async fn an_error_that_stays_is_no_full_queue() {
    let place = Place::new(json!({}), waits(MAX));
    let producer = place.producer().await;
    let db = rusqlite::Connection::open(place.directory.path().join("brigade.db")).unwrap();
    db.execute_batch("DROP TABLE messages").unwrap();
    let error = producer.produce(&[numbered(1), numbered(2)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
}

fn pause() {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(5) {
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn what_expires_makes_room_in_a_full_queue() {
    let place = Place::new(json!({ "retention": "1ms" }), waits(MAX));
    let producer = place.producer().await;
    producer.produce(&[1, 2, 3, 4, 5].map(numbered)).await.unwrap();
    pause();
    let put = producer.produce(&[numbered(6)]).await.unwrap();
    assert!(matches!(put[..], [Produced::Confirmed]), "{put:?}");
}

#[tokio::test]
async fn an_id_is_remembered_for_so_long_and_no_longer() {
    const MANY: u128 = 1000;
    let place = Place::new(json!({ "dedup": { "for": "1ms" } }), refuses(2));
    let producer = place.producer().await;
    for _ in 0..2 {
        producer.produce(&[numbered(1)]).await.unwrap();
        pause();
    }
    let staged = producer.stage(&[numbered(1)]).await.unwrap();
    assert_eq!(staged.rejected.len(), 1, "it is a new one, and the queue is full");
    assert_eq!(place.held("").await, [1, 1]);
    // What is too old goes, however many ids there are.
    let place = Place::new(json!({ "dedup": { "for": "1ms" } }), Limit::default());
    let producer = place.producer().await;
    for from in [0, MANY] {
        let batch: Vec<Outgoing> = (from + 1..=from + MANY).map(numbered).collect();
        producer.produce(&batch).await.unwrap();
        pause();
    }
    let db = rusqlite::Connection::open(place.directory.path().join("brigade.db")).unwrap();
    let count = |sql: &str| db.query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap();
    assert!(count("SELECT count(*) FROM seen") <= 1000);
    assert_eq!(count("SELECT count(*) FROM seen"), count("SELECT seen FROM queues"));
}
