//! From one Redis stream to another, beside a batched loop on the same client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade::prelude::*;
use brigade::{Memory, Message, MessageId};
use brigade_testkit::servers::Redis;
use redis::Value;
use serde::{Deserialize, Serialize};

use crate::support::{Row, acked, pipeline, timed};

const MESSAGES: usize = 50_000;
const BATCH: usize = 500;

#[derive(Serialize, Deserialize, Output)]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) text: String,
    pub(crate) total: i64,
}

/// 200 bytes of JSON.
pub(crate) fn payload(id: usize) -> Vec<u8> {
    let order = Order { id: id as u64, text: "x".repeat(160), total: 1 };
    serde_json::to_vec(&order).unwrap()
}

pub(crate) fn add(mut order: Order) -> Order {
    order.total += 1;
    order
}

pub(crate) fn streams(name: &'static str) -> Row {
    let ours = || {
        let server = Redis::start();
        let memory = Memory::new();
        let message = |n| Message::new(payload(n)).with_id(MessageId(n as u128 + 1));
        memory.put("bench", "first", (0..MESSAGES).map(message));
        let registry = brigade::registry()
            .connector(Arc::new(memory))
            .component("add", |order: Order| Ok::<_, Failure>(add(order)));
        let text = format!(
            "pipeline: bench
lanes: 1
queues:
  first: {{ type: memory }}
  in: {{ type: redis_stream, url: '{0}' }}
  out: {{ type: redis_stream, url: '{0}' }}
stages:
  fill: {{ component: pass, input: first, outputs: [in] }}
  add: {{ component: add, input: in, outputs: [out], workers: 1 }}
",
            server.url()
        );
        let only = |stage: &str| {
            let pipeline = pipeline(&text, &registry).state(brigade::MemoryState::new());
            pipeline.stages(&[stage.to_owned()]).unwrap()
        };
        timed(only("fill"), async |running| acked(running, MESSAGES).await);
        timed(only("add"), async |running| acked(running, MESSAGES).await)
    };
    Row::rates(name, 0.9, MESSAGES, ours, by_hand)
}

/// Reads, adds and acks a batch in one pipeline after the other.
fn by_hand() -> Duration {
    let server = Redis::start();
    let mut client = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    for n in (0..MESSAGES).step_by(BATCH) {
        let mut fill = redis::pipe();
        for n in n..n + BATCH {
            fill.cmd("XADD").arg("in").arg("*").arg("payload").arg(payload(n)).ignore();
        }
        fill.query::<()>(&mut client).unwrap();
    }
    let mut make = redis::cmd("XGROUP");
    make.arg(&["CREATE", "in", "group", "0"]).query::<()>(&mut client).unwrap();
    let begun = Instant::now();
    let mut done = 0;
    while done < MESSAGES {
        let mut read = redis::cmd("XREADGROUP");
        read.arg(&["GROUP", "group", "one", "COUNT"]).arg(BATCH).arg(&["STREAMS", "in", ">"]);
        let Value::Array(mut streams) = read.query(&mut client).unwrap() else { panic!("none") };
        let Some(Value::Array(mut stream)) = streams.pop() else { panic!("no stream") };
        let Some(Value::Array(entries)) = stream.pop() else { panic!("no entries") };
        let mut turn = redis::pipe();
        let mut ids: Vec<Vec<u8>> = Vec::new();
        for entry in entries {
            let (id, fields): (Vec<u8>, Vec<Vec<u8>>) = redis::from_redis_value(entry).unwrap();
            let order: Order = serde_json::from_slice(&fields[1]).unwrap();
            let json = serde_json::to_vec(&add(order)).unwrap();
            turn.cmd("XADD").arg("out").arg("*").arg("payload").arg(json).ignore();
            ids.push(id);
        }
        done += ids.len();
        turn.cmd("XACK").arg("in").arg("group").arg(&ids).ignore();
        turn.cmd("XDEL").arg("in").arg(&ids).ignore();
        turn.query::<()>(&mut client).unwrap();
    }
    begun.elapsed()
}
