//! A thousand orders, billed: what comes out, and what becomes of orders that cannot be billed.
//!
//! `cargo run --release --example quickstart`

use std::path::Path;

use brigade::prelude::*;
use brigade::{DeadLetter, pipeline_file};

#[derive(serde::Deserialize)]
struct Order {
    id: u64,
    customer: String,
    total: i64,
}

#[derive(serde::Serialize, Output)]
struct Bill {
    order: u64,
    customer: String,
    due: i64,
}

async fn bill(order: Order) -> Result<Bill, Failure> {
    if order.total <= 0 {
        return Err(Failure::reject(format!("order {} has no total", order.id)));
    }
    Ok(Bill { order: order.id, customer: order.customer, due: order.total * 120 / 100 })
}

const PIPELINE: &str = r#"
pipeline: quickstart
state: "${OUT}/state"
queues:
  orders:
    type: generator
    count: 1000
    template: { id: "{{seq}}", customer: "{{pick Ada Grace Linus}}", total: "{{int -10 990}}" }
  bills: { type: embedded }
  large: { type: file, path: "${OUT}/large.jsonl" }
  dead: { type: file, path: "${OUT}/dead.jsonl" }
stages:
  bill: { component: bill, input: orders, outputs: [bills], dead_letter: dead }
  sort: { component: { filter: ".due >= 500" }, input: bills, outputs: [large] }
"#;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = std::env::temp_dir().join(format!("brigade-quickstart-{}", std::process::id()));
    let registry = brigade::registry().component("bill", bill);
    let overrides = pipeline_file::Overrides {
        variables: vec![("OUT".to_owned(), out.display().to_string())],
        ..Default::default()
    };
    let format = pipeline_file::Format::Yaml;
    let loaded =
        pipeline_file::load_str("quickstart", format, PIPELINE, &out, &overrides, &registry)?;
    let running = Supervisor::new().add(Pipeline::new(loaded.topology, &registry)?).start().await?;
    running.until_idle(None).await?;
    let status = running.status().await;
    running.drain().await;
    report(&status[0], &out)?;
    std::fs::remove_dir_all(&out)?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "an example shows its result")]
fn report(status: &brigade::PipelineStatus, out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for stage in &status.stages {
        println!(
            "{:5} {:4} orders in, {:4} passed on, {:4} filtered, {:2} dead letters",
            stage.stage, stage.received, stage.acked, stage.filtered, stage.dead_lettered
        );
    }
    let large = std::fs::read_to_string(out.join("large.jsonl"))?;
    println!("\nthe first large bills:");
    large.lines().take(3).for_each(|line| println!("  {line}"));
    let dead = std::fs::read_to_string(out.join("dead.jsonl"))?;
    println!("\nthe first dead letters:");
    for line in dead.lines().take(3) {
        let letter = DeadLetter::from_json(line.as_bytes())?;
        println!("  {} ({})", letter.cause.message, letter.cause.kind.as_str());
    }
    Ok(())
}
