//! The program outside that writes to `input-topic`, as any program with a Kafka client: so many requests,
//! some with many values, some with none to take a mean of, and of each fifty one that is no JSON and one that
//! violates the schema.
//!
//! `KAFKA_BROKERS=127.0.0.1:9092 cargo run --features real-kafka --example volley_producer -- 300`

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::json;

/// How long the broker may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn request(n: usize) -> (String, Vec<u8>) {
    let id = format!("r{n}");
    let values: Vec<usize> = (0..n % 6).collect();
    let bytes = match n % 50 {
        7 => b"{ no json".to_vec(),
        9 => json!({ "request_id": id, "values": "none" }).to_string().into(),
        _ => json!({ "request_id": id, "values": values }).to_string().into(),
    };
    (id, bytes)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let requests: usize = std::env::args().nth(1).ok_or("how many?")?.parse()?;
    let servers = std::env::var("KAFKA_BROKERS")?;
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", servers).create()?;
    for (id, bytes) in (0..requests).map(request) {
        let record = BaseRecord::to("input-topic").key(&id).payload(&bytes);
        producer.send(record).map_err(|(error, _)| error)?;
    }
    Ok(producer.flush(PATIENCE)?)
}
