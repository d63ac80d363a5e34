//! Retry topics: where failed messages wait.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{
    Consumer, Failed, FailedReason, Guarantee, Incoming, Outgoing, QueueSpec, Want,
};
use brigade_core::{Message, Timestamp};
use brigade_testkit::servers::Kafka;
use common::{
    PATIENCE, ack, admin, consumer, lag, make_narrow, number, patiently, producer, put, queue,
    take, take_all, try_consumer,
};
use serde_json::json;

fn retrying(partitions: u32, tiers: &[&str]) -> QueueSpec {
    let mut queue = queue(partitions, &Kafka::shared().servers());
    queue.settings["retry_topics"] = json!(tiers);
    queue
}

fn failed(incoming: &Incoming, delay: Duration) -> Failed {
    let attempts = incoming.attempts + 1;
    let reason = FailedReason::Attempt { attempts, error: "no luck".to_owned() };
    Failed { receipt: incoming.receipt, reason, delay }
}

async fn fail(consumer: &Arc<dyn Consumer>, taken: &[Incoming], delay: Duration) {
    let failed: Vec<Failed> = taken.iter().map(|incoming| failed(incoming, delay)).collect();
    assert!(consumer.on_fail(failed).await.unwrap().fenced.is_empty());
}

async fn take_some(consumer: &Arc<dyn Consumer>, max: usize) -> Vec<Incoming> {
    let begun = Instant::now();
    loop {
        let taken = take(consumer, max).await;
        if !taken.is_empty() {
            return taken;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing comes");
    }
}

/// Waits until nothing is told to wait but so much that waits for its time. A client beside the consumer may not see
/// the end of a transaction when that is answered.
async fn only_so_much_waits(consumer: &Arc<dyn Consumer>, later: u64) {
    let begun = Instant::now();
    loop {
        let lag = lag(consumer).await;
        if (lag.ready, lag.delayed) == (Some(0), Some(later)) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{lag:?}");
    }
}

/// What a message is, and how often it failed, is what the next member gets, when its time has come and
/// not before; meanwhile nothing of it is in a process.
#[tokio::test]
async fn a_failed_message_and_its_attempts_outlive_the_process() {
    const DELAY: Duration = Duration::from_secs(4);
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::ExactlyOnce] {
        let mut queue = retrying(1, &["2s", "10s"]);
        queue.guarantee = guarantee;
        let mut message = Message::new("1").with_key("k").with_header("from", "here");
        message.event_time = Some(Timestamp(1_000_000_000_000));
        let put = producer(&queue).await;
        put.produce(&[Outgoing::from(message)]).await.unwrap();
        let first = consumer(&queue).await;
        let before = take_some(&first, 10).await.remove(0);
        let place = first.locate(before.receipt);
        let failed_at = Instant::now();
        fail(&first, std::slice::from_ref(&before), DELAY).await;
        // The mark of a transaction counts as long as there is a message before it.
        let marks = u64::from(guarantee == Guarantee::ExactlyOnce);
        only_so_much_waits(&first, 1 + marks).await;
        // Killed.
        drop(first);
        for attempt in 1..3 {
            let next = consumer(&queue).await;
            let again = take_some(&next, 10).await.remove(0);
            assert!(failed_at.elapsed() >= attempt * DELAY, "{:?}", failed_at.elapsed());
            assert_eq!(again.attempts, attempt);
            assert_eq!(again.message, before.message);
            assert_eq!(next.locate(again.receipt), place);
            let late = again.first_failed_at.unwrap().since(before.enqueued_at.unwrap());
            assert!(late > Duration::ZERO);
            if attempt == 1 {
                fail(&next, &[again], DELAY).await;
            } else {
                ack(&next, &[again]).await;
                only_so_much_waits(&next, 0).await;
            }
            drop(next);
        }
    }
}

