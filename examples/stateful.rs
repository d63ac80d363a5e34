//! A component with state that survives: running totals by customer. The state is written in the
//! transaction of the ack, so no order is counted twice, whatever dies.
//!
//! `cargo run --example stateful DIRECTORY`; run it again, and the totals go on.

use std::path::{Path, PathBuf};

use brigade::prelude::*;
use brigade::{BoxError, pipeline_file};

const PIPELINE: &str = "
pipeline: totals
queues:
  orders: { type: embedded, key: customer }
  totals: { type: file, path: '${OUT}/totals.txt', format: lines }
stages:
  total: { component: total, input: orders, outputs: [totals], order: key, workers: 2 }
";

// ANCHOR: component
#[derive(serde::Deserialize)]
struct Order {
    customer: String,
    total: u64,
}

#[derive(Clone, Default)]
struct Total {
    currency: String,
}

impl Component for Total {
    type In = Order;
    type Out = Emit;

    /// Called before the first message, on each lane: the place to connect to something.
    async fn init(&mut self, setup: &Setup) -> Result<(), BoxError> {
        self.currency = setup.stage.env.get("CURRENCY").cloned().unwrap_or("EUR".to_owned());
        Ok(())
    }

    async fn handle(&mut self, order: Order, cx: &Context) -> Result<Emit, Failure> {
        let known = cx.load_state(&order.customer).await?;
        let before: u64 =
            known.map(|bytes| serde_json::from_slice(&bytes)).transpose()?.unwrap_or(0);
        let sum = before + order.total;
        let text = format!("{}: {sum} {}", order.customer, self.currency);
        Ok(Emit::value(text).put_state(order.customer, sum.to_string()))
    }
}
// ANCHOR_END: component

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows its result")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given = std::env::args_os().nth(1).map(PathBuf::from);
    let out = given.unwrap_or_else(|| std::env::temp_dir().join("brigade-totals"));
    let registry = brigade::registry().component("total", Total::default());
    let overrides = pipeline_file::Overrides {
        variables: vec![("OUT".to_owned(), out.display().to_string())],
        ..Default::default()
    };
    let format = pipeline_file::Format::Yaml;
    let loaded =
        pipeline_file::load_str("totals", format, PIPELINE, Path::new("."), &overrides, &registry)?;
    let pipeline = Pipeline::new(loaded.topology, &registry)?.state_path(out.join("state"));
    let running = Supervisor::new().add(pipeline).start().await?;

    let orders = [("Ada", 10), ("Grace", 20), ("Ada", 5)];
    let orders = orders.map(|(customer, total)| {
        Message::new(format!("{{\"customer\":\"{customer}\",\"total\":{total}}}"))
            .with_key(customer)
            .into()
    });
    running.producer("orders").await?.produce(&orders).await?;
    running.until_idle(None).await?;
    running.drain().await;
    print!("{}", std::fs::read_to_string(out.join("totals.txt"))?);
    Ok(())
}
