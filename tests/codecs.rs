//! Queues whose payloads are not JSON: what comes in, what goes out, what fails, what goes back.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use brigade::component::Raw;
use brigade::pipeline_file::{Format, Overrides, load_str};
use brigade::prelude::*;
use brigade::{
    CauseKind, DeadLetter, Memory, MemoryState, Message, MessageId, Pipeline, Supervisor,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Debug, Serialize, Deserialize, Output)]
struct Order {
    n: u64,
    name: String,
}

fn count_up(order: Order) -> Result<Order, Failure> {
    match order.n {
        13 => Err(Failure::reject("an unlucky number")),
        n => Ok(Order { n: n + 1, ..order }),
    }
}

#[derive(Debug, Serialize, Deserialize, Output)]
struct Bill {
    id: u128,
}

/// Needs all digits, and no field twice.
fn next_bill(bill: Bill) -> Result<Bill, Failure> {
    Ok(Bill { id: bill.id + 1 })
}

fn as_it_is(raw: Raw) -> Result<Raw, Failure> {
    Ok(raw)
}

/// Runs a pipeline on memory queues until nothing is left to do.
async fn run(memory: &Memory, text: &str) {
    let registry = brigade::registry()
        .connector(Arc::new(memory.clone()))
        .component("count_up", count_up)
        .component("next_bill", next_bill)
        .component("as_it_is", as_it_is);
    let (path, overrides) = (Path::new("."), Overrides::default());
    let loaded = load_str("codecs", Format::Yaml, text, path, &overrides, &registry);
    let topology = loaded.unwrap_or_else(|error| panic!("{error}")).topology;
    let pipeline = Pipeline::new(topology, &registry).unwrap().state(MemoryState::new());
    let running = Supervisor::new().add(pipeline).start().await.unwrap();
    running.until_idle(None).await.unwrap();
    running.stop(None).await;
}

fn message(n: u128, payload: impl Into<bytes::Bytes>) -> Message {
    Message::new(payload).with_id(MessageId(n))
}

fn messagepack(value: &Value) -> Vec<u8> {
    rmp_serde::to_vec_named(value).unwrap()
}

fn payloads(memory: &Memory, queue: &str) -> Vec<bytes::Bytes> {
    memory.messages("codecs", queue).into_iter().map(|m| m.payload.unwrap()).collect()
}

#[tokio::test]
async fn typed_components_read_and_write_every_codec() {
    let memory = Memory::new();
    let order = json!({ "n": 1, "name": "Lübeck" });
    memory.put("codecs", "packed", [message(1, messagepack(&order))]);
    run(
        &memory,
        "pipeline: codecs
queues:
  packed: { type: memory, codec: messagepack, key: name, schema: { required: [n] } }
  binary: { type: memory, codec: cbor }
  plain: { type: memory }
stages:
  one: { component: count_up, input: packed, outputs: [binary] }
  two: { component: count_up, input: binary, outputs: [plain] }
",
    )
    .await;
    let out = memory.messages("codecs", "plain");
    let value: Value = serde_json::from_slice(out[0].payload.as_deref().unwrap()).unwrap();
    assert_eq!(value, json!({ "n": 3, "name": "Lübeck" }));
    assert_eq!(out[0].key.as_deref(), Some("Lübeck".as_bytes()), "read out of MessagePack");
}

#[tokio::test]
async fn a_typed_component_reads_the_same_whatever_its_queue_asks_for() {
    let memory = Memory::new();
    for queue in ["plain", "keyed", "held"] {
        let payloads = ["{\"id\":123456789012345678901}", "{\"id\":1,\"id\":2}"];
        memory.put("codecs", queue, (1..).zip(payloads).map(|(n, payload)| message(n, payload)));
    }
    let text = "pipeline: codecs
queues:
  plain: { type: memory }
  keyed: { type: memory, key: id }
  held: { type: memory, schema: { required: [id] } }
  out: { type: memory }
  dead: { type: memory }
stages:
  one: { component: next_bill, input: plain, outputs: [out], dead_letter: dead }
  two: { component: next_bill, input: keyed, outputs: [out], dead_letter: dead }
  three: { component: next_bill, input: held, outputs: [out], dead_letter: dead }
";
    run(&memory, text).await;
    assert_eq!(payloads(&memory, "out"), ["{\"id\":123456789012345678902}"; 3]);
    let causes = payloads(&memory, "dead");
    let causes = causes.iter().map(|letter| DeadLetter::from_json(letter).unwrap().cause);
    let causes: Vec<_> = causes.collect();
    assert_eq!(causes.len(), 3, "{causes:?}");
    assert!(causes.iter().all(|cause| cause.message.contains("duplicate field")), "{causes:?}");
}

