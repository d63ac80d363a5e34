//! From one topic to another, beside a batched loop on the same client.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use brigade::prelude::*;
use brigade::{Memory, Message, MessageId};
use brigade_testkit::servers::Kafka;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::redis::{Order, add, payload};
use crate::support::{Row, Spent, Stopwatch, acked, pipeline, timed};
use crate::{added, backlog, peers};

const MESSAGES: usize = 200_000;
const BATCH: usize = 1000;

pub(crate) fn at_least_once(name: &'static str) -> Row {
    Row::rates(name, 0.9, MESSAGES, || through("at_least_once"), by_hand)
}

pub(crate) fn processor(name: &'static str) -> Row {
    Row::processor(name, 1.2, MESSAGES, || through("at_least_once"), by_hand)
}

pub(crate) fn exactly_once(name: &'static str) -> Row {
    // Printed beside; nothing is asked of it.
    Row::rates(name, 0.0, MESSAGES, || through("exactly_once"), by_hand)
}

/// The broker of all rows.
fn broker() -> &'static Kafka {
    static BROKER: OnceLock<Kafka> = OnceLock::new();
    BROKER.get_or_init(Kafka::start_steady)
}

/// Topics that no other run has.
fn topics() -> (String, String) {
    let number = fastrand::u64(..);
    (format!("in-{number:x}"), format!("out-{number:x}"))
}

fn text(guarantee: &str, group: &str) -> String {
    let (from, to) = topics();
    let servers = broker().servers();
    let more = format!("create: {{ partitions: 4 }}, config: {{ bootstrap.servers: '{servers}' }}");
    format!(
        "pipeline: bench
lanes: 1
queues:
  first: {{ type: memory }}
  in: {{ type: kafka, topic: {from}, group: {group}, guarantee: {guarantee}, {more} }}
  out: {{ type: kafka, topic: {to}, {more} }}
  dead: {{ type: kafka, topic: {to}.dead, {more} }}
stages:
  fill: {{ component: pass, input: first, outputs: [in], dead_letter: dead }}
  add: {{ component: add, input: in, outputs: [out], dead_letter: dead, workers: 1 }}
"
    )
}

fn through(guarantee: &str) -> Spent {
    let memory = Memory::new();
    let message = |n| Message::new(payload(n)).with_id(MessageId(n as u128 + 1));
    memory.put("bench", "first", (0..MESSAGES).map(message));
    let registry = brigade::registry()
        .connector(Arc::new(memory))
        .component("add", |order: Order| Ok::<_, Failure>(add(order)));
    let whole = text("at_least_once", "bench");
    let only = |stage: &str, text: &str| {
        let pipeline = pipeline(text, &registry).state(brigade::MemoryState::new());
        pipeline.stages(&[stage.to_owned()]).expect("the stages are there")
    };
    timed(
        only("fill", &whole.replace(", dead_letter: dead }\n  add", " }\n  add")),
        async |running| acked(running, MESSAGES).await,
    );
    let asked = whole.replacen("guarantee: at_least_once", &format!("guarantee: {guarantee}"), 1);
    timed(only("add", &asked), async |running| acked(running, MESSAGES).await)
}

/// A topic that is full, and the loop that copies it.
fn by_hand() -> Spent {
    let (config, from, to) = made_topics();
    let producer = producer(&config);
    for n in 0..MESSAGES {
        send(&producer, &from, &payload(n));
    }
    producer.flush(Duration::from_secs(60)).expect("the broker takes them");
    let begun = Stopwatch::start();
    copy_by_hand(&config, &from, &to, |done| done >= MESSAGES);
    begun.stop()
}

type Plain = ThreadedProducer<DefaultProducerContext>;

fn producer(config: &ClientConfig) -> Plain {
    let mut config = config.clone();
    config.set("enable.idempotence", "true").set("linger.ms", "1");
    config.create().expect("the properties are good")
}

fn send(producer: &Plain, topic: &str, payload: &[u8]) {
    let mut record = BaseRecord::<[u8], [u8]>::to(topic).payload(payload);
    while let Err((_, back)) = producer.send(record) {
        std::thread::sleep(Duration::from_millis(1));
        record = back;
    }
}

/// Polls a batch, produces it, waits for it, commits, until so many are enough.
fn copy_by_hand(config: &ClientConfig, from: &str, to: &str, is_enough: impl Fn(usize) -> bool) {
    let producer = producer(config);
    let mut config = config.clone();
    config.set("group.id", from).set("enable.auto.commit", "false");
    config.set("auto.offset.reset", "earliest").set("fetch.queue.backoff.ms", "20");
    let consumer: BaseConsumer = config.create().expect("the properties are good");
    consumer.subscribe(&[from]).expect("the client takes it");
    let mut done = 0;
    while !is_enough(done) {
        let (mut batch, mut ends) = (0, [None; 4]);
        while batch < BATCH && !is_enough(done + batch) {
            let wait = Duration::from_millis(if batch == 0 { 100 } else { 0 });
            let Some(message) = consumer.poll(wait) else { break };
            let message = message.expect("the broker answers");
            let payload = message.payload().expect("each record has one");
            let order: Order = serde_json::from_slice(payload).expect("it was written so");
            send(
                &producer,
                to,
                &serde_json::to_vec(&add(order)).expect("numbers and texts always encode"),
            );
            ends[message.partition() as usize] = Some(message.offset() + 1);
            batch += 1;
        }
        if batch == 0 {
            continue;
        }
        // Quicker than `flush`, which looks ten times a second.
        while producer.in_flight_count() > 0 {
            std::thread::sleep(Duration::from_micros(100));
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, end) in ends.iter().enumerate() {
            if let Some(end) = end {
                let end = Offset::Offset(*end);
                offsets
                    .add_partition_offset(from, partition as i32, end)
                    .expect("the client takes it");
            }
        }
        consumer.commit(&offsets, CommitMode::Sync).expect("the broker answers");
        done += batch;
    }
}

