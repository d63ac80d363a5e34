//! Three stages in memory.

use std::collections::VecDeque;
use std::sync::Arc;

use brigade::component::Raw;
use brigade::prelude::*;
use brigade::{Memory, MemoryState, Message, MessageId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::support::{Row, Spent, Stopwatch, idle, pipeline, timed};

const MESSAGES: usize = 500_000;
const CHUNK: usize = 64;

/// What each stage does with bytes: touches every one and copies the payload.
fn work(payload: &[u8]) -> Bytes {
    let sum = payload.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let mut copy = payload.to_vec();
    copy[0] = sum;
    copy.into()
}

fn raw(raw: Raw) -> Result<Bytes, Failure> {
    Ok(work(raw.0.as_deref().unwrap_or_default()))
}

fn messages(payload: impl Fn(usize) -> Bytes) -> Vec<Message> {
    let message = |n: usize| Message::new(payload(n)).with_id(MessageId(n as u128 + 1));
    (0..MESSAGES).map(message).collect()
}

fn two_hundred(_: usize) -> Bytes {
    Bytes::from_static(&[7; 200])
}

/// Bytes over direct edges.
pub(crate) fn bytes(name: &'static str, lanes: usize) -> Row {
    let ours = || bytes_ours(lanes);
    Row::rates(name, 0.7, MESSAGES, ours, move || by_hand(lanes, 3, two_hundred, work))
}

/// What Brigade takes for it.
pub(crate) fn bytes_ours(lanes: usize) -> Spent {
    let memory = Memory::new();
    memory.put("bench", "in", messages(two_hundred));
    let registry = brigade::registry().connector(Arc::new(memory.clone())).component("stage", raw);
    let text = format!(
        "pipeline: bench
lanes: {lanes}
queues:
  in: {{ type: memory }}
  out: {{ type: memory, limit: {{ messages: 10000000 }} }}
stages:
  a: {{ component: stage, input: in, workers: {lanes} }}
  b: {{ component: stage, input: a, workers: {lanes} }}
  c: {{ component: stage, input: b, outputs: [out], workers: {lanes} }}
"
    );
    let took = timed(pipeline(&text, &registry).state(MemoryState::new()), idle);
    assert_eq!(memory.messages("bench", "out").len(), MESSAGES);
    took
}

#[derive(Debug, Clone, Serialize, Deserialize, Output)]
struct Order {
    id: u64,
    customer: String,
    city: String,
    lines: Vec<Line>,
    total: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    article: String,
    price: f64,
    pieces: u32,
}

fn order(n: usize) -> Bytes {
    let line = |at: usize| Line { article: format!("a{at}"), price: 2.5, pieces: 2 };
    let order = Order {
        id: n as u64,
        customer: format!("customer {n}"),
        city: "Lübeck".to_owned(),
        lines: (0..3).map(line).collect(),
        total: 0.0,
    };
    serde_json::to_vec(&order).expect("numbers and texts always encode").into()
}

fn add_up(mut order: Order) -> Order {
    order.total += order.lines.iter().map(|line| line.price * f64::from(line.pieces)).sum::<f64>();
    order
}

/// Typed JSON, read and written by every stage: there is a queue between them.
pub(crate) fn json(name: &'static str) -> Row {
    let stage = |payload: &[u8]| {
        let order: Order = serde_json::from_slice(payload).expect("it was written so");
        serde_json::to_vec(&add_up(order)).expect("numbers and texts always encode").into()
    };
    Row::rates(name, 0.9, MESSAGES, json_ours, move || by_hand(1, 3, order, stage))
}

/// What Brigade takes for it.
pub(crate) fn json_ours() -> Spent {
    let memory = Memory::new();
    memory.put("bench", "in", messages(order));
    let stage = |order: Order| Ok::<_, Failure>(add_up(order));
    let registry =
        brigade::registry().connector(Arc::new(memory.clone())).component("stage", stage);
    let text = "pipeline: bench
lanes: 1
queues:
  in: { type: memory }
  one: { type: memory, limit: { messages: 10000000 } }
  two: { type: memory, limit: { messages: 10000000 } }
  out: { type: memory, limit: { messages: 10000000 } }
stages:
  a: { component: stage, input: in, outputs: [one], workers: 1 }
  b: { component: stage, input: one, outputs: [two], workers: 1 }
  c: { component: stage, input: two, outputs: [out], workers: 1 }
";
    let took = timed(pipeline(text, &registry).state(MemoryState::new()), idle);
    assert_eq!(memory.messages("bench", "out").len(), MESSAGES);
    took
}

/// The same work by loops with a queue before each stage and a counter of acks, a thread each.
fn by_hand(
    threads: usize,
    stages: usize,
    payload: fn(usize) -> Bytes,
    work: impl Fn(&[u8]) -> Bytes + Copy + Send,
) -> Spent {
    let mut all = messages(payload);
    let mut shares: Vec<Vec<Message>> = Vec::new();
    for left in (1..=threads).rev() {
        shares.push(all.split_off(all.len() - all.len() / left));
    }
    let begun = Stopwatch::start();
    let acked: usize = std::thread::scope(|scope| {
        let one = |share: Vec<Message>| scope.spawn(move || one_by_hand(share, stages, work));
        let running: Vec<_> = shares.into_iter().map(one).collect();
        running.into_iter().map(|thread| thread.join().expect("it does not panic")).sum()
    });
    assert_eq!(acked, MESSAGES);
    begun.stop()
}

fn one_by_hand(share: Vec<Message>, stages: usize, work: impl Fn(&[u8]) -> Bytes) -> usize {
    let mut queue: VecDeque<Message> = share.into();
    let (mut out, mut acked) = (VecDeque::with_capacity(queue.len()), 0);
    while !queue.is_empty() {
        let mut batch: VecDeque<Message> = queue.drain(..queue.len().min(CHUNK)).collect();
        for _ in 0..stages {
            let next = batch.iter().map(|message| Message {
                payload: message.payload.as_deref().map(&work),
                ..message.clone()
            });
            batch = next.collect();
        }
        acked += batch.len();
        out.extend(batch);
    }
    assert_eq!(out.len(), acked);
    acked
}