#[tokio::test]
async fn bytes_pass_as_they_are_and_are_rewritten_for_another_codec() {
    let memory = Memory::new();
    // Not what `rmp_serde` would write: the number takes more room than it needs.
    let odd = [0x81, 0xa1, b'n', 0xcd, 0, 7];
    memory.put("codecs", "packed", [message(1, odd.to_vec())]);
    let text = "pipeline: codecs
queues:
  packed: { type: memory, codec: messagepack }
  same: { type: memory, codec: messagepack }
  other: { type: memory, codec: cbor }
  raw: { type: memory, codec: bytes }
  json: { type: memory }
stages:
  pass: { component: as_it_is, input: packed }
  on: { component: as_it_is, input: pass, outputs: [same, other, raw, json], copy: true }
";
    run(&memory, text).await;
    assert_eq!(payloads(&memory, "same"), [&odd[..]]);
    assert_eq!(payloads(&memory, "raw"), [&odd[..]]);
    assert_eq!(payloads(&memory, "json"), ["{\"n\":7}"]);
    assert_eq!(payloads(&memory, "other"), [&[0xa1, 0x61, b'n', 7][..]]);
}

#[tokio::test]
async fn a_text_is_a_string_for_those_who_read_values() {
    let memory = Memory::new();
    memory.put("codecs", "words", [message(1, "Grüße"), message(2, vec![0xff])]);
    let text = "pipeline: codecs
queues:
  words: { type: memory, codec: text }
  shouts: { type: memory, codec: text }
  dead: { type: memory }
stages:
  shout:
    component: { map: 'ascii_upcase + \"!\"' }
    input: words
    outputs: [shouts]
    dead_letter: dead
";
    run(&memory, text).await;
    assert_eq!(payloads(&memory, "shouts"), ["GRüßE!"]);
    let letter = DeadLetter::from_json(&payloads(&memory, "dead")[0]).unwrap();
    assert_eq!(letter.message.payload.as_deref(), Some(&[0xff][..]));
    assert!(letter.cause.message.contains("no UTF-8 text"), "{:?}", letter.cause);
}

#[tokio::test]
async fn long_runs_of_digits_stay_what_they_are() {
    let memory = Memory::new();
    let card = json!({ "card": "1234567890123456" });
    memory.put("codecs", "packed", [message(1, messagepack(&card))]);
    memory.put("codecs", "words", [message(2, "1234567890123456")]);
    let text = "pipeline: codecs
queues:
  packed: { type: memory, codec: messagepack }
  words: { type: memory, codec: text }
  out: { type: memory }
  said: { type: memory }
stages:
  one: { component: { map: '.' }, input: packed, outputs: [out] }
  two: { component: { map: '.' }, input: words, outputs: [said] }
";
    run(&memory, text).await;
    assert_eq!(payloads(&memory, "out"), [card.to_string()]);
    assert_eq!(payloads(&memory, "said"), ["\"1234567890123456\""]);
}

