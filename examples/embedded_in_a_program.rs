//! A pipeline inside a program that has its own work: it feeds a queue, watches events, scales a
//! stage, and drains at the end.
//!
//! `cargo run --example embedded_in_a_program`

use std::sync::Arc;

use brigade::prelude::*;
use brigade::{Event, Memory, MemoryState};

const PIPELINE: &str = "
pipeline: inside
queues: { requests: { type: memory }, answers: { type: memory } }
stages: { square: { component: square, input: requests, outputs: [answers] } }
";

fn square(number: i64) -> Result<Emit, Failure> {
    let squared = number.checked_mul(number);
    squared.map(Emit::value).ok_or_else(|| Failure::reject("too large to be squared"))
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows its result")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = Memory::new();
    let registry =
        brigade::registry().connector(Arc::new(memory.clone())).component("square", square);
    let pipeline = Pipeline::from_yaml(PIPELINE, &registry)?.state(MemoryState::new());
    let running = Supervisor::new().add(pipeline).start().await?;
    // ANCHOR: running
    let mut events = running.events();

    let numbers = (1..=5).chain([i64::MAX]);
    memory.put("inside", "requests", numbers.map(|n| Message::new(n.to_string())));
    while let Some(event) = events.next().await {
        if let Event::DeadLetter { message, .. } = event {
            println!("a dead letter: {message}");
            break;
        }
    }
    running.until_idle(None).await?;
    running.scale("square", 4).await?;
    // ANCHOR_END: running
    for answer in memory.drain("inside", "answers") {
        println!("{}", String::from_utf8_lossy(answer.payload.as_deref().unwrap_or_default()));
    }
    running.drain().await;
    Ok(())
}
