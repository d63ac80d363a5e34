//! Several components in one process, each written in another way, joined by direct edges: no queue
//! in between, values pass as they are.
//!
//! `cargo run --example several_components`

use std::sync::Arc;

use brigade::prelude::*;
use brigade::{Memory, MemoryState};

const PIPELINE: &str = "
pipeline: words
queues: { lines: { type: memory }, counted: { type: memory }, loud: { type: memory } }
stages:
  split: { component: split, input: lines, copy: true } # each word to both
  count: { component: count, input: split, outputs: [counted] }
  shout: { component: shout, input: split, outputs: [loud] }
";

// ANCHOR: functions
/// A plain function; what it answers are any number of outputs.
fn split(line: String) -> Result<Vec<Word>, Failure> {
    Ok(line.split_whitespace().map(|text| Word { text: text.to_owned() }).collect())
}

/// An async function with a context: what is known of the message, its stage and its attempt.
async fn count(word: Word, cx: &Context) -> Result<Emit, Failure> {
    if cx.attempt() == 1 && word.text == "tricky" {
        return Err(Failure::retry("not the first time"));
    }
    Ok(Emit::value((word.text.len(), cx.attempt())).key(word.text))
}
// ANCHOR_END: functions

/// One value that passes between components.
#[derive(Clone, serde::Serialize, serde::Deserialize, Output)]
struct Word {
    text: String,
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example shows its result")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let memory = Memory::new();
    // A closure is a component too; `None` means that the message is filtered.
    let shout = |word: Word| {
        let loud = (word.text.len() > 3).then(|| Word { text: word.text.to_uppercase() });
        Ok::<_, Failure>(loud)
    };
    let registry = brigade::registry()
        .connector(Arc::new(memory.clone()))
        .component("split", split)
        .component("count", count)
        .component("shout", shout);
    let pipeline = Pipeline::from_yaml(PIPELINE, &registry)?.state(MemoryState::new());
    let running = Supervisor::new().add(pipeline).start().await?;

    memory.put("words", "lines", ["\"a tricky line\"", "\"of words\""].map(Message::new));
    running.until_idle(None).await?;
    for queue in ["counted", "loud"] {
        for message in memory.drain("words", queue) {
            let text = |bytes: Option<&[u8]>| {
                String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
            };
            let (key, payload) = (text(message.key.as_deref()), text(message.payload.as_deref()));
            println!("{queue}: {payload} {key}");
        }
    }
    running.drain().await;
    Ok(())
}
