//! The program of the tutorial (docs/src/tutorial.md): a component, and the whole command line.
//!
//! `cargo run --example tutorial -- run pipelines/tutorial/shop.yaml --until-idle`

use brigade::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Order {
    id: u64,
    customer: String,
    total: i64,
}

#[derive(Serialize, Output)]
struct Bill {
    order: u64,
    customer: String,
    due: i64,
}

async fn bill(order: Order) -> Result<Bill, Failure> {
    if order.total <= 0 {
        // This will never succeed: a dead letter, now. Any other error (`?`) is tried again.
        return Err(Failure::reject(format!("order {} has no total", order.id)));
    }
    Ok(Bill { order: order.id, customer: order.customer, due: order.total * 120 / 100 })
}

brigade::main! { bill }