/// Also where the dead letters' queue has a schema that no dead letter fits: it is for what stages
/// put there.
#[tokio::test]
async fn what_does_not_decode_is_kept_byte_for_byte() {
    let memory = Memory::new();
    let wrong: [&[u8]; 3] = [b"{\"n\":1}", &[0x81, 0xa1], &[0xc4, 1, 7]];
    let failing = messagepack(&json!({ "n": 13, "name": "x" }));
    let all = wrong.iter().map(|bytes| bytes.to_vec()).chain([failing.clone()]);
    memory.put("codecs", "packed", all.enumerate().map(|(n, p)| message(n as u128 + 1, p)));
    let text = "pipeline: codecs
queues:
  packed: { type: memory, codec: messagepack }
  out: { type: memory }
  dead: { type: memory, schema: { required: [n] } }
stages:
  one: { component: count_up, input: packed, outputs: [out], dead_letter: dead }
";
    run(&memory, text).await;
    let dead = payloads(&memory, "dead");
    let mut kept: Vec<_> = dead
        .iter()
        .map(|json| DeadLetter::from_json(json).unwrap().message.payload.unwrap().to_vec())
        .collect();
    let mut wanted: Vec<Vec<u8>> = wrong.iter().map(|bytes| bytes.to_vec()).collect();
    wanted.push(failing);
    kept.sort();
    wanted.sort();
    assert_eq!(kept, wanted);
}

#[tokio::test]
async fn an_integer_that_would_become_another_is_a_dead_letter() {
    let memory = Memory::new();
    let long = "{\"id\":123456789012345678901}";
    memory.put("codecs", "in", [message(1, long), message(2, "{\"id\":1}")]);
    let text = "pipeline: codecs
queues:
  in: { type: memory }
  out: { type: memory, codec: cbor }
  dead: { type: memory }
stages:
  one: { component: as_it_is, input: in, outputs: [out], dead_letter: dead }
";
    run(&memory, text).await;
    assert_eq!(payloads(&memory, "out"), [&[0xa1, 0x62, b'i', b'd', 1][..]]);
    let letter = DeadLetter::from_json(&payloads(&memory, "dead")[0]).unwrap();
    assert_eq!(letter.message.payload.as_deref(), Some(long.as_bytes()));
    assert_eq!(letter.cause.kind, CauseKind::Output);
    assert!(letter.cause.message.contains("123456789012345678901"), "{:?}", letter.cause);
}

#[tokio::test]
async fn json_that_goes_to_a_queue_of_texts_changes_in_nothing() {
    let memory = Memory::new();
    let order = "{\"id\":123456789012345678901,\"price\":0.12345678901234567890}";
    let all = [order, "{\"id\":1,\"id\":2}", "\"Gr\u{fc}\u{df}e\""];
    memory.put("codecs", "in", (1..).zip(all).map(|(n, payload)| message(n, payload)));
    let text = "pipeline: codecs
queues:
  in: { type: memory }
  out: { type: memory, codec: text }
stages:
  one: { component: pass, input: in, outputs: [out] }
";
    run(&memory, text).await;
    assert_eq!(payloads(&memory, "out"), [order, "{\"id\":1,\"id\":2}", "Grüße"]);
}

/// What is wrong with a message may be told with the whole of it, several times over.
#[tokio::test]
async fn a_dead_letter_has_the_beginning_of_its_cause() {
    let memory = Memory::new();
    let whole = json!({ "text": "ä".repeat(300_000) }).to_string();
    memory.put("codecs", "held", [message(1, whole.clone())]);
    memory.put("codecs", "asked", [message(2, whole.clone())]);
    let text = "pipeline: codecs
queues:
  held: { type: memory, schema: { anyOf: [{ required: [a] }, { required: [b] }] } }
  asked: { type: memory }
  out: { type: memory }
  dead: { type: memory }
stages:
  hold: { component: as_it_is, input: held, outputs: [out], dead_letter: dead }
  ask: { component: { filter: '.' }, input: asked, outputs: [out], dead_letter: dead }
";
    run(&memory, text).await;
    let letters = payloads(&memory, "dead");
    assert_eq!(letters.len(), 2);
    for letter in letters {
        let letter = DeadLetter::from_json(&letter).unwrap();
        assert_eq!(letter.message.payload.as_deref(), Some(whole.as_bytes()));
        let told = &letter.cause.message;
        let bytes_max = if letter.stage == "hold" { 300 } else { 4200 };
        assert!(told.contains("ää") && told.len() < bytes_max, "{}: {told}", letter.stage);
        assert!(told.ends_with("bytes more)"), "{told}");
    }
}

