//! A cluster that tells for a moment that it has no brokers, as a single one does that was suspended.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use brigade_core::connector::{ErrorKind, Produced, QueueSpec, Receipt, Want};
use brigade_testkit::servers::{Kafka, KafkaDoor};
use common::{PATIENCE, consumer, newer, number, numbered, producer, put, queue, take_all, with};

const FENCED: u32 = 40;
/// How long a client that knows a broker takes to ask again, at most.
const SOON: Duration = Duration::from_secs(7);

fn queue_before(door: &KafkaDoor) -> QueueSpec {
    let queue = queue(1, &door.servers());
    let queue = with(&queue, "reconnect.backoff.max.ms", 300);
    // A client that knows no broker cannot say that it goes: the next is a member when its session is over.
    let queue = with(&queue, "session.timeout.ms", 8000);
    with(&queue, "topic.metadata.refresh.interval.ms", 300)
}

/// The same queue, past the door.
fn queue_behind(queue: &QueueSpec) -> QueueSpec {
    with(queue, "bootstrap.servers", Kafka::shared().servers())
}

/// Cuts all connections off, and tells whoever comes again that there are no brokers; then there are.
/// Over and over, until the client does not come any more, if that should be; it comes at least once.
async fn fence(door: &KafkaDoor) {
    for told in 0..FENCED {
        let (before, begun) = (door.asked(), Instant::now());
        let patience = if told == 0 { PATIENCE } else { SOON };
        door.tell_of_none(true);
        door.cut(0);
        while door.asked() == before && begun.elapsed() < patience {
            tokio::task::yield_now().await;
        }
        door.tell_of_none(false);
        if door.asked() == before {
            assert!(told > 0, "the client was never told that there are no brokers");
            return;
        }
    }
}

#[tokio::test]
async fn a_consumer_goes_on_though_the_cluster_named_no_broker() {
    let door = KafkaDoor::open(Kafka::shared());
    let (queue, want) = (queue_before(&door), Want { messages: 10, bytes: usize::MAX });
    let mut member = consumer(&queue).await;
    fence(&door).await;
    put(&producer(&queue_behind(&queue)).await, 0..10).await;
    let (mut seen, mut reopened, begun) = (BTreeSet::new(), 0, Instant::now());
    while seen.len() < 10 {
        match tokio::time::timeout(PATIENCE, member.consume(want)).await.expect("it goes on") {
            Ok(taken) => seen.extend(taken.iter().map(number)),
            Err(error) if error.kind() == ErrorKind::Stalled => {
                assert!(error.to_string().contains("knows no broker"), "{error}");
                drop(member.shutdown().await);
                member = consumer(&queue).await;
                reopened += 1;
            }
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        assert!(begun.elapsed() < PATIENCE, "{seen:?} came");
    }
    println!("opened again {reopened} times");
}

/// A stage whose credit is used up wants nothing, and cannot ack: nobody asks the client for anything that would tell.
async fn is_noticed_with_everything_held(door: &KafkaDoor, queue: &QueueSpec) {
    let member = consumer(queue).await;
    put(&producer(&queue_behind(queue)).await, 0..10).await;
    let taken = take_all(&member, 10).await;
    fence(door).await;
    let receipts: Vec<Receipt> = taken.iter().map(|incoming| incoming.receipt).collect();
    let acked = async {
        loop {
            match member.ack(receipts.clone(), Vec::new()).await {
                Ok(acked) => break acked,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    };
    let noticed = async {
        tokio::select! {
            error = member.broken() => {
                assert_eq!(error.kind(), ErrorKind::Stalled, "{error}");
                assert!(error.to_string().contains("knows no broker"), "{error}");
                println!("it was noticed");
            }
            acked = acked => {
                assert!(acked.fenced.is_empty(), "it is lost only when its session is over");
                println!("the client found its broker again");
            }
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("it is noticed");
    // It may not be able to close.
    drop(member.shutdown().await);
}

#[tokio::test]
async fn a_consumer_that_nobody_asks_notices_it_too() {
    let door = KafkaDoor::open(Kafka::shared());
    let queue = with(&queue_before(&door), "session.timeout.ms", 300_000);
    is_noticed_with_everything_held(&door, &queue).await;
}

#[tokio::test]
async fn a_member_by_the_newer_protocol_notices_it_too() {
    let door = KafkaDoor::open(Kafka::shared());
    is_noticed_with_everything_held(&door, &newer(&queue_before(&door))).await;
}

#[tokio::test]
async fn a_producer_goes_on_though_the_cluster_named_no_broker() {
    let door = KafkaDoor::open(Kafka::shared());
    let producer = producer(&queue_before(&door)).await;
    fence(&door).await;
    let begun = Instant::now();
    loop {
        let produced = tokio::time::timeout(PATIENCE, producer.produce(&[numbered(1)])).await;
        match produced.expect("it goes on").unwrap().remove(0) {
            Produced::Confirmed => break,
            Produced::Failed(error) => assert!(error.is_transient(), "{error}"),
            Produced::Rejected(why) => panic!("{why:?}"),
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is put");
    }
}
