//! What is wrong with a broker, a queue or a record; TLS and passwords; which partition.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use brigade_core::connector::{
    Acked, Connector as _, ConnectorError, Failed, FailedReason, Guarantee, Order, Outgoing,
    Produced, QueueSpec, Reader, Want,
};
use brigade_core::{CauseKind, Message, MessageId, Timestamp};
use brigade_kafka::{Kafka as Connector, Position};
use brigade_testkit::servers::Kafka;
use common::{
    PATIENCE, ack, consumer, env, lag, make_narrow, number, numbered, patiently, producer, put,
    queue, take, take_all, try_consumer, with,
};

fn told<T>(error: Result<T, ConnectorError>, parts: &[&str]) {
    let error = error.err().expect("it goes wrong");
    for part in parts {
        assert!(error.to_string().contains(part), "`{part}` is not in: {error}");
    }
    assert!(error.is_transient(), "somebody may mend it: {error}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_told_with_its_address() {
    let queue = queue(1, "127.0.0.1:1");
    told(try_consumer(&queue).await, &["queue `queue`", "127.0.0.1:1", "bootstrap.servers"]);
}

/// What no broker has to be asked for is not tried again.
#[tokio::test]
async fn properties_that_make_no_client_are_told_for_good() {
    let queue = with(&queue(1, "127.0.0.1:1"), "max.poll.interval.ms", 1000);
    let error = try_consumer(&queue).await.err().unwrap();
    assert!(error.to_string().contains("max.poll.interval.ms"), "{error}");
    assert!(!error.is_transient(), "{error}");
}

/// By its name, and without asking anybody: also what is Volley's and not librdkafka's, and what is misspelt.
#[test]
fn a_property_that_librdkafka_does_not_know_is_refused_by_its_name() {
    let right = queue(1, "127.0.0.1:1");
    assert_eq!(Connector.check(&right), []);
    for name in ["stop_on_failure", "poll_thread_timeout", "sasl.passsword", "fetch.min.byte"] {
        let problems = Connector.check(&with(&right, name, "wr0ng-passw0rd"));
        let [problem] = &problems[..] else { panic!("{name}: {problems:?}") };
        assert_eq!(problem.path, ["config", name]);
        assert!(problem.message.contains(name), "{problem:?}");
        assert!(!problem.message.contains("wr0ng"), "it may be a secret: {problem:?}");
    }
}

/// Whatever the file calls it, and whatever the library would take first.
#[tokio::test]
async fn brokers_may_be_named_in_either_spelling() {
    let mut queue = queue(1, "");
    let config = queue.settings["config"].as_object_mut().unwrap();
    config.remove("bootstrap.servers");
    works(&with(&queue, "metadata.broker.list", Kafka::shared().servers())).await;
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_told_with_what_to_do() {
    let mut queue = queue(1, &Kafka::shared().servers());
    queue.settings.as_object_mut().unwrap().remove("create");
    let topic = queue.settings["topic"].as_str().unwrap().to_owned();
    told(try_consumer(&queue).await, &[&topic, "make the topic", "create:"]);
}

/// An output that only the broker refuses is named, nothing is done, and without it the rest is.
#[tokio::test]
async fn a_refused_output_does_not_keep_a_transaction_from_its_end() {
    let mut input = queue(1, &Kafka::shared().servers());
    input.guarantee = Guarantee::ExactlyOnce;
    put(&producer(&input).await, 0..2).await;
    let mut narrow = input.clone();
    let topic = format!("narrow-{:016x}", fastrand::u64(..));
    make_narrow(&topic).await;
    narrow.settings["topic"] = topic.into();
    let outputs = producer(&narrow).await;
    let member = consumer(&input).await;
    let taken = take_all(&member, 2).await;
    let receipts: Vec<_> = taken.iter().map(|incoming| incoming.receipt).collect();
    let large = Message::new(vec![b'x'; 5000]).with_id(MessageId(7));
    let small = Message::new("2").with_id(MessageId(8));
    let ops = outputs.stage(&[small.clone().into(), large.into()]).await.unwrap().ops;
    let Acked { fenced, refused } = member.ack(receipts.clone(), ops).await.unwrap();
    assert!(fenced.is_empty());
    // Not also the other, which went with it.
    let [(MessageId(7), why)] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!(why.kind, CauseKind::TooLarge);
    let ops = outputs.stage(&[small.into()]).await.unwrap().ops;
    let Acked { fenced, refused } = member.ack(receipts, ops).await.unwrap();
    assert!(fenced.is_empty() && refused.is_empty());
    drop(member);
    narrow.settings["group"] = narrow.settings["topic"].clone();
    let out = consumer(&narrow).await;
    let came = take_all(&out, 1).await;
    assert_eq!(came.iter().map(number).collect::<Vec<_>>(), [2], "once");
}

/// The client puts many records into one request, which the broker refuses as a whole.
#[tokio::test]
async fn a_record_that_only_the_broker_refuses_takes_no_other_with_it() {
    let narrow = queue(1, &Kafka::shared().servers());
    let topic = narrow.settings["topic"].as_str().unwrap().to_owned();
    make_narrow(&topic).await;
    let large = [17, 40, 41, 1500, 2999];
    let payload = |n: usize| if large.contains(&n) { "x".repeat(5000) } else { n.to_string() };
    let batch: Vec<Outgoing> = (0..3000).map(|n| Message::new(payload(n)).into()).collect();
    let producer = producer(&narrow).await;
    let outcomes = producer.produce(&batch).await.unwrap();
    let mut again = Vec::new();
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Produced::Rejected(why) => {
                assert!(large.contains(&n), "{n} is innocent");
                assert_eq!(why.kind, CauseKind::TooLarge);
            }
            other => {
                assert!(
                    matches!(other, Produced::Confirmed) && !large.contains(&n),
                    "{n}: {other:?}"
                )
            }
        }
    }
    while !again.is_empty() {
        let outcomes = producer.produce(&again).await.unwrap();
        let mut outcomes = outcomes.iter();
        again.retain(|_| !matches!(outcomes.next(), Some(Produced::Confirmed)));
    }
    let out = consumer(&narrow).await;
    let mut came: Vec<u64> = take_all(&out, 2995).await.iter().map(number).collect();
    came.sort_unstable();
    let small = (0..3000).filter(|n| !large.contains(n)).map(|n| n as u64);
    assert_eq!(came, small.collect::<Vec<_>>(), "each once");
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused_and_the_others_are_not() {
    let queue = queue(1, &Kafka::shared().servers());
    let large: Outgoing = Message::new(vec![b'x'; 2 << 20]).into();
    let outcomes = producer(&queue).await.produce(&[numbered(1), large, numbered(2)]).await;
    let outcomes = outcomes.unwrap();
    assert!(matches!(outcomes[0], Produced::Confirmed), "{outcomes:?}");
    assert!(matches!(outcomes[2], Produced::Confirmed), "{outcomes:?}");
    let Produced::Rejected(why) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert!(why.message.contains("message.max.bytes"), "{}", why.message);
    // Below the client's limit it is the broker's that counts.
    let wider = with(&queue, "message.max.bytes", 4 << 20);
    let large: Outgoing = Message::new(vec![b'x'; 2 << 20]).into();
    let outcomes = producer(&wider).await.produce(&[large]).await.unwrap();
    assert!(matches!(outcomes[0], Produced::Rejected(_)), "{outcomes:?}");
}

#[tokio::test]
async fn a_topic_that_is_deleted_in_use_is_told_and_read_again_when_it_is_back() {
    let queue = queue(1, &Kafka::shared().servers());
    put(&producer(&queue).await, 0..10).await;
    let member = consumer(&queue).await;
    let taken = take_all(&member, 10).await;
    assert_eq!(ack(&member, &taken).await, 10);
    delete_topic(&queue).await;
    let begun = Instant::now();
    let error = loop {
        assert!(begun.elapsed() < PATIENCE, "nobody says that it is gone");
        let want = Want { messages: 10, bytes: usize::MAX };
        match tokio::time::timeout(Duration::from_secs(1), member.consume(want)).await {
            Ok(Err(error)) if error.to_string().contains("make the topic") => break error,
            // Something else passes.
            Ok(Err(error)) => assert!(error.is_transient(), "{error}"),
            Ok(Ok(taken)) => assert!(taken.is_empty(), "{taken:?}"),
            Err(_) => {}
        }
    };
    told::<()>(Err(error), &["queue `queue`", queue.settings["topic"].as_str().unwrap()]);
    // Opening a producer makes it again; the old offsets mean nothing any more.
    let begun = Instant::now();
    let producer = loop {
        match Connector.producer(&queue, &env()).await {
            Ok(producer) => break producer,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    };
    put(&producer, 100..105).await;
    let mut again = BTreeSet::new();
    while again.len() < 5 {
        assert!(begun.elapsed() < PATIENCE, "{again:?}");
        let want = Want { messages: 10, bytes: usize::MAX };
        match tokio::time::timeout(Duration::from_millis(200), member.consume(want)).await {
            Ok(Ok(taken)) => {
                again.extend(taken.iter().map(number));
                ack(&member, &taken).await;
            }
            Ok(Err(error)) => assert!(error.is_transient(), "{error}"),
            Err(_) => {}
        }
    }
    assert_eq!(again, (100..105).collect());
}

async fn delete_topic(queue: &QueueSpec) {
    let mut config = rdkafka::ClientConfig::new();
    config
        .set("bootstrap.servers", queue.settings["config"]["bootstrap.servers"].as_str().unwrap());
    let admin: rdkafka::admin::AdminClient<_> = config.create().unwrap();
    let topic = queue.settings["topic"].as_str().unwrap();
    let options = rdkafka::admin::AdminOptions::new().operation_timeout(Some(PATIENCE));
    admin.delete_topics(&[topic], &options).await.unwrap()[0].as_ref().unwrap();
}

/// A message goes through and back.
async fn works(queue: &QueueSpec) {
    put(&producer(queue).await, 0..10).await;
    let member = consumer(queue).await;
    let (mut seen, begun) = (BTreeSet::new(), Instant::now());
    while seen.len() < 10 {
        assert!(begun.elapsed() < PATIENCE, "{seen:?}");
        let taken = take(&member, 10).await;
        seen.extend(taken.iter().map(number));
        ack(&member, &taken).await;
    }
}

#[tokio::test]
async fn tls_scram_and_plain() {
    let server = Kafka::start_secured();
    let ca = server.certificate().display().to_string();
    let tls = queue(1, &server.tls_servers().unwrap());
    let tls = with(&with(&tls, "security.protocol", "ssl"), "ssl.ca.location", ca.clone());
    works(&tls).await;
    let sasl = queue(1, &server.scram_servers().unwrap());
    let sasl = with(&with(&sasl, "security.protocol", "sasl_ssl"), "ssl.ca.location", ca);
    let sasl = with(&with(&sasl, "sasl.mechanism", "SCRAM-SHA-256"), "sasl.username", "alice");
    works(&with(&sasl, "sasl.password", "secret")).await;
    server.plain_servers();
    let plain = with(&sasl, "sasl.mechanism", "PLAIN");
    works(&with(&plain, "sasl.password", "secret")).await;
    for mechanism in [&plain, &sasl] {
        let wrong = with(mechanism, "sasl.password", "wr0ng-passw0rd");
        let begun = Instant::now();
        let error = loop {
            let error = try_consumer(&wrong).await.err().unwrap();
            assert!(!error.to_string().contains("wr0ng"), "no secret is told: {error}");
            // A machine that stands still is told of first.
            if !error.to_string().contains("no broker answered") || begun.elapsed() > PATIENCE {
                break error;
            }
        };
        told::<()>(Err(error), &["queue `queue`", "sasl.password"]);
    }
}

/// Signed by nobody, as brokers take it that are told to.
#[tokio::test]
async fn oauthbearer() {
    let server = Kafka::start_secured();
    let ca = server.certificate().display().to_string();
    let queue = queue(1, &server.oauthbearer_servers().unwrap());
    let queue = with(&with(&queue, "security.protocol", "sasl_ssl"), "ssl.ca.location", ca);
    let queue = with(&queue, "sasl.mechanism", "OAUTHBEARER");
    let queue = with(&queue, "enable.sasl.oauthbearer.unsecure.jwt", true);
    works(&with(&queue, "sasl.oauthbearer.config", "principal=alice")).await;
    let wrong = with(&queue, "sasl.oauthbearer.config", "principal=alice lifeSeconds=-60");
    told(try_consumer(&wrong).await, &["queue `queue`"]);
}

/// The broker keeps records as they were compressed, and says in each batch by which codec that was.
#[tokio::test]
async fn records_are_written_and_read_with_every_codec() {
    for (number_of, codec) in ["none", "gzip", "snappy", "lz4", "zstd"].into_iter().enumerate() {
        let server = Kafka::shared();
        let queue = with(&queue(1, &server.servers()), "compression.type", codec);
        let payload = |n: u64| format!("{n} {}", "how well this is compressed! ".repeat(200));
        let batch: Vec<Outgoing> = (0..100).map(|n| Message::new(payload(n)).into()).collect();
        let outcomes = producer(&queue).await.produce(&batch).await.unwrap();
        let is_there = |outcome: &Produced| matches!(outcome, Produced::Confirmed);
        assert!(outcomes.iter().all(is_there), "{codec}: {outcomes:?}");
        let topic = queue.settings["topic"].as_str().unwrap();
        let records = std::fs::read(server.records_of(topic, 0)).unwrap();
        // Where a batch has its attributes; the last three bits are the codec.
        let attributes = u16::from_be_bytes([records[21], records[22]]);
        assert_eq!(usize::from(attributes & 7), number_of, "{codec}");
        assert_eq!(records.len() < 100_000, codec != "none", "{codec}: {} bytes", records.len());
        let member = consumer(&queue).await;
        let came = take_all(&member, 100).await;
        for (n, incoming) in came.iter().enumerate() {
            let wanted = payload(n as u64);
            assert_eq!(incoming.message.payload.as_deref(), Some(wanted.as_bytes()), "{codec}");
        }
    }
}

/// Takes numbers until so many have come, and the topics that they came from.
async fn numbers_of(
    member: &std::sync::Arc<dyn brigade_core::connector::Consumer>,
    wanted: usize,
) -> BTreeSet<(String, u64)> {
    let (mut came, begun) = (BTreeSet::new(), Instant::now());
    while came.len() < wanted {
        assert!(begun.elapsed() < PATIENCE, "{came:?}");
        let taken = take(member, 100).await;
        for incoming in &taken {
            let place: Position = member.locate(incoming.receipt).parse().unwrap();
            came.insert((place.topic, number(incoming)));
        }
        ack(member, &taken).await;
    }
    came
}

#[tokio::test]
async fn topics_of_a_list_and_of_an_expression_are_read_also_one_that_is_made_later() {
    let servers = Kafka::shared().servers();
    let [one, two, mut three] = [(); 3].map(|()| queue(2, &servers));
    let name = |queue: &QueueSpec| queue.settings["topic"].as_str().unwrap().to_owned();
    let later = format!("later-{}", name(&three));
    put(&producer(&one).await, 0..20).await;
    put(&producer(&two).await, 100..120).await;
    let mut all = with(&one, "topic.metadata.refresh.interval.ms", 500);
    let settings = all.settings.as_object_mut().unwrap();
    settings.retain(|key, _| key != "topic" && key != "create");
    let expression = format!("^later-{}$", name(&three));
    settings.insert("topics".to_owned(), [name(&one), name(&two), expression].to_vec().into());
    let member = consumer(&all).await;
    let of = |topic: String, numbers: std::ops::Range<u64>| -> BTreeSet<(String, u64)> {
        numbers.map(|n| (topic.clone(), n)).collect()
    };
    assert_eq!(numbers_of(&member, 40).await, &of(name(&one), 0..20) | &of(name(&two), 100..120));
    three.settings["topic"] = later.clone().into();
    put(&producer(&three).await, 200..220).await;
    // What comes on the others meanwhile is not held up by the new one.
    put(&producer(&two).await, 120..140).await;
    assert_eq!(numbers_of(&member, 40).await, &of(later, 200..220) | &of(name(&two), 120..140));
    let lag = lag(&member).await;
    assert_eq!(lag.ready, Some(0));
}

#[tokio::test]
async fn a_message_can_say_which_partition_it_goes_to() {
    let queue = queue(4, &Kafka::shared().servers());
    let to = |partition: &str| -> Outgoing {
        Message::new("1")
            .with_key("k")
            .with_header("brigade-partition", partition.to_owned())
            .into()
    };
    let batch = [to("3"), to("0"), to("4"), to("three"), to("-1")];
    let producer = producer(&queue).await;
    let outcomes = producer.produce(&batch).await.unwrap();
    let why = |at: usize| match &outcomes[at] {
        Produced::Rejected(why) => why.message.as_str(),
        other => panic!("{other:?}"),
    };
    assert!(matches!(outcomes[..2], [Produced::Confirmed, Produced::Confirmed]), "{outcomes:?}");
    assert!(why(2).contains("has 4 partitions, and no number 4"), "{}", why(2));
    assert!(why(3).contains("expected a number, found \"three\""), "{}", why(3));
    assert!(why(4).contains("expected a number"), "{}", why(4));
    // In a transaction it is the same: a message that can go nowhere is not tried for ever.
    let staged = producer.stage(&batch).await.unwrap();
    let rejected: Vec<usize> = staged.rejected.iter().map(|(at, _)| *at).collect();
    assert_eq!((staged.ops.len(), rejected), (2, vec![2, 3, 4]));
    let member = consumer(&queue).await;
    let (mut places, begun) = (BTreeSet::new(), Instant::now());
    while places.len() < 2 {
        assert!(begun.elapsed() < PATIENCE, "{places:?}");
        for incoming in take(&member, 10).await {
            assert!(incoming.message.headers.is_empty(), "it is no header of the record");
            let place: Position = member.locate(incoming.receipt).parse().unwrap();
            assert_eq!(place.topic, queue.settings["topic"].as_str().unwrap());
            places.insert((place.partition, place.offset));
        }
    }
    assert_eq!(places, [(0, 0), (3, 0)].into());
}

/// The order of a key that stands in the payload is kept where that is read: here the broker's keys hold up nothing,
/// and what goes back comes in its place.
#[tokio::test]
async fn with_a_key_of_the_payload_records_come_in_the_order_of_their_partition() {
    let mut queue = queue(1, &Kafka::shared().servers());
    queue.key = Some("user".parse().unwrap());
    let put = |n: u64| Outgoing::from(Message::new(n.to_string()).with_key(format!("k{}", n % 3)));
    producer(&queue).await.produce(&(0..9).map(put).collect::<Vec<_>>()).await.unwrap();
    let reader = Reader { stage: "suite".into(), group: "".into(), order: Order::Key };
    let member = patiently(async || Connector.consumer(&queue, &reader, &env()).await).await;
    assert!(!member.features().key_order);
    let taken = take_all(&member, 6).await;
    assert!(taken.iter().map(number).eq(0..6), "{taken:?}");
    for back in [4, 1, 3, 2] {
        let (receipt, reason) = (taken[back].receipt, FailedReason::Released);
        member.on_fail(vec![Failed { receipt, reason, delay: Duration::ZERO }]).await.unwrap();
    }
    let again = take_all(&member, 7).await;
    assert_eq!(again.iter().map(number).collect::<Vec<_>>(), [1, 2, 3, 4, 6, 7, 8]);
}

/// Kafka takes no timestamp that is more than an hour ahead; the message is not refused for that.
#[tokio::test]
async fn an_event_time_that_no_broker_takes_as_a_timestamp_comes_back() {
    let queue = queue(1, &Kafka::shared().servers());
    let tomorrow = Timestamp::from(SystemTime::now() + Duration::from_secs(86_400));
    let message = Message { event_time: Some(tomorrow), ..Message::new("7") };
    let outcomes = producer(&queue).await.produce(&[message.into()]).await.unwrap();
    assert!(matches!(outcomes[..], [Produced::Confirmed]), "{outcomes:?}");
    let taken = take_all(&consumer(&queue).await, 1).await;
    assert_eq!(taken[0].message.event_time, Some(tomorrow));
    assert!(taken[0].enqueued_at.unwrap() < tomorrow, "the record has the time of the writing");
}
