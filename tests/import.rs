//! Pipeline files out of Volley's files, by the real command, and documents for other tools.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// Runs the command in a directory; answers with its code and what it said on both streams.
fn brigade(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory).args(arguments).env("REDIS_HOST", "redis.example");
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const MAPPING: &str = "
queues:
  incoming:
    value: jobs-in
    profile: rsmq
    config: { host: redis, port: 6380, vt: 45, ns: mine, options: { password: hidden, db: 2 } }
    data_model: app.models.Incoming
  second queue: { value: jobs-out, profile: rsmq-msgpack-pydantic }
  table: { value: orders, consumer: app.plugins.PostgresConsumer, producer: null }
  dead: { value: jobs-dead, profile: rsmq-dlq }
  topic:
    value: a.topic, b.topic
    profile: confluent
    config: { bootstrap.servers: 'kafka:9092', group.id: workers, stop_on_failure: true }
";

const PYTHON: &str = r#"
from volley import Engine

engine = Engine(
    app_name="worker",
    input_queue="incoming",
    output_queues=["second queue", "table"],
    dead_letter_queue="dead",
)

@engine.stream_app
async def handle(message):
    return [("second queue", message)]
"#;

#[test]
fn a_volley_file_becomes_a_pipeline_file_that_is_good() {
    let place = tempfile::tempdir().unwrap();
    // Kafka is not in every build.
    let (redis, _) = MAPPING.split_once("  topic:").unwrap();
    std::fs::write(place.path().join("volley.yml"), redis).unwrap();
    std::fs::write(place.path().join("app.py"), PYTHON).unwrap();
    let import =
        ["import", "volley", "volley.yml", "app.py", "--name", "my shop", "--output", "p.yaml"];
    let (code, out, notes) = brigade(place.path(), &import);
    assert_eq!((code, &*out), (0, ""), "{notes}");
    for note in ["app.models.Incoming", "PostgresConsumer", "`table` is no queue", "password"] {
        assert!(notes.contains(note), "{note} is not in {notes}");
    }
    let written = std::fs::read_to_string(place.path().join("p.yaml")).unwrap();
    assert!(!written.contains("hidden"), "{written}");
    assert!(written.contains("pipeline: my-shop"), "{written}");
    let mut check = Command::new(env!("CARGO_BIN_EXE_brigade"));
    check.current_dir(place.path()).env("REDIS_PASSWORD", "known");
    // The component is Python's so far.
    let check = check.args(["check", "p.yaml", "--set", "stages.handle.component=pass"]).output();
    let check = check.unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));

    let queues: Value = {
        let yaml = place.path().join("p.yaml");
        brigade::pipeline_file::read(&yaml).unwrap()
    };
    assert_eq!(
        queues["queues"]["incoming"],
        json!({
            "type": "rsmq", "queue": "jobs-in", "vt": "45s", "namespace": "mine",
            "url": "redis://:${REDIS_PASSWORD}@redis:6380/2",
        })
    );
    assert_eq!(queues["queues"]["second-queue"]["codec"], "messagepack");
    let stage = json!({
        "component": "handle", "input": "incoming", "outputs": ["second-queue"],
        "dead_letter": "dead",
    });
    assert_eq!(queues["stages"]["handle"], stage);
}

#[test]
fn kafkas_queues_keep_their_topics_and_properties() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("volley.yml"), MAPPING).unwrap();
    let (code, out, notes) = brigade(place.path(), &["import", "volley", "volley.yml"]);
    assert_eq!(code, 0, "{notes}");
    assert!(notes.contains("stop_on_failure") && notes.contains("no stages"), "{notes}");
    std::fs::write(place.path().join("p.yaml"), out).unwrap();
    let file = brigade::pipeline_file::read(&place.path().join("p.yaml")).unwrap();
    assert_eq!(
        file["queues"]["topic"],
        json!({
            "type": "kafka", "topics": ["a.topic", "b.topic"], "group": "workers",
            "config": { "bootstrap.servers": "kafka:9092" },
        })
    );
}

