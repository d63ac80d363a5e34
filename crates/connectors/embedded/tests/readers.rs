//! Queues whose readers become other ones: what is there goes along, in the order of its keys.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{
    Connector, Consumer, Failed, FailedReason, Incoming, Limit, Order, QueueAdmin, QueueSpec,
    Reader, Want, WhenFull,
};
use brigade_core::{Message, MessageId};
use brigade_embedded::Embedded;
use common::Place;
use serde_json::json;

impl Place {
    /// The queue as a file has it in which these stages read it.
    fn read_by(&self, stages: &[&str]) -> QueueSpec {
        let mut queue = self.queue.clone();
        if stages.len() > 1 {
            queue.groups = stages.iter().map(|stage| (*stage).into()).collect();
        }
        queue
    }

    async fn consumer(&self, stage: &str, stages: &[&str], order: Order) -> Arc<dyn Consumer> {
        let queue = self.read_by(stages);
        let group = if stages.len() > 1 { stage.into() } else { "".into() };
        let reader = Reader { stage: stage.into(), group, order };
        Embedded.consumer(&queue, &reader, &self.env).await.unwrap()
    }

    async fn admin(&self) -> Arc<dyn QueueAdmin> {
        Embedded.admin(&self.queue, &self.env).await.unwrap()
    }