/// How many messages are copied beside another system, which is quick.
const BESIDE: usize = 1_000_000;

/// How many cores there are: as many workers Brigade has beside a system that takes all of them by itself. (Over
/// Redis Streams each would be a reader with settlements of its own, and each of those a sync.)
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// From one topic to another, beside Redpanda Connect, which has up to 32,768 messages under way.
pub(crate) fn connect(name: &'static str) -> Row {
    let filled = || {
        let (config, from, to) = made_topics();
        let producer = producer(&config);
        for n in 0..BESIDE {
            send(&producer, &from, &payload(n));
        }
        producer.flush(Duration::from_secs(60)).expect("the broker takes them");
        let reader: BaseConsumer = config.create().expect("the properties are good");
        let topic = to.clone();
        let end = move |partition| {
            let (_, past) = reader
                .fetch_watermarks(&topic, partition, Duration::from_secs(10))
                .expect("the broker answers");
            past as usize
        };
        (from, to, move || (0..4).map(&end).sum())
    };
    let servers = broker().servers();
    let theirs = || {
        let (from, to, count) = filled();
        let mut connect = peers::peer("connect");
        connect.args([
            "run",
            concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/connect/kafka.yaml"),
        ]);
        connect.env("BROKERS", &servers).env("GROUP", &from).env("IN", &from).env("OUT", &to);
        let _running = peers::Run::start(connect);
        peers::rate(BESIDE, count)
    };
    let ours = || {
        let (from, to, count) = filled();
        let text = format!(
            "pipeline: bench
queues:
  in: {{ type: kafka, topic: {from}, group: {from}, config: {{ bootstrap.servers: '{servers}' }} }}
  out: {{ type: kafka, topic: {to}, config: {{ bootstrap.servers: '{servers}' }} }}
stages:
  add: {{ component: add, input: in, outputs: [out], workers: {}, max_in_flight: {{ messages: 16384 }} }}
",
            cores()
        );
        peers::brigade(&text, BESIDE, count)
    };
    peers::row(name, 1.0, ours, theirs)
}

/// From one topic to another, at 1,000 messages a second.
pub(crate) fn added(name: &'static str) -> Row {
    let through = |by_hand: bool| {
        let (config, from, to) = made_topics();
        let put = {
            let (producer, from) = (producer(&config), from.clone());
            move |payload: Vec<u8>| send(&producer, &from, &payload)
        };
        let read = || read_topic(&config, &to);
        let servers = broker().servers();
        let text = format!(
            "pipeline: bench
lanes: 1
queues:
  in: {{ type: kafka, topic: {from}, group: {from}, config: {{ bootstrap.servers: '{servers}' }} }}
  out: {{ type: kafka, topic: {to}, config: {{ bootstrap.servers: '{servers}' }} }}
stages:
  add: {{ component: add, input: in, outputs: [out], workers: 1 }}
"
        );
        added::ages(put, read, |done| match by_hand {
            true => copy_by_hand(&config, &from, &to, |_| done.load(Relaxed)),
            false => added::brigade(&text, done),
        })
    };
    added::row(name, through(false), through(true))
}

/// The ages of all messages when they come out.
fn read_topic(config: &ClientConfig, topic: &str) -> Vec<f64> {
    let mut config = config.clone();
    let reader: BaseConsumer =
        config.set("group.id", "reader").create().expect("the properties are good");
    let mut all = TopicPartitionList::new();
    all.add_partition_range(topic, 0, 3);
    all.set_all_offsets(Offset::Beginning).expect("the client takes it");
    reader.assign(&all).expect("the client takes it");
    let mut ages = Vec::new();
    while ages.len() < added::MESSAGES {
        if let Some(record) = reader.poll(Duration::from_millis(100)) {
            let record = record.expect("the broker answers");
            ages.push(added::age(record.payload().expect("each record has one")));
        }
    }
    ages
}

fn made_topics() -> (ClientConfig, String, String) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker().servers());
    let (from, to) = topics();
    make_topics(&config, [&from, &to]);
    (config, from, to)
}

fn make_topics(config: &ClientConfig, names: [&str; 2]) {
    use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
    let admin: AdminClient<_> = config.create().expect("the properties are good");
    let topics = names.map(|name| NewTopic::new(name, 4, TopicReplication::Fixed(1)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let made =
        runtime.block_on(admin.create_topics(&topics, &options)).expect("the broker answers");
    made.into_iter().for_each(|one| drop(one.expect("the topic can be made")));
}

/// From a topic to a Redis stream.
pub(crate) fn backlog(name: &'static str) -> Row {
    let (from, _) = topics();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker().servers()).set("linger.ms", "20");
    make_topics(&config, [&from, &format!("{from}-unused")]);
    let producer: Plain = config.create().expect("the properties are good");
    for n in 0..backlog::WAITING {
        send(&producer, &from, backlog::payload(n).as_bytes());
    }
    producer.flush(Duration::from_secs(60)).expect("the broker takes them");
    let servers = broker().servers();
    let input = format!("type: kafka, topic: {from}, config: {{ bootstrap.servers: '{servers}' }}");
    backlog::watched(name, &input)
}