/// Of a million failed messages only some are in memory; the others wait at the broker, and the input
/// goes on.
#[tokio::test]
async fn many_failed_messages_wait_at_the_broker() {
    const MESSAGES: u64 = 10_000;
    let queue = retrying(1, &["5s"]);
    let producer = producer(&queue).await;
    let member = consumer(&queue).await;
    put(&producer, 0..MESSAGES).await;
    let (mut failures, mut first_failed, mut last_failed) = (0, None, Instant::now());
    let (mut early, mut seen) = (0, BTreeSet::new());
    while (seen.len() as u64) < MESSAGES {
        assert!(last_failed.elapsed() < PATIENCE, "{} of {MESSAGES}", seen.len());
        let taken = take(&member, 1000).await;
        let (fresh, again): (Vec<_>, Vec<_>) = taken.into_iter().partition(|i| i.attempts == 0);
        if !fresh.is_empty() {
            fail(&member, &fresh, Duration::from_secs(5)).await;
            failures += fresh.len() as u64;
            last_failed = Instant::now();
            first_failed.get_or_insert(last_failed);
        }
        early += u64::from(failures < MESSAGES) * again.len() as u64;
        for incoming in &again {
            assert!(seen.insert(number(incoming)), "it came twice");
        }
        ack(&member, &again).await;
    }
    assert_eq!(failures, MESSAGES);
    assert!(first_failed.unwrap().elapsed() >= Duration::from_secs(5));
    assert!(early < MESSAGES, "the input waits for its retries");
}

