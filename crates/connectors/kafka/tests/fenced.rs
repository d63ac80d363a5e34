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

use brigade_core::connector::{ErrorKind, Produced, QueueSpec, Want};
use brigade_testkit::servers::{Kafka, KafkaDoor};
use common::{PATIENCE, consumer, number, numbered, producer, put, queue, with};

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