/// Also where the draft takes formats for notes, as that without a `$schema` does.
#[tokio::test]
async fn formats_of_a_schema_are_held_to_in_every_draft() {
    let fits = r#"{"at":"2024-02-29T12:00:00Z","mail":"a@b.example","size":-1}"#;
    let wrong = [r#"{"at":"yesterday"}"#, r#"{"at":"2024-02-30T12:00:00"}"#, r#"{"mail":"no"}"#];
    for draft in ["draft-07/schema#", "draft/2019-09/schema", "draft/2020-12/schema", ""] {
        let memory = Memory::new();
        let all = [fits].into_iter().chain(wrong);
        memory.put("codecs", "in", (1..).zip(all).map(|(n, payload)| message(n, payload)));
        let scheme = if draft.starts_with("draft-07") { "http" } else { "https" };
        let said = match draft {
            "" => String::new(),
            draft => format!("$schema: '{scheme}://json-schema.org/{draft}', "),
        };
        let text = format!(
            "pipeline: codecs
queues:
  in:
    type: memory
    schema: {{ {said}properties: {{ at: {{ format: date-time }}, mail: {{ format: email }}, size: {{ format: uint64 }} }} }}
  out: {{ type: memory }}
  dead: {{ type: memory }}
stages:
  one: {{ component: pass, input: in, outputs: [out], dead_letter: dead }}
"
        );
        run(&memory, &text).await;
        assert_eq!(payloads(&memory, "out"), [fits], "{draft}");
        let letters = payloads(&memory, "dead");
        let causes = letters.iter().map(|letter| DeadLetter::from_json(letter).unwrap().cause.kind);
        assert_eq!(causes.collect::<Vec<_>>(), [CauseKind::Schema; 3], "{draft}");
    }
}

/// It says that something is gone, and has nothing in it that a schema could ask for.
#[tokio::test]
async fn a_null_payload_passes_schemas() {
    let memory = Memory::new();
    let gone = Message { payload: None, key: Some("7".into()), ..message(1, "") };
    memory.put("codecs", "in", [gone]);
    let text = "pipeline: codecs
queues:
  in: { type: memory, schema: { type: object, required: [n] }, event_time: at }
  out: { type: memory, codec: cbor, schema: { type: object, required: [n] }, key: n }
  dead: { type: memory }
stages:
  one: { component: pass, input: in, outputs: [out], dead_letter: dead }
";
    run(&memory, text).await;
    assert!(payloads(&memory, "dead").is_empty());
    let out = memory.messages("codecs", "out");
    assert_eq!((out.len(), &out[0].payload, out[0].key.as_deref()), (1, &None, Some(&b"7"[..])));
}

#[test]
fn a_redriven_message_is_read_in_the_codec_that_it_came_in() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("in.jsonl"), "{\"n\":1}\n{\"n\":2}\n").unwrap();
    let yaml = "
pipeline: codecs
state: state
queues:
  in: { type: file, path: in.jsonl }
  packed: { type: embedded, codec: messagepack }
  out: { type: file, path: out.jsonl }
stages:
  pack: { component: pass, input: in, outputs: [packed] }
  check: { component: { map: 'if .n == 2 then error(\"two\") else . end' }, input: packed, outputs: [out] }
";
    std::fs::write(place.path().join("p.yaml"), yaml).unwrap();
    let brigade = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        let output = command.current_dir(place.path()).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(brigade(&["run", "p.yaml", "--until-idle"]).0, Some(3));
    let (_, shown) = brigade(&["dead-letters", "list", "p.yaml"]);
    assert!(shown.contains("two"), "{shown}");
    assert_eq!(brigade(&["dead-letters", "redrive", "p.yaml"]).0, Some(0));
    let mended = "stages.check.component.map=.";
    assert_eq!(brigade(&["run", "p.yaml", "--until-idle", "--set", mended]).0, Some(0));
    let out = std::fs::read_to_string(place.path().join("out.jsonl")).unwrap();
    assert_eq!(out, "{\"n\":1}\n{\"n\":2}\n");
}