/// An expression finds the topics of other groups too.
#[tokio::test]
async fn another_groups_copies_are_passed_over() {
    let first = retrying(1, &["1s"]);
    let topic = first.settings["topic"].as_str().unwrap().to_owned();
    let producer = producer(&first).await;
    put(&producer, 0..10).await;
    let member = consumer(&first).await;
    let mut second = first.clone();
    let settings = second.settings.as_object_mut().unwrap();
    settings.remove("topic");
    settings.insert("topics".to_owned(), json!([format!("^{topic}.*")]));
    settings.insert("group".to_owned(), json!(format!("other-{topic}")));
    let other = consumer(&second).await;
    let taken = take_all(&member, 10).await;
    fail(&member, &taken, Duration::from_secs(1)).await;
    let again = take_all(&member, 10).await;
    assert!(again.iter().all(|incoming| incoming.attempts == 1));
    ack(&member, &again).await;
    let taken = take_all(&other, 10).await;
    assert_eq!(taken.iter().map(number).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    ack(&other, &taken).await;
    put(&producer, 10..11).await;
    let last = take_some(&other, 100).await;
    assert_eq!(last.iter().map(number).collect::<Vec<_>>(), [10], "and nothing else");
}

/// Somebody took a record from a retry topic, and put it on the input by hand.
#[tokio::test]
async fn on_the_input_another_groups_copy_is_a_message_as_any_other() {
    let queue = retrying(1, &["1s"]);
    let topic = queue.settings["topic"].as_str().unwrap().to_owned();
    let copy = |group: &str, due: Timestamp| {
        let copy = Message::new("7").with_header("brigade-group", group.to_owned());
        let copy = copy.with_header("brigade-attempts", "3").with_header("own", "1");
        copy.with_header("brigade-due", due.0.to_string()).into()
    };
    let now = Timestamp::from(std::time::SystemTime::now());
    // Of no group at all, and with more attempts than can be counted on from.
    let made_up = Message::new("7").with_header("brigade-attempts", u32::MAX.to_string());
    let made_up = made_up.with_header("brigade-failed-at", "1").with_header("own", "1").into();
    let copies: [Outgoing; 3] = [copy("other", now.after(PATIENCE)), copy(&topic, now), made_up];
    producer(&queue).await.produce(&copies).await.unwrap();
    // An input that is named, and one that an expression finds.
    let mut found = queue.clone();
    let settings = found.settings.as_object_mut().unwrap();
    settings.remove("topic");
    settings.insert("topics".to_owned(), json!([format!("^{topic}$")]));
    for queue in [queue, found] {
        let member = consumer(&queue).await;
        let taken = take_all(&member, 3).await;
        let seen = |i: &Incoming| (number(i), i.attempts, i.message.headers.len());
        assert_eq!(taken.iter().map(seen).collect::<Vec<_>>(), [(7, 0, 1), (7, 3, 1), (7, 0, 1)]);
        assert_eq!(taken[2].first_failed_at, None);
        drop(member);
    }
}

/// What waits on the topic of a tier that was taken out of the file is still read.
#[tokio::test]
async fn a_tier_that_is_gone_is_emptied() {
    let mut queue = retrying(1, &["1s", "5s"]);
    put(&producer(&queue).await, 0..1).await;
    let member = consumer(&queue).await;
    let taken = take_some(&member, 10).await;
    fail(&member, &taken, Duration::from_secs(3)).await;
    drop(member);
    queue.settings["retry_topics"] = json!(["1s"]);
    let member = consumer(&queue).await;
    assert_eq!(take_some(&member, 10).await[0].attempts, 1);
}

/// In the same group they would be taken from the stage whose they are.
#[tokio::test]
async fn an_expression_that_finds_another_queues_retry_topics_is_told() {
    let first = retrying(1, &["1s"]);
    let topic = first.settings["topic"].as_str().unwrap().to_owned();
    put(&producer(&first).await, 0..1).await;
    let member = consumer(&first).await;
    let taken = take_some(&member, 1).await;
    fail(&member, &taken, Duration::from_secs(1)).await;
    member.shutdown().await.unwrap();
    let mut second = first.clone();
    let settings = second.settings.as_object_mut().unwrap();
    settings.remove("topic");
    settings.remove("retry_topics");
    // The group is called as the topic is.
    settings.insert("topics".to_owned(), json!([format!("^{topic}.{topic}.*")]));
    let member = consumer(&second).await;
    let begun = Instant::now();
    let error = loop {
        let want = Want { messages: 1, bytes: usize::MAX };
        match tokio::time::timeout(PATIENCE, member.consume(want)).await.unwrap() {
            Err(error) if !error.is_transient() => break error.to_string(),
            // Something else passes.
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            Ok(taken) => assert!(taken.is_empty() && begun.elapsed() < PATIENCE),
        }
    };
    assert!(error.contains("retry topic of another") && error.contains("narrow"), "{error}");
    drop(member);
    // Whose it is gets it.
    let again = take_some(&consumer(&first).await, 1).await;
    assert_eq!(again[0].attempts, 1);
}

/// The topic was made by hand, and takes less than what the input's topic takes.
#[tokio::test]
async fn a_copy_that_is_refused_waits_here_and_the_others_do_not() {
    for guarantee in [Guarantee::AtLeastOnce, Guarantee::ExactlyOnce] {
        let mut queue = retrying(1, &["1s"]);
        queue.guarantee = guarantee;
        let topic = queue.settings["topic"].as_str().unwrap();
        make_narrow(&format!("{topic}.{topic}.retry.1s")).await;
        let put = producer(&queue).await;
        let messages = [Message::new(vec![b'x'; 5000]), Message::new("1")];
        put.produce(&messages.map(Outgoing::from)).await.unwrap();
        let member = consumer(&queue).await;
        let taken = take_all(&member, 2).await;
        fail(&member, &taken, Duration::from_millis(500)).await;
        drop(member);
        // The small one went to its topic; the large one was never done.
        let next = consumer(&queue).await;
        let again = take_all(&next, 2).await;
        let attempts = again.iter().map(|i| (i.message.size() > 5000, i.attempts));
        let attempts: BTreeSet<_> = attempts.collect();
        assert_eq!(attempts, BTreeSet::from([(true, 0), (false, 1)]));
    }
}

/// A message for whose copy there is no room waits in the process.
#[tokio::test]
async fn a_message_that_is_too_large_for_a_copy_waits_here() {
    let queue = retrying(1, &["1s"]);
    let large = Message::new(vec![b'x'; 999_000]);
    producer(&queue).await.produce(&[large.into()]).await.unwrap();
    let member = consumer(&queue).await;
    let taken = take_some(&member, 10).await;
    fail(&member, &taken, Duration::from_millis(100)).await;
    let again = take_some(&member, 10).await;
    assert_eq!((again.len(), again[0].attempts), (1, 1));
    drop(member);
    let next = consumer(&queue).await;
    assert_eq!(take_some(&next, 10).await[0].attempts, 0, "it was never done");
}

#[tokio::test]
async fn a_group_that_is_no_name_for_topics_is_told() {
    let mut queue = retrying(1, &["1s"]);
    queue.settings["group"] = "shop floor".into();
    let error = try_consumer(&queue).await.map(drop).unwrap_err().to_string();
    assert!(error.contains(".retry.1s`") && error.contains("`group`"), "{error}");
    // Without a group of its own, people see all that waits.
    queue.settings["group"] = queue.settings["topic"].clone();
    let member = consumer(&queue).await;
    put(&producer(&queue).await, 0..3).await;
    let taken = take_some(&member, 1).await;
    fail(&member, &taken, Duration::from_secs(60)).await;
    drop(member);
    let admin = admin(&queue).await;
    let lag = patiently(async || admin.status().await).await.remove(0).lag;
    assert_eq!((lag.ready, lag.delayed), (Some(2), Some(1)));
}