#[test]
fn the_list_of_older_files_is_read_too() {
    let place = tempfile::tempdir().unwrap();
    let list = "
queues:
  - { name: my_input, value: stg.topic, type: kafka, schema: components.models.InputMessage }
  - { name: queue_a, value: queue_a, type: rsmq, schema: x.ComponentMessage }
";
    std::fs::write(place.path().join("volley_config.yml"), list).unwrap();
    let (code, out, notes) = brigade(place.path(), &["import", "volley", "volley_config.yml"]);
    assert_eq!(code, 0, "{notes}");
    assert!(out.contains("\"topic\":\"stg.topic\"") && out.contains("\"queue\":\"queue_a\""));
    assert!(notes.contains("InputMessage") && !notes.contains("ComponentMessage"), "{notes}");
}

#[test]
fn what_is_no_volley_file_is_told() {
    let place = tempfile::tempdir().unwrap();
    let told = |text: &str, python: Option<&str>| {
        std::fs::write(place.path().join("v.yml"), text).unwrap();
        let mut import = vec!["import", "volley", "v.yml"];
        if let Some(python) = python {
            std::fs::write(place.path().join("app.py"), python).unwrap();
            import.push("app.py");
        }
        let (code, out, error) = brigade(place.path(), &import);
        assert_eq!((code, &*out), (2, ""), "{error}");
        error
    };
    assert!(told("stages: {}", None).contains("expected the key `queues`"));
    assert!(told("queues: { a: 5 }", None).contains("queue `a`: expected a mapping"));
    assert!(told("queues: [{ value: x }]", None).contains("at place 1 has no `name`"));
    assert!(told("queues: { a: { profile: rsmq } }", None).contains("queue `a` has no `value`"));
    assert!(told("queues: [", None).contains("v.yml:"));
    let error = told("queues: {}", Some("\nEngine(input_queue=NAME)"));
    assert!(error.contains("app.py:2"), "{error}");
    let (code, _, error) = brigade(place.path(), &["import", "volley", "gone.yml"]);
    assert!(code == 2 && error.contains("gone.yml"), "{error}");
}

#[test]
fn asyncapi_tells_of_queues_messages_and_who_uses_them() {
    let place = tempfile::tempdir().unwrap();
    let yaml = "
pipeline: shop
queues:
  orders: { type: embedded, schema: { title: Order, type: object, required: [id] } }
  jobs: { type: rsmq, url: 'redis://user:hidden@redis.example:6380/1', codec: messagepack, queue: shop_jobs }
  dead: { type: file, path: dead.jsonl }
stages:
  pick: { component: pass, input: orders, outputs: [jobs], dead_letter: dead }
  bill: { component: pass, input: jobs }
  count: { component: { filter: 'true' }, input: bill, outputs: [orders] }
";
    std::fs::write(place.path().join("p.yaml"), yaml).unwrap();
    let (code, out, error) = brigade(place.path(), &["asyncapi", "p.yaml"]);
    assert_eq!(code, 0, "{error}");
    assert!(!out.contains("hidden"), "{out}");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["asyncapi"], "3.0.0");
    assert_eq!(document["channels"]["jobs"]["address"], "shop_jobs");
    let message = &document["components"]["messages"]["jobs"];
    assert_eq!(message["contentType"], "application/vnd.msgpack");
    let order = &document["components"]["messages"]["orders"];
    assert_eq!(order["payload"]["schema"]["required"], json!(["id"]));
    let mut operations: Vec<&String> = document["operations"].as_object().unwrap().keys().collect();
    operations.sort();
    assert_eq!(
        operations,
        [
            "bill.receive.jobs",
            "count.send.orders",
            "pick.receive.orders",
            "pick.send.dead",
            "pick.send.jobs"
        ]
    );
    // Each reference leads somewhere.
    for (at, _) in out.match_indices("\"$ref\": \"#") {
        let pointer = out[at + "\"$ref\": \"#".len()..].split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}
