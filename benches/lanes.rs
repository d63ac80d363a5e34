//! Three stages in memory on one lane and on two, beside a hand-written loop that does the same work
//! on one thread; median of five pairs. `cargo bench --bench lanes`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and one that stops says where"
)]

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use brigade::component::Raw;
use brigade::pipeline_file::{Format, Overrides, load_str};
use brigade::{Failure, Memory, MemoryState, Message, MessageId, Pipeline, Supervisor};
use bytes::Bytes;

const MESSAGES: usize = 1_000_000;
const PAIRS: usize = 5;

/// What each stage does: touches every byte and copies the payload.
fn work(payload: &[u8]) -> Bytes {
    let sum = payload.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    let mut copy = payload.to_vec();
    copy[0] = sum;
    copy.into()
}

fn stage(raw: Raw) -> Result<Bytes, Failure> {
    Ok(work(raw.0.as_deref().unwrap_or_default()))
}

fn messages() -> impl Iterator<Item = Message> {
    (0..MESSAGES as u128).map(|n| Message::new(vec![7; 200]).with_id(MessageId(n + 1)))
}

/// Seconds for all messages through three stages.
fn brigade(lanes: usize) -> f64 {
    let memory = Memory::new();
    memory.put("bench", "in", messages());
    let registry =
        brigade::registry().connector(Arc::new(memory.clone())).component("stage", stage);
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
    let overrides = Overrides::default();
    let loaded = load_str("bench", Format::Yaml, &text, Path::new("."), &overrides, &registry);
    let pipeline = Pipeline::new(loaded.unwrap().topology, &registry).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let begun = Instant::now();
        let supervisor = Supervisor::new().add(pipeline.state(MemoryState::new()));
        let running = supervisor.start().await.unwrap();
        running.until_idle(None).await.unwrap();
        let took = begun.elapsed().as_secs_f64();
        running.drain().await;
        assert_eq!(memory.messages("bench", "out").len(), MESSAGES);
        took
    })
}

/// The same work by a loop with queues between the stages and a counter of acks.
fn by_hand() -> f64 {
    let mut queue: VecDeque<Message> = messages().collect();
    let begun = Instant::now();
    let (mut out, mut acked) = (VecDeque::new(), 0_usize);
    while !queue.is_empty() {
        let batch: Vec<Message> = queue.drain(..queue.len().min(64)).collect();
        let mut batch: VecDeque<Message> = batch.into();
        for _ in 0..3 {
            let next = batch.iter().map(|message| Message {
                payload: message.payload.as_deref().map(work),
                ..message.clone()
            });
            batch = next.collect();
        }
        acked += batch.len();
        out.extend(batch);
    }
    assert_eq!((acked, out.len()), (MESSAGES, MESSAGES));
    begun.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let rate = |seconds: f64| MESSAGES as f64 / seconds / 1000.0;
    let (mut one_to_two, mut to_hand) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let (hand, one, two) = (by_hand(), brigade(1), brigade(2));
        println!(
            "by hand {:6.0} k/s   one lane {:6.0} k/s   two lanes {:6.0} k/s",
            rate(hand),
            rate(one),
            rate(two)
        );
        one_to_two.push(one / two);
        to_hand.push(hand / one);
    }
    println!("two lanes carry {:.2} times what one carries", median(one_to_two));
    println!("one lane carries {:.2} of the loop written by hand", median(to_hand));
}