    /// Messages by a file with one reader, each with its key.
    async fn put(&self, messages: &[(u128, &'static str)]) {
        self.put_for(&["a"], messages).await;
    }

    /// Messages by a file in which these stages read the queue.
    async fn put_for(&self, stages: &[&str], messages: &[(u128, &'static str)]) {
        let producer = Embedded.producer(&self.read_by(stages), &self.env).await.unwrap();
        let batch: Vec<_> = messages
            .iter()
            .map(|(n, key)| Message::new("{}").with_id(MessageId(*n)).with_key(*key).into())
            .collect();
        for produced in producer.produce(&batch).await.unwrap() {
            produced.confirmed().unwrap();
        }
    }

    /// Two stages that read it by key, then only one of them, to which three messages come.
    async fn two_then_one() -> (Self, Arc<dyn Consumer>) {
        let place = Self::new(json!({}));
        for stage in BOTH {
            place.consumer(stage, BOTH, Order::Key).await.shutdown().await.unwrap();
        }
        let only = place.consumer("a", &["a"], Order::Key).await;
        place.put(&[(1, "x"), (2, "x"), (3, "y")]).await;
        (place, only)
    }

    /// The same, where the only reader has parked the first message and is gone.
    async fn parked() -> Self {
        let (place, only) = Self::two_then_one().await;
        let first = taken(only.as_ref(), 1).await;
        let reason = FailedReason::Parked { attempts: 3, error: "no luck".to_owned() };
        let parked = Failed { receipt: first[0].receipt, reason, delay: Duration::ZERO };
        only.on_fail(vec![parked]).await.unwrap();
        only.shutdown().await.unwrap();
        place
    }
}

const BOTH: &[&str] = &["a", "b"];
const NONE: &[u128] = &[];

impl Place {
    /// A file with these readers is used for a while.
    async fn opened_by(&self, stages: &[&str], order: Order) {
        for stage in stages {
            self.consumer(stage, stages, order).await.shutdown().await.unwrap();
        }
    }

    /// What is there for each group.
    async fn held(&self) -> Vec<(String, Vec<u128>)> {
        let admin = self.admin().await;
        let mut held: Vec<(String, Vec<u128>)> = Vec::new();
        for status in admin.status().await.unwrap() {
            held.push((status.group, Vec::new()));
        }
        for peeked in admin.peek(0, 99).await.unwrap() {
            let group = held.iter_mut().find(|(group, _)| *group == peeked.group);
            group.expect("a group with messages is told").1.push(peeked.message.id.0);
        }
        // What is counted is what is there.
        for (status, (_, held)) in admin.status().await.unwrap().iter().zip(&held) {
            assert_eq!(status.lag.ready, Some(held.len() as u64));
        }
        held
    }
}

fn group(name: &str, numbers: &[u128]) -> (String, Vec<u128>) {
    (name.to_owned(), numbers.to_vec())
}

async fn taken(consumer: &dyn Consumer, messages: usize) -> Vec<Incoming> {
    let taken = consumer.consume(Want { messages, bytes: usize::MAX });
    tokio::time::timeout(Duration::from_secs(60), taken).await.expect("there is something").unwrap()
}

/// A consumer asks, and gets nothing.
async fn nothing_for(consumer: &dyn Consumer, place: &Place) {
    let admin = place.admin().await;
    tokio::select! {
        biased;
        taken = consumer.consume(Want { messages: 9, bytes: usize::MAX }) => {
            panic!("it got {:?}", numbers(&taken.unwrap()));
        }
        // What is asked after it is answered after it.
        status = admin.status() => drop(status.unwrap()),
    }
}

fn numbers(taken: &[Incoming]) -> Vec<u128> {
    taken.iter().map(|incoming| incoming.message.id.0).collect()
}

#[tokio::test]
async fn what_is_shared_out_again_keeps_the_order_of_its_keys() {
    let (place, only) = Place::two_then_one().await;
    only.shutdown().await.unwrap();
    for stage in BOTH {
        let first = place.consumer(stage, BOTH, Order::Key).await;
        assert_eq!(numbers(&taken(first.as_ref(), 1).await), [1]);
        let second = place.consumer(stage, BOTH, Order::Key).await;
        assert_eq!(numbers(&taken(second.as_ref(), 9).await), [3], "somebody works on `x`");
    }
}

#[tokio::test]
async fn what_is_parked_stays_so_when_it_is_shared_out() {
    let place = Place::parked().await;
    let consumer = place.consumer("a", BOTH, Order::Key).await;
    assert_eq!(numbers(&taken(consumer.as_ref(), 9).await), [3]);
    let peeked = place.admin().await.peek(0, 9).await.unwrap();
    let parked = peeked.iter().filter(|peeked| peeked.parked.as_deref() == Some("no luck"));
    assert_eq!(parked.map(|peeked| peeked.message.id.0).collect::<Vec<_>>(), [1, 1], "one a stage");
    assert_eq!(place.admin().await.release(None).await.unwrap(), 2);
    assert_eq!(numbers(&taken(consumer.as_ref(), 9).await), [1, 2]);
    // Without the order of keys nothing is parked.
    let place = Place::parked().await;
    let consumer = place.consumer("a", BOTH, Order::None).await;
    assert_eq!(numbers(&taken(consumer.as_ref(), 9).await), [1, 2, 3]);
}

/// As when a new reader is deployed, rolled back and deployed again.
#[tokio::test]
async fn a_reader_that_is_put_back_gets_nothing_twice() {
    for order in [Order::None, Order::Key] {
        let place = Place::new(json!({}));
        place.opened_by(BOTH, order).await;
        place.put_for(BOTH, &[(1, "x"), (2, "y")]).await;
        // The second reader does the first message, and has the second before it.
        let second = place.consumer("b", BOTH, order).await;
        let receipts = taken(second.as_ref(), 1).await.iter().map(|one| one.receipt).collect();
        second.ack(receipts, Vec::new()).await.unwrap();
        second.shutdown().await.unwrap();
        place.opened_by(&["a"], order).await;
        place.put(&[(3, "z"), (4, "w")]).await;
        place.opened_by(BOTH, order).await;
        let now = [group("", NONE), group("a", &[1, 2, 3, 4]), group("b", &[2, 3, 4])];
        assert_eq!(place.held().await, now);
        // And once more.
        place.opened_by(&["a"], order).await;
        place.opened_by(BOTH, order).await;
        assert_eq!(place.held().await, now);
    }
}

/// It is the only reader of all that is there, whoever had it before.
#[tokio::test]
async fn what_another_only_reader_had_before_it_is_for_all() {
    let place = Place::new(json!({}));
    place.opened_by(BOTH, Order::None).await;
    place.put_for(&["a", "b"], &[(1, "x")]).await;
    place.opened_by(&["a"], Order::None).await;
    place.opened_by(&["c"], Order::None).await;
    place.opened_by(BOTH, Order::None).await;
    let now = [group("", NONE), group("a", &[1]), group("b", &[1, 1])];
    assert_eq!(place.held().await, now);
}

/// What was put for the only reader before it took over what it had goes to all, if part of it twice.
#[tokio::test]
async fn what_is_put_for_all_is_withheld_from_nobody() {
    let place = Place::new(json!({}));
    place.opened_by(BOTH, Order::None).await;
    let newer = Embedded.producer(&place.read_by(BOTH), &place.env).await.unwrap();
    let put = async |n| {
        let outgoing = Message::new("{}").with_id(MessageId(n)).with_key("x").into();
        newer.produce(&[outgoing]).await.unwrap().remove(0).confirmed().unwrap();
    };
    put(1).await;
    place.put(&[(2, "x")]).await;
    put(3).await;
    place.opened_by(&["a"], Order::None).await;
    place.opened_by(BOTH, Order::None).await;
    let now = [group("", NONE), group("a", &[1, 2, 3]), group("b", &[1, 3, 2, 3])];
    assert_eq!(place.held().await, now);
}

#[tokio::test]
async fn a_reader_that_is_new_gets_what_the_only_one_has_from_before() {
    let place = Place::new(json!({}));
    place.opened_by(BOTH, Order::None).await;
    place.put_for(BOTH, &[(1, "x")]).await;
    place.opened_by(&["a"], Order::None).await;
    place.put(&[(2, "x")]).await;
    place.opened_by(&["a", "b", "c"], Order::None).await;
    let now = [group("", NONE), group("a", &[1, 2]), group("b", &[1, 2]), group("c", &[1, 2])];
    assert_eq!(place.held().await, now);
}

/// It is put again by who was killed before its ack, after the readers have become other ones.
#[tokio::test]
async fn what_was_put_once_is_remembered_when_the_readers_change() {
    let mut place = Place::new(json!({}));
    place.queue = QueueSpec::new("p", "q", json!({ "dedup": {} }));
    place.opened_by(&["a"], Order::None).await;
    place.put(&[(1, "x")]).await;
    // Before they have opened the queue as after it, and with all of it done.
    place.put_for(BOTH, &[(1, "x"), (2, "x")]).await;
    place.opened_by(BOTH, Order::None).await;
    place.put_for(BOTH, &[(1, "x"), (2, "x")]).await;
    let mut now = [group("", NONE), group("a", &[1, 2]), group("b", &[1, 2])];
    assert_eq!(place.held().await, now);
    place.admin().await.purge().await.unwrap();
    place.opened_by(&["b"], Order::None).await;
    place.put(&[(1, "x"), (2, "x"), (3, "x")]).await;
    now = [group("", &[3]), group("a", NONE), group("b", NONE)];
    assert_eq!(place.held().await, now);
}

/// Nor is there room kept for it.
#[tokio::test]
async fn what_was_put_for_others_needs_no_room_in_a_full_queue() {
    let mut place = Place::new(json!({}));
    place.queue = QueueSpec::new("p", "q", json!({ "dedup": {} }));
    place.queue.limit =
        Limit { messages: Some(1), when_full: WhenFull::Refuse, ..Limit::default() };
    place.put(&[(1, "x")]).await;
    place.opened_by(BOTH, Order::None).await;
    let queue = place.read_by(BOTH);
    let producer = Embedded.producer(&queue, &place.env).await.unwrap();
    let outgoing = Message::new("{}").with_id(MessageId(1)).into();
    let staged = producer.stage(&[outgoing]).await.unwrap();
    assert_eq!((staged.rejected.len(), staged.ops.len()), (0, 1));
    place.env.state.commit(staged.ops).await.unwrap();
    assert_eq!(place.held().await, [group("", NONE), group("a", &[1]), group("b", &[1])]);
}

#[tokio::test]
async fn what_is_remembered_for_former_readers_is_forgotten_in_its_time() {
    let mut place = Place::new(json!({}));
    place.queue = QueueSpec::new("p", "q", json!({ "dedup": { "for": "1ms" } }));
    place.put(&[(1, "x")]).await;
    let seen = || {
        let db = place.database();
        db.query_row("SELECT count(*) FROM seen WHERE mid = ?1", [1_u128.to_le_bytes()], |row| {
            row.get::<_, u64>(0)
        })
    };
    let forgotten = async {
        while seen().unwrap() > 0 {
            place.put_for(BOTH, &[(2, "x")]).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), forgotten).await.expect("it is forgotten");
    let left = |row: &rusqlite::Row<'_>| row.get::<_, u64>(0);
    let db = place.database();
    let sql = "SELECT seen FROM queues WHERE grp = ''";
    assert_eq!(db.query_row(sql, [], left), Ok(0));
}

/// As when the process that puts is the first to be restarted with the file in which another stage
/// reads it.
#[tokio::test]
async fn what_is_put_for_new_readers_comes_after_what_was_there() {
    for by_command in [true, false] {
        let place = Place::new(json!({}));
        place.opened_by(&["a"], Order::Key).await;
        place.put(&[(1, "x"), (2, "x")]).await;
        match by_command {
            true => {
                let admin = Embedded.admin(&place.read_by(BOTH), &place.env).await.unwrap();
                assert_eq!(admin.peek(0, 9).await.unwrap().len(), 2, "to look changes nothing");
                let outgoing = Message::new("{}").with_id(MessageId(3)).with_key("x").into();
                admin.put(vec![outgoing]).await.unwrap();
            }
            false => place.put_for(BOTH, &[(3, "x")]).await,
        }
        place.opened_by(BOTH, Order::Key).await;
        let now = [group("", NONE), group("a", &[1, 2, 3]), group("b", &[1, 2, 3])];
        assert_eq!(place.held().await, now);
    }
}

/// It goes on with what is its own.
#[tokio::test]
async fn who_reads_alone_loses_nothing_to_a_process_that_puts_for_two() {
    let place = Place::new(json!({}));
    let older = place.consumer("a", &["a"], Order::Key).await;
    place.put(&[(1, "x"), (2, "x")]).await;
    place.put_for(BOTH, &[(3, "x")]).await;
    let its = taken(older.as_ref(), 9).await;
    assert_eq!(numbers(&its), [1, 2, 3]);
    older.ack(its.iter().map(|one| one.receipt).collect(), Vec::new()).await.unwrap();
    place.opened_by(BOTH, Order::Key).await;
    let now = [group("", NONE), group("a", NONE), group("b", &[1, 2, 3])];
    assert_eq!(place.held().await, now);
}

/// As while a process with the file from before, in which one stage reads it, is still to be restarted.
#[tokio::test]
async fn what_is_put_for_the_only_reader_of_before_goes_to_all_that_read_it_now() {
    for order in [Order::None, Order::Key, Order::Queue] {
        let place = Place::new(json!({}));
        let older = place.consumer("a", &["a"], order).await;
        let first = place.consumer("a", BOTH, order).await;
        let second = place.consumer("b", BOTH, order).await;
        place.put(&[(1, "x")]).await;
        for now in [first, second] {
            let its = taken(now.as_ref(), 9).await;
            assert_eq!(numbers(&its), [1]);
            now.ack(vec![its[0].receipt], Vec::new()).await.unwrap();
        }
        // But not back: each process would take it from the other.
        place.put_for(BOTH, &[(2, "y")]).await;
        nothing_for(older.as_ref(), &place).await;
    }
}

#[tokio::test]
async fn what_is_put_for_readers_of_before_goes_to_the_only_one_that_there_is_now() {
    for order in [Order::None, Order::Key, Order::Queue] {
        let place = Place::new(json!({}));
        let older = place.consumer("a", BOTH, order).await;
        let only = place.consumer("a", &["a"], order).await;
        place.put_for(BOTH, &[(1, "x")]).await;
        let its = taken(only.as_ref(), 9).await;
        assert_eq!(numbers(&its), [1]);
        only.ack(vec![its[0].receipt], Vec::new()).await.unwrap();
        place.put(&[(2, "y")]).await;
        nothing_for(older.as_ref(), &place).await;
    }
}

#[tokio::test]
async fn what_is_taken_over_waits_for_what_is_worked_on() {
    for order in [Order::Key, Order::Queue] {
        let place = Place::new(json!({}));
        let older = place.consumer("a", BOTH, order).await;
        place.put_for(BOTH, &[(1, "x")]).await;
        taken(older.as_ref(), 9).await;
        let only = place.consumer("a", &["a"], order).await;
        place.put(&[(2, "x")]).await;
        let second = taken(only.as_ref(), 9).await;
        assert_eq!(numbers(&second), [2], "it cannot know of the first");
        older.shutdown().await.unwrap();
        nothing_for(only.as_ref(), &place).await;
        only.ack(vec![second[0].receipt], Vec::new()).await.unwrap();
        assert_eq!(numbers(&taken(only.as_ref(), 9).await), [1]);
    }
}
