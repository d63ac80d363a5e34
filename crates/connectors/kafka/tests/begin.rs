//! Where a group begins, and what its records are known by.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use brigade_core::connector::{Consumer, Lag, Outgoing, PartitionLag, Produced, QueueSpec, Want};
use brigade_core::{Message, MessageId};
use brigade_testkit::servers::Kafka;
use common::{
    PATIENCE, ack, admin, consumer, lag, number, patiently, producer, put, queue, take, take_all,
    with,
};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::json;

/// Waits until the consumer has partitions and nothing waits for it.
async fn is_at_the_end(consumer: &Arc<dyn Consumer>) {
    let begun = Instant::now();
    loop {
        let lag = lag(consumer).await;
        if lag.in_flight == Some(0) && lag.ready == Some(0) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{lag:?}");
        assert!(take(consumer, 1).await.is_empty(), "what was there before is not its business");
    }
}

/// So that one sees which key, or which member, holds up the others.
#[tokio::test]
async fn what_waits_is_told_of_each_partition() {
    let queue = queue(3, &Kafka::shared().servers());
    let topic = queue.settings["topic"].as_str().unwrap().to_owned();
    let to = |n: u64, partition: &str| -> Outgoing {
        Message::new(n.to_string()).with_header("brigade-partition", partition.to_owned()).into()
    };
    let batch = [to(0, "0"), to(1, "0"), to(2, "0"), to(3, "2")];
    let outcomes = producer(&queue).await.produce(&batch).await.unwrap();
    assert!(outcomes.iter().all(|one| matches!(one, Produced::Confirmed)), "{outcomes:?}");
    let waiting = |lag: Lag| {
        let of = |part: PartitionLag| (part.partition, part.messages);
        lag.partitions.into_iter().map(of).collect::<BTreeMap<_, _>>()
    };
    let is = |counts: [u64; 3]| {
        let part = |(at, n): (usize, u64)| (format!("{topic}/{at}"), n);
        counts.into_iter().enumerate().map(part).collect::<BTreeMap<_, _>>()
    };
    let admin = admin(&queue).await;
    let status = patiently(async || admin.status().await).await;
    assert_eq!(waiting(status[0].lag.clone()), is([3, 0, 1]), "to who is no member");
    let member = consumer(&queue).await;
    let taken = take_all(&member, 4).await;
    ack(&member, &taken[..3]).await;
    let lag = lag(&member).await;
    assert_eq!((lag.ready, lag.in_flight), (Some(0), Some(1)));
    assert_eq!(waiting(lag), is([0, 0, 0]), "what is in flight does not wait");
}

/// What was there is not waited for, and what comes while nobody is a member is not passed over.
#[tokio::test]
async fn a_group_that_begins_at_the_end_begins_there_once() {
    let queue = with(&queue(2, &Kafka::shared().servers()), "auto.offset.reset", "latest");
    let producer = producer(&queue).await;
    put(&producer, 0..20).await;
    let first = consumer(&queue).await;
    is_at_the_end(&first).await;
    first.shutdown().await.unwrap();
    drop(first);
    put(&producer, 20..40).await;
    let second = consumer(&queue).await;
    let taken = take_all(&second, 20).await;
    assert_eq!(taken.iter().map(number).collect::<BTreeSet<_>>(), (20..40).collect());
    ack(&second, &taken).await;
    is_at_the_end(&second).await;
}

/// Deletes the records of a topic's only partition before an offset.
async fn delete_before(queue: &QueueSpec, offset: i64) {
    let topic = queue.settings["topic"].as_str().unwrap();
    let servers = Kafka::shared().servers();
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", servers).create().unwrap();
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(topic, 0, Offset::Offset(offset)).unwrap();
    let deleted = admin.delete_records(&before, &AdminOptions::new()).await.unwrap();
    deleted.elements()[0].error().unwrap();
}

/// What it has resolved beyond its commit it does not get again; nothing that came later counts as resolved.
#[tokio::test]
async fn a_group_whose_commit_was_deleted_begins_behind_what_it_has_resolved() {
    let queue = with(&queue(1, &Kafka::shared().servers()), "auto.offset.reset", "latest");
    let producer = producer(&queue).await;
    let first = consumer(&queue).await;
    is_at_the_end(&first).await;
    put(&producer, 0..20).await;
    let taken = take_all(&first, 20).await;
    assert_eq!(ack(&first, &taken[1..]).await, 19);
    first.shutdown().await.unwrap();
    drop(first);
    delete_before(&queue, 10).await;
    put(&producer, 20..30).await;
    let second = consumer(&queue).await;
    let taken = take_all(&second, 10).await;
    assert_eq!(taken.iter().map(number).collect::<Vec<_>>(), (20..30).collect::<Vec<_>>());
    put(&producer, 30..60).await;
    let later = take_all(&second, 30).await;
    assert_eq!(later.iter().map(number).collect::<Vec<_>>(), (30..60).collect::<Vec<_>>());
}

