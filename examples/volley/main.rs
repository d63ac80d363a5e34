//! Volley's full example: an outside program (`producer.rs`) writes to Kafka; `input_worker` passes it on over RSMQ with a
//! delay, `middle_worker` writes to Kafka by key and to PostgreSQL, through the connector in `postgres.rs`,
//! and sends some back to the beginning; outside programs read both, the topic `consumer.rs`. `tests/volley.rs`
//! runs all of them on real servers.
//!
//! `KAFKA_BROKERS=127.0.0.1:9092 REDIS_HOST=127.0.0.1 POSTGRES="host=127.0.0.1 user=postgres
//! password=brigade" cargo run --features kafka --example volley -- run examples/volley/volley.yaml`

mod postgres;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use brigade::prelude::*;
use serde::{Deserialize, Serialize};

/// What comes from outside, and may come a second time from `middle_worker`.
#[derive(Deserialize, Serialize)]
struct Request {
    request_id: String,
    values: Vec<f64>,
    #[serde(default)]
    rounds: u32,
}

/// What goes out.
#[derive(Serialize)]
struct Answer<'a> {
    request_id: &'a str,
    mean: f64,
    rounds: u32,
}

// ANCHOR: delay
fn input_worker(request: Request) -> Result<Emit, Failure> {
    Ok(Emit::value(&request).delay(Duration::from_millis(250)))
}
// ANCHOR_END: delay

fn middle_worker(request: Request) -> Result<Emit, Failure> {
    if request.values.is_empty() {
        return Err(Failure::reject("there are no values to take the mean of"));
    }
    // Who has many values goes round once more.
    if request.values.len() > 3 && request.rounds == 0 {
        return Ok(Emit::to("input-topic", Request { rounds: 1, ..request }));
    }
    let mean = request.values.iter().sum::<f64>() / request.values.len() as f64;
    let Request { request_id, rounds, .. } = &request;
    let answer = Answer { request_id, mean, rounds: *rounds };
    Ok(Emit::to("output-topic", &answer).key(request_id.clone()).and("postgres_queue", &answer))
}

// ANCHOR: main
fn main() -> ExitCode {
    let registry = brigade::registry()
        .connector(Arc::new(postgres::Postgres))
        .component("input_worker", input_worker)
        .component("middle_worker", middle_worker);
    brigade::cli::main(registry)
}
// ANCHOR_END: main
