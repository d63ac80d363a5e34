//! The program outside that reads `output-topic`, or another topic, as any program with a Kafka client: it
//! prints each record, a line of its key, a tab and its payload, from the beginning and until it is stopped.
//!
//! `KAFKA_BROKERS=127.0.0.1:9092 cargo run --features real-kafka --example volley_consumer -- output-topic`

use std::io::Write;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let topic = std::env::args().nth(1).unwrap_or("output-topic".to_owned());
    let servers = std::env::var("KAFKA_BROKERS")?;
    let mut config = ClientConfig::new();
    // A group of its own, so that each that runs sees all of it.
    let group = format!("outside-{}", std::process::id());
    config.set("bootstrap.servers", servers).set("group.id", group);
    config.set("auto.offset.reset", "earliest").set("allow.auto.create.topics", "false");
    config.set("topic.metadata.refresh.interval.ms", "500");
    let consumer: BaseConsumer = config.create()?;
    consumer.subscribe(&[topic.as_str()])?;
    loop {
        // A topic that is not there yet, and a broker that is away, come back by themselves.
        let Some(Ok(record)) = consumer.poll(Duration::from_secs(1)) else { continue };
        let mut line = record.key().unwrap_or_default().to_vec();
        line.push(b'\t');
        line.extend_from_slice(record.payload().unwrap_or_default());
        line.push(b'\n');
        std::io::stdout().write_all(&line)?;
    }
}
