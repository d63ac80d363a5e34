//! Every row of the table of benchmarks, each beside a loop written by hand that does the same work
//! with as many threads, in pairs. `cargo xtask bench` runs it and writes the table;
//! `cargo bench --bench table -- NAME...` runs the rows whose names contain one of these.
//!
//! Each row is a line of JSON on standard output; what people want to see meanwhile goes to standard
//! error.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark prints, and one that stops says where"
)]

mod embedded;
mod files;
#[cfg(feature = "real-kafka")]
mod kafka;
mod latency;
mod memory;
mod redis;
mod start;
mod support;
mod tracker;

use support::Row;

/// A row's name and what measures it.
type Bench = (&'static str, fn(&'static str) -> Row);

const ROWS: &[Bench] = &[
    ("memory, bytes, one lane", |name| memory::bytes(name, 1)),
    ("memory, bytes, two lanes", |name| memory::bytes(name, 2)),
    ("memory, typed JSON", memory::json),
    ("tracker, ledger and books", tracker::per_message),
    ("embedded, durable", embedded::durable),
    ("embedded, order by key, 10 keys", |name| embedded::by_key(name, 10, false)),
    ("embedded, order by key, 1,000,000 keys", |name| embedded::by_key(name, 1_000_000, false)),
    ("embedded, order by key, a blocked key", |name| embedded::by_key(name, 500_000, true)),
    ("file to file", files::through),
    ("latency, memory", latency::memory),
    ("latency, embedded, three processes", latency::three_processes),
    ("start, first message", start::first_message),
    ("start, 1,000 stages", start::many_stages),
    ("Redis Streams to Redis Streams", redis::streams),
    ("Redis Streams to Redis Streams, processor", redis::streams_processor),
    ("RSMQ to RSMQ", redis::rsmq),
    #[cfg(feature = "real-kafka")]
    ("Kafka to Kafka", kafka::at_least_once),
    #[cfg(feature = "real-kafka")]
    ("Kafka to Kafka, processor", kafka::processor),
    #[cfg(feature = "real-kafka")]
    ("Kafka to Kafka, exactly once", kafka::exactly_once),
    #[cfg(feature = "real-kafka")]
    ("Kafka, 5,000,000 waiting, the output away for a minute", kafka::backlog),
];

fn main() {
    if latency::is_child() {
        return latency::child();
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    for (name, bench) in ROWS {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            eprintln!("{name} ...");
            let row = bench(name);
            eprintln!("{row}");
            println!("{}", row.to_json());
        }
    }
}
