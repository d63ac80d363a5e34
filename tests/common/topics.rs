//! Topics that a test makes by itself, on brokers that are named to nobody for a moment where the machine is busy; and
//! what is on a topic.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(180);

/// Makes a topic, and tries again until it is there: without a broker that is heard of there is nowhere to put it.
pub(crate) async fn make_topic(servers: &str, topic: &NewTopic<'_>) {
    let mut config = ClientConfig::new();
    let admin: AdminClient<DefaultClientContext> =
        config.set("bootstrap.servers", servers).create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    let begun = Instant::now();
    loop {
        let told = match admin.create_topics([topic], &options).await {
            Ok(mut made) => match made.remove(0) {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => return,
                Err((_, code)) => code.to_string(),
            },
            Err(error) => error.to_string(),
        };
        assert!(begun.elapsed() < PATIENCE, "topic `{}` is not made: {told}", topic.name);
    }
}

/// A topic, read as far as it is committed.
pub(crate) struct Topic {
    client: BaseConsumer,
    name: String,
    partitions: i32,
    /// How often each number is in it.
    pub(crate) counts: BTreeMap<usize, usize>,
    /// The number in a record.
    pub(crate) number: fn(&Value) -> Option<u64>,
}

impl Topic {
    pub(crate) fn new(servers: &str, topic: &str, partitions: i32) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers).set("group.id", "reader");
        let client: BaseConsumer =
            config.set("isolation.level", "read_committed").create().unwrap();
        // Not as a member of a group, which might give out something twice.
        let mut all = TopicPartitionList::new();
        all.add_partition_range(topic, 0, partitions - 1);
        all.set_all_offsets(Offset::Beginning).unwrap();
        client.assign(&all).unwrap();
        let (counts, number) = (BTreeMap::new(), |value: &Value| value["n"].as_u64());
        Self { client, name: topic.to_owned(), partitions, counts, number }
    }

    /// How many records there are, where nobody writes in transactions.
    pub(crate) fn len(&self) -> usize {
        let end = |partition| {
            let (_, end) = self.client.fetch_watermarks(&self.name, partition, PATIENCE).unwrap();
            usize::try_from(end).unwrap()
        };
        (0..self.partitions).map(end).sum()
    }

    /// How many records have come by now.
    pub(crate) fn times(&self) -> usize {
        self.counts.values().sum()
    }

    /// Takes in a record, if one comes soon; says whether it did.
    pub(crate) fn read_on(&mut self) -> bool {
        match self.client.poll(Duration::from_millis(500)) {
            Some(Ok(record)) => {
                let bytes = record.payload().unwrap();
                let value: Value = serde_json::from_slice(bytes).unwrap();
                let n = (self.number)(&value).unwrap() as usize;
                *self.counts.entry(n).or_default() += 1;
                true
            }
            // The broker may be away.
            Some(Err(_)) => true,
            None => false,
        }
    }

    /// Takes in what is there; says how many numbers have come by now.
    pub(crate) fn read(&mut self) -> usize {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(100) && self.read_on() {}
        self.counts.len()
    }
}
