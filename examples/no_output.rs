//! Components that put nothing out: one keeps what it looks for and lets the rest go, the other has no
//! outputs at all.
//!
//! `cargo run --example no_output`

use std::sync::Arc;

use brigade::prelude::*;
use brigade::{Memory, MemoryState};

const PIPELINE: &str = "
pipeline: oven
queues: { readings: { type: memory }, alarms: { type: memory } }
stages:
  watch: { component: watch, input: readings, outputs: [alarms] }
  ring: { component: ring, input: alarms }
";

// ANCHOR: functions
#[derive(serde::Deserialize)]
struct Readings {
    degrees: Vec<f64>,
}

#[derive(serde::Serialize, serde::Deserialize, Output)]
struct Alarm {
    mean: f64,
}

/// `None` puts nothing out: the message is done, and counted as filtered.
fn watch(readings: Readings) -> Result<Option<Alarm>, Failure> {
    let mean = readings.degrees.iter().sum::<f64>() / readings.degrees.len() as f64;
    Ok((mean > 200.0).then_some(Alarm { mean }))
}

/// `()` is for who never puts anything out: the message is done when the work is.
#[expect(clippy::print_stdout, reason = "an example shows its result")]
fn ring(alarm: Alarm) -> Result<(), Failure> {
    println!("{} degrees", alarm.mean);
    Ok(())
}
// ANCHOR_END: functions

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows its result")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = Memory::new();
    let registry = brigade::registry()
        .connector(Arc::new(memory.clone()))
        .component("watch", watch)
        .component("ring", ring);
    let pipeline = Pipeline::from_yaml(PIPELINE, &registry)?.state(MemoryState::new());
    let running = Supervisor::new().add(pipeline).start().await?;
    let readings = ["{\"degrees\":[180,190]}", "{\"degrees\":[210,230]}", "{\"degrees\":[90]}"];
    memory.put("oven", "readings", readings.map(Message::new));
    running.until_idle(None).await?;
    for stopped in running.drain().await {
        for stage in &stopped.status.stages {
            let (name, received, filtered) = (&stage.stage, stage.received, stage.filtered);
            println!("{name}: {filtered} of {received} put nothing out");
        }
    }
    Ok(())
}