/// Nobody can tell before the group is shared out; then also what other members have, or nothing.
#[tokio::test]
async fn what_waits_in_topics_that_an_expression_finds_is_told_over_all_members() {
    let queue = queue(2, &Kafka::shared().servers());
    put(&producer(&queue).await, 0..50).await;
    let mut found = with(&queue, "topic.metadata.refresh.interval.ms", 500);
    let settings = found.settings.as_object_mut().unwrap();
    settings.retain(|key, _| key != "create");
    let topic = settings.remove("topic").unwrap();
    settings.insert("topics".to_owned(), json!([format!("^{}$", topic.as_str().unwrap())]));
    let first = consumer(&found).await;
    let told = lag(&first).await;
    assert_eq!((told.ready, told.in_flight), (Some(50), Some(0)));
    let second = consumer(&found).await;
    let third = consumer(&found).await;
    let begun = Instant::now();
    // Two of the three have a partition each in the end, and know of the other's.
    loop {
        let [one, two, three] = [&first, &second, &third].map(lag);
        let all = [one.await, two.await, three.await];
        if all.iter().all(|lag| lag.in_flight.is_none() || lag.ready.is_none()) {
            assert!(all.iter().all(|lag| lag.ready.is_none_or(|ready| ready == 50)), "{all:?}");
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{all:?}");
    }
}

/// Otherwise a run that is to end when nothing is left would never do so.
#[tokio::test]
async fn that_an_expression_finds_nothing_is_no_error_for_ever() {
    let queue = queue(1, &Kafka::shared().servers());
    let mut finds_nothing = with(&queue, "topic.metadata.refresh.interval.ms", 300);
    finds_nothing = with(&finds_nothing, "session.timeout.ms", 6000);
    let settings = finds_nothing.settings.as_object_mut().unwrap();
    settings.retain(|key, _| key != "create");
    let topic = settings.remove("topic").unwrap();
    settings.insert("topics".to_owned(), json!([format!("^{}$", topic.as_str().unwrap())]));
    let member = consumer(&finds_nothing).await;
    let begun = Instant::now();
    loop {
        match member.lag().await {
            Ok(lag) => {
                assert_eq!((lag.ready, lag.in_flight), (None, Some(0)), "it may come");
                break;
            }
            Err(error) => assert!(error.is_transient() && begun.elapsed() < PATIENCE, "{error}"),
        }
    }
    put(&producer(&queue).await, 0..3).await;
    take_all(&member, 3).await;
    assert_eq!(lag(&member).await.ready, Some(0));
}

#[tokio::test]
async fn each_topic_that_is_named_is_made() {
    let queue = queue(2, &Kafka::shared().servers());
    let topic = queue.settings["topic"].as_str().unwrap().to_owned();
    let names = ["a", "b"].map(|end| format!("{topic}-{end}"));
    let mut both = queue.clone();
    let settings = both.settings.as_object_mut().unwrap();
    settings.remove("topic");
    settings.insert("topics".to_owned(), json!(names));
    let member = consumer(&both).await;
    for name in names {
        let mut one = queue.clone();
        one.settings["topic"] = name.into();
        one.settings.as_object_mut().unwrap().remove("create");
        put(&producer(&one).await, 0..4).await;
    }
    take_all(&member, 8).await;
}

/// It is for who is to hear of a gap: the stage does not wait for something that nobody will mend.
#[tokio::test]
async fn a_group_that_may_begin_nowhere_is_told_for_good() {
    let queue = with(&queue(1, &Kafka::shared().servers()), "auto.offset.reset", "error");
    let member = consumer(&queue).await;
    let want = Want { messages: 1, bytes: usize::MAX };
    let error = loop {
        let told = tokio::time::timeout(PATIENCE, member.consume(want)).await.unwrap();
        let error = told.expect_err("it has no commit");
        if !error.is_transient() {
            break error;
        }
    };
    assert!(error.to_string().contains("set the group's offsets"), "{error}");
}

#[tokio::test]
async fn the_end_of_a_partition_is_no_trouble() {
    let queue = with(&queue(3, &Kafka::shared().servers()), "enable.partition.eof", true);
    let producer = producer(&queue).await;
    put(&producer, 0..10).await;
    let member = consumer(&queue).await;
    let taken = take_all(&member, 10).await;
    ack(&member, &taken).await;
    let consumed = member.consume(Want { messages: 1, bytes: usize::MAX });
    let moment = std::time::Duration::from_secs(2);
    assert!(tokio::time::timeout(moment, consumed).await.is_err(), "nothing comes, and no error");
    put(&producer, 10..11).await;
    assert_eq!(number(&take_all(&member, 1).await[0]), 10, "the partition goes on");
}

/// `brigade queues put` puts such messages. Outputs' ids are made of theirs, so they may not be the same.
#[tokio::test]
async fn messages_without_ids_get_different_ones() {
    let queue = queue(2, &Kafka::shared().servers());
    let producer = producer(&queue).await;
    let batch: Vec<Outgoing> = (0..10).map(|n| Message::new(n.to_string()).into()).collect();
    let outcomes = producer.produce(&batch).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Produced::Confirmed)));
    let admin = admin(&queue).await;
    let peeked = patiently(async || admin.peek(0, 10).await).await;
    let peeked: BTreeSet<MessageId> = peeked.iter().map(|peeked| peeked.message.id).collect();
    assert!(peeked.len() == 10 && !peeked.contains(&MessageId::default()), "{peeked:?}");
    let taken = take_all(&consumer(&queue).await, 10).await;
    assert_eq!(taken.iter().map(|one| one.message.id).collect::<BTreeSet<_>>(), peeked);
}
