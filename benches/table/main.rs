//! Every row of the table of benchmarks, each beside a loop written by hand that does the same work
//! with as many threads, in pairs. `cargo xtask bench` runs it and writes the table;
//! `cargo bench --bench table -- NAME...` runs the rows whose names contain one of these.
//!
//! Each row is a line of JSON on standard output; what people want to see meanwhile goes to standard
//! error.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

mod added;
mod backlog;
mod embedded;
mod files;
#[cfg(not(feature = "real-kafka"))]
mod idle;
#[cfg(feature = "real-kafka")]
mod kafka;
mod latency;
mod memory;
mod peers;
mod recovery;
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
    ("embedded, durable, three processes", embedded::three_processes),
    ("embedded, order by key, 10 keys", |name| embedded::by_key(name, 10, false)),
    ("embedded, order by key, 1,000,000 keys", |name| embedded::by_key(name, 1_000_000, false)),
    ("embedded, order by key, a blocked key", |name| embedded::by_key(name, 1000, true)),
    ("file to file", files::through),
    ("latency, memory", latency::memory),
    ("latency, embedded, three processes", latency::three_processes),
    #[cfg(not(feature = "real-kafka"))]
    ("idle, memory", idle::memory),
    #[cfg(not(feature = "real-kafka"))]
    ("idle, processor", idle::processor),
    ("output away for a minute, memory", recovery::outage),
    ("restart, worker", |name| recovery::restart(name, "worker")),
    ("restart, consumer", |name| recovery::restart(name, "consumer")),
    ("start, first message", start::first_message),
    ("start, 1,000 stages", start::many_stages),
    ("Redis Streams to Redis Streams", redis::streams),
    ("Redis Streams to Redis Streams, processor", redis::streams_processor),
    ("Redis Streams to Redis Streams, p99 at 1,000/s", added::streams),
    ("Redis Streams, 5,000,000 waiting, the output away for a minute", backlog::streams),
    ("RSMQ to RSMQ", redis::rsmq),
    ("RSMQ to RSMQ, p99 at 1,000/s", added::rsmq),
    #[cfg(feature = "real-kafka")]
    ("Kafka to Kafka", kafka::at_least_once),
    #[cfg(feature = "real-kafka")]
    ("Kafka to Kafka, processor", kafka::processor),
    #[cfg(feature = "real-kafka")]
    ("Kafka to Kafka, p99 at 1,000/s", kafka::added),
    #[cfg(feature = "real-kafka")]
    ("Kafka to Kafka, exactly once", kafka::exactly_once),
    #[cfg(feature = "real-kafka")]
    ("Kafka, 5,000,000 waiting, the output away for a minute", kafka::backlog),
];

/// The rows beside other systems, where these were built.
const PEERS: &[Bench] = &[
    ("memory, bytes, beside RustStream 0.7", peers::ruststream_memory),
    ("memory, typed JSON, beside RustStream 0.7", peers::ruststream_json),
    ("Redis Streams, beside RustStream 0.7", |name| peers::streams(name, "ruststream-redis")),
    ("Redis Streams, beside sea-streamer 0.5", |name| peers::streams(name, "sea-streamer-redis")),
    ("RSMQ, beside py-volley 1.3.1", peers::volley),
    #[cfg(feature = "real-kafka")]
    ("Kafka, beside Redpanda Connect 4.85", kafka::connect),
];

fn main() {
    if latency::is_child() {
        return latency::child();
    }
    if embedded::is_child() {
        return embedded::child();
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let peers = if peers::are_there() { PEERS } else { &[] };
    for (name, bench) in ROWS.iter().chain(peers) {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            eprintln!("{name} ...");
            let row = bench(name);
            eprintln!("{row}");
            println!("{}", row.to_json());
        }
    }
}
