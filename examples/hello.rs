//! The smallest program: one component, and the whole command line.
//!
//! `cargo run --example hello -- run pipelines/hello.yaml --until-idle --state target/hello`

use brigade::prelude::*;

#[derive(serde::Serialize, Output)]
struct Greeting {
    text: String,
}

async fn greet(name: String) -> Result<Greeting, Failure> {
    Ok(Greeting { text: format!("Hello, {name}!") })
}

// ANCHOR: main
brigade::main! { greet }
// ANCHOR_END: main
