//! What a Volley user writes with Brigade: a schema whose violations become dead letters, several
//! outputs, no output, a key, the context.
//!
//! `cargo run --example from_volley -- run pipelines/from_volley.yaml --until-idle --state target/volley`

use brigade::prelude::*;

// ANCHOR: models
#[derive(serde::Deserialize)]
struct InputMessage {
    id: u64,
    value: i64,
    /// The fields that are not named here, to be passed on.
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

#[derive(serde::Serialize, Output)]
struct OutputMessage {
    hello: String,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}
// ANCHOR_END: models

// ANCHOR: score
fn score(input: InputMessage) -> Result<Option<OutputMessage>, Failure> {
    if input.value <= 0 {
        return Ok(None);
    }
    Ok(Some(OutputMessage { hello: format!("foo {}", input.id), rest: input.rest }))
}
// ANCHOR_END: score

// ANCHOR: outputs
fn share(input: serde_json::Value) -> Result<Emit, Failure> {
    let hello = input["hello"].as_str().unwrap_or_default().to_owned();
    Ok(Emit::to("queue-a", &input).key(hello).and("queue-b", &input))
}
// ANCHOR_END: outputs

// ANCHOR: look
async fn look(input: serde_json::Value, cx: &Context) -> Result<(), Failure> {
    if input["hello"].is_null() {
        return Err(Failure::retry(format!("no greeting at {}", cx.position())));
    }
    cx.counter("greetings_total").increment(1);
    Ok(())
}
// ANCHOR_END: look

brigade::main! { score, share, look }
