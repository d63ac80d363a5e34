//! A component of whole batches: it answers for each message, so one bad row harms no other.
//!
//! `cargo run --example batch`

use std::sync::Arc;

use brigade::prelude::*;
use brigade::{Memory, MemoryState};

const PIPELINE: &str = "
pipeline: rows
queues: { rows: { type: memory }, stored: { type: memory } }
stages:
  store:
    component: store
    input: rows
    outputs: [stored]
    batch: { size: 4, age: 50ms }
";

// ANCHOR: component
#[derive(serde::Deserialize)]
struct Row {
    id: u64,
    name: String,
}

/// Stores rows, as one statement would; the answers stand in the order of the rows.
async fn store(rows: Vec<Row>) -> Vec<Result<Emit, Failure>> {
    let size = rows.len();
    let stored = |row: Row| match row.name.is_empty() {
        true => Err(Failure::reject(format!("row {} has no name", row.id))),
        false => Ok(Emit::value(format!("{} of a batch of {size}", row.name))),
    };
    rows.into_iter().map(stored).collect()
}
// ANCHOR_END: component

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows its result")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = Memory::new();
    let names = ["Ada", "Grace", "", "Linus"];
    let rows =
        names.iter().zip(1..).map(|(name, id)| format!("{{\"id\":{id},\"name\":\"{name}\"}}"));
    memory.put("rows", "rows", rows.map(Message::new));

    let registry =
        brigade::registry().connector(Arc::new(memory.clone())).component("store", store);
    let pipeline = Pipeline::from_yaml(PIPELINE, &registry)?.state(MemoryState::new());
    let running = Supervisor::new().add(pipeline).start().await?;
    running.until_idle(None).await?;
    let status = running.status().await;
    running.drain().await;

    for message in memory.drain("rows", "stored") {
        println!("{}", String::from_utf8_lossy(message.payload.as_deref().unwrap_or_default()));
    }
    let dead: u64 = status[0].stages.iter().map(|stage| stage.dead_lettered).sum();
    println!("dead letters: {dead}");
    Ok(())
}
