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

/// The directory's name, or any that is given, may look like a number or another value.
#[test]
fn a_name_that_looks_like_no_text_is_one() {
    let place = tempfile::tempdir().unwrap();
    let (redis, _) = MAPPING.split_once("  topic:").unwrap();
    std::fs::write(place.path().join("volley.yml"), redis).unwrap();
    std::fs::write(place.path().join("app.py"), PYTHON).unwrap();
    for (name, written) in [
        ("2024", "\"2024\""),
        ("1e5", "\"1e5\""),
        ("True", "\"True\""),
        ("null", "\"null\""),
        ("ü", "\"-\""),
        ("yes", "yes"),
    ] {
        let arguments =
            ["import", "volley", "volley.yml", "app.py", "--name", name, "--output", "p.yaml"];
        let (code, _, said) = brigade(place.path(), &arguments);
        assert_eq!(code, 0, "{said}");
        let text = std::fs::read_to_string(place.path().join("p.yaml")).unwrap();
        assert!(text.contains(&format!("pipeline: {written}\n")), "{text}");
        // All that is not there yet is the component.
        let (_, _, said) = brigade(place.path(), &["check", "p.yaml"]);
        assert!(!said.contains("pipeline`") && !said.contains("syntax"), "{name}: {said}");
    }
}

#[test]
fn a_name_that_no_pipeline_may_have_is_refused() {
    let place = tempfile::tempdir().unwrap();
    let (redis, _) = MAPPING.split_once("  topic:").unwrap();
    std::fs::write(place.path().join("volley.yml"), redis).unwrap();
    for name in ["", &"n".repeat(101)] {
        let arguments = ["import", "volley", "volley.yml", "--name", name, "--output", "p.yaml"];
        let (code, _, said) = brigade(place.path(), &arguments);
        assert!(code == 2 && said.contains("with `--name`"), "{code}: {said}");
        assert!(!place.path().join("p.yaml").exists());
    }
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

/// Imports these queues and engines; answers with the file and the notes. The file is good.
fn imported(queues: &str, python: &str) -> (Value, String) {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("volley.yml"), queues).unwrap();
    std::fs::write(place.path().join("app.py"), python).unwrap();
    let import =
        ["import", "volley", "volley.yml", "app.py", "--name", "shop", "--output", "p.yaml"];
    let (code, out, notes) = brigade(place.path(), &import);
    assert_eq!((code, &*out), (0, ""), "{notes}");
    let path = place.path().join("p.yaml");
    let file = brigade::pipeline_file::read(&path).unwrap();
    // Where it runs, that is there.
    let text = std::fs::read_to_string(&path).unwrap().replace("/not/on/this/machine.pem", "probe");
    std::fs::write(&path, text).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_brigade"));
    check.current_dir(place.path()).args(["check", "p.yaml"]);
    for stage in file["stages"].as_object().into_iter().flatten() {
        let component = if stage.1.get("outputs").is_some() { "pass" } else { "log" };
        check.arg("--set").arg(format!("stages.{}.component={component}", stage.0));
    }
    for variable in ["REDIS_PASSWORD", "REDIS_PASSWORD_2", "KAFKA_PASSWORD", "KAFKA_BROKERS"] {
        check.env(variable, "known:1");
    }
    let mut queues = file["queues"].as_object().into_iter().flatten();
    let is_built = cfg!(feature = "kafka") || !queues.any(|queue| queue.1["type"] == "kafka");
    let check = check.output().unwrap();
    let said = String::from_utf8_lossy(&check.stderr);
    assert_eq!(check.status.success(), is_built, "{notes}\n{said}");
    (file, notes)
}

fn engine(input: &str, output: &str) -> String {
    format!(
        "e = Engine(input_queue='{input}', output_queues=['{output}'])\n@e.stream_app\ndef work(m): ..."
    )
}

/// The example of Volley's own pages.
#[test]
fn an_engine_with_several_outputs_has_nothing_to_be_mended() {
    let queues = "
queues:
  - { name: my_input, value: input, type: rsmq }
  - { name: queue_a, value: a, type: rsmq }
  - { name: queue_b, value: b, type: rsmq }
";
    let python = r#"
engine = Engine(
  input_queue="my_input",
  output_queues=["queue_a", "queue_b"]
)

@engine.stream_app
def my_component_function(input_object): ...
"#;
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("volley.yml"), queues).unwrap();
    std::fs::write(place.path().join("app.py"), python).unwrap();
    let (code, out, notes) = brigade(place.path(), &["import", "volley", "volley.yml", "app.py"]);
    assert_eq!((code, &*notes), (0, ""));
    assert!(!out.contains("Not carried over") && !out.contains("copy"), "{out}");
    assert!(out.contains(r#""outputs":["queue_a","queue_b"]"#), "{out}");
}

#[test]
fn what_of_an_engine_is_not_literal_is_told() {
    let queues = "queues: { a: { value: x, profile: rsmq }, b: { value: y, profile: rsmq } }";
    let python = "
OUT = ['b']
e = Engine(input_queue='a', output_queues=OUT, dead_letter_queue=DEAD, metrics_port=3000, queue_config=CONFIG)
@e.stream_app
def work(m): ...
";
    let (file, notes) = imported(queues, python);
    assert_eq!(file["stages"]["work"], json!({ "component": "work", "input": "a" }));
    for note in [
        "stage `work`: its `output_queues` is no list of texts: name them in `outputs`",
        "stage `work`: its `dead_letter_queue` is no text: name the queue in `dead_letter`",
        "stage `work`: its `metrics_port` is left out: the file's `metrics: { address, names: volley }`",
        "stage `work`: its `queue_config` is left out",
    ] {
        assert!(notes.contains(note), "{note} is not in {notes}");
    }
}

#[test]
fn a_python_file_without_engines_is_told() {
    let place = tempfile::tempdir().unwrap();
    let queues = "queues: { a: { value: x, profile: rsmq } }";
    std::fs::write(place.path().join("volley.yml"), queues).unwrap();
    let python = "from volley import Engine as E\ne = E(input_queue='a')";
    std::fs::write(place.path().join("app.py"), python).unwrap();
    let (code, _, notes) = brigade(place.path(), &["import", "volley", "volley.yml", "app.py"]);
    assert_eq!(code, 0, "{notes}");
    assert!(notes.contains("no stages out of app.py: no call of `Engine(..)` is there"), "{notes}");
    assert!(!notes.contains("name its files"), "{notes}");
}

/// The stock command would run its own component in place of the function.
#[test]
fn a_function_with_the_name_of_a_built_in_component_is_told() {
    let queues = "queues: { a: { value: x, profile: rsmq } }";
    let python = "e = Engine(input_queue='a')\n@e.stream_app\ndef log(m): ...";
    let (file, notes) = imported(queues, python);
    assert_eq!(file["stages"]["log"]["component"], "log");
    assert!(
        notes.contains("stage `log`: there is a component `log` that is made from settings"),
        "{notes}"
    );
    assert!(!imported(queues, &python.replace("log", "logs")).1.contains("made from settings"));
}

#[test]
fn a_list_or_a_mapping_alone_is_read_too() {
    let list = "
- name: postgres_queue
  value: pg_queue_table
  type: postgres
  producer: example.plugins.my_plugin.MyPGProducer
  consumer: example.plugins.my_plugin.MyPGConsumer
- { name: main_queue, value: main_rsmq_queue, type: rsmq, schema: volley.data_models.ComponentMessage }
";
    let mapping = "{ main_queue: { value: main_rsmq_queue, type: rsmq } }";
    for queues in [list, mapping] {
        let (file, notes) = imported(queues, "e = Engine(input_queue='main_queue')");
        let queue = json!({ "type": "rsmq", "queue": "main_rsmq_queue" });
        assert_eq!(file["queues"], json!({ "main_queue": queue }), "{notes}");
        assert_eq!(notes.contains("`example.plugins.my_plugin.MyPGConsumer`"), queues == list);
    }
    let named = "queues: { value: { value: main_rsmq_queue, type: rsmq } }";
    let (file, notes) = imported(named, "e = Engine(input_queue='value')");
    let queue = json!({ "type": "rsmq", "queue": "main_rsmq_queue" });
    assert_eq!(file["queues"], json!({ "value": queue }), "{notes}");
}

/// Volley reads YAML 1.1.
#[test]
fn flags_are_those_of_volleys_yaml() {
    for (ssl, scheme, told) in [
        ("yes", "rediss", false),
        ("On", "rediss", false),
        ("TRUE", "rediss", false),
        ("1", "rediss", false),
        ("no", "redis", false),
        ("off", "redis", false),
        ("0", "redis", false),
        ("required", "rediss", true),
    ] {
        let options = format!("options: {{ ssl: {ssl}, password: hidden }}");
        let config = format!("config: {{ host: h, realtime: {ssl}, {options} }}");
        let queues = format!("queues: {{ a: {{ value: x, profile: rsmq, {config} }} }}");
        let (file, notes) = imported(&queues, "e = Engine(input_queue='a')");
        let queue = &file["queues"]["a"];
        assert_eq!(queue["url"], format!("{scheme}://:${{REDIS_PASSWORD}}@h:6379"), "{notes}");
        assert_eq!(queue.get("realtime").is_some(), scheme == "rediss" && !told, "{ssl}");
        assert_eq!(notes.contains("`config.options.ssl` is taken as `true`"), told, "{notes}");
        assert_eq!(notes.contains("`config.realtime` is left out"), told, "{notes}");
    }
}

#[test]
fn queues_whose_names_would_be_one_are_two() {
    let queues =
        "queues: { 'a b': { value: one, profile: rsmq }, a-b: { value: two, profile: rsmq } }";
    let (file, notes) = imported(queues, &engine("a-b", "a b"));
    let stage = &file["stages"]["work"];
    let queue_at = |name: &Value| file["queues"][name.as_str().unwrap()]["queue"].clone();
    assert_eq!(
        (queue_at(&stage["input"]), queue_at(&stage["outputs"][0])),
        (json!("two"), json!("one"))
    );
    assert!(notes.contains("it is `a-b-2` here"), "{notes}");
}

#[test]
fn merge_keys_are_done() {
    let queues = "
x-base: &base { profile: rsmq, config: { host: redis, vt: 10 } }
x-other: &other { profile: confluent, value: other }
queues:
  a: { <<: *base, value: x }
  b: { <<: [*base, *other], value: y, config: { vt: 20 } }
";
    let (file, _) = imported(queues, &engine("a", "b"));
    let a = json!({ "type": "rsmq", "queue": "x", "url": "redis://redis:6379", "vt": "10s" });
    assert_eq!(file["queues"]["a"], a);
    assert_eq!(file["queues"]["b"], json!({ "type": "rsmq", "queue": "y", "vt": "20s" }));
}

#[test]
fn each_key_of_an_rsmq_queue_is_carried_over_or_told() {
    let queues = "
queues:
  a:
    value: x
    profile: rsmq
    model_handler: app.Handler
    serializer: app.FastJson
    consumer: app.RsmqConsumer
    colour: red
    config:
      vt: 30.5
      realtime: true
      delay: 3
      exceptions: false
      maxsize: 5
      ns:
      host:
      options: { ssl: true, ssl_certfile: c.pem, ssl_keyfile: k.pem, ssl_ca_certs: ca.pem, username: 'a@b',
                 password: 'one', decode_responses: true }
  b: { value: y, profile: rsmq, config: { vt: 0, delay: 0, options: { password: two } } }
  wrong name: { value: a.b, profile: rsmq }
";
    let (file, notes) = imported(queues, &engine("a", "b"));
    assert_eq!(
        file["queues"]["a"],
        json!({
            "type": "rsmq", "queue": "x", "vt": "31s", "realtime": true,
            "url": "rediss://a%40b:${REDIS_PASSWORD}@${REDIS_HOST:-127.0.0.1}:6379",
            "tls": { "ca": "ca.pem", "certificate": "c.pem", "key": "k.pem" },
        })
    );
    let b = "redis://:${REDIS_PASSWORD_2}@${REDIS_HOST:-127.0.0.1}:6379";
    assert_eq!(file["queues"]["b"], json!({ "type": "rsmq", "queue": "y", "url": b }));
    assert_eq!(file["queues"].get("wrong-name"), None);
    for note in [
        "the model handler `app.Handler`",
        "the serializer `app.fastjson`",
        "the consumer `app.RsmqConsumer`",
        "`colour` means nothing",
        "31s instead of 30.5",
        "`config.delay`",
        "`config.exceptions`",
        "`config.ns` is left out: it has no value",
        "`config.host` is left out: it has no value",
        "`maxsize` is left out: expected 1024",
        "`config.options.decode_responses`",
        "set REDIS_PASSWORD, percent-encoded",
        "`config.vt` is left out: expected 1 to 9999999 seconds, found 0",
        "queue `wrong name`: left out: `a.b` is no name",
    ] {
        assert!(notes.contains(note), "{note} is not in {notes}");
    }
    assert_eq!(notes.matches("`config.delay`").count(), 1, "a delay of 0 is none: {notes}");
}

#[test]
fn each_property_of_a_kafka_queue_is_carried_over_or_told() {
    let queues = "
queues:
  a:
    value: x
    profile: confluent
    config:
      bootstrap.servers: k:9092
      security.protocol: SASL_SSL
      sasl.mechanism: PLAIN
      sasl.username: 'u$er'
      sasl.password: hidden
      linger.ms: 5.5
      acks: 1
      enable.idempotence: false
      poll_interval_seconds: 2
      group.id: 7
      ssl.ca.location: /not/on/this/machine.pem
      nothing: null
      made.up: 1
  b: { value: y, profile: confluent, config: { max.poll.interval.ms: 1000 } }
";
    let (file, notes) = imported(queues, &engine("b", "a").replace("'a'", ""));
    let config = &file["queues"]["a"]["config"];
    assert_eq!(config["sasl.password"], "${KAFKA_PASSWORD}");
    assert_eq!((&config["sasl.username"], &config["linger.ms"]), (&json!("u$$er"), &json!(5.5)));
    assert_eq!(file["queues"]["a"]["group"], "7");
    assert_eq!(config["ssl.ca.location"], "/not/on/this/machine.pem");
    for gone in ["acks", "enable.idempotence", "poll_interval_seconds", "nothing"] {
        assert_eq!(config.get(gone), None);
        assert!(notes.contains(&format!("`config.{gone}` is left out")), "{gone}: {notes}");
    }
    assert!(notes.contains("set KAFKA_PASSWORD") && !notes.contains("hidden"), "{notes}");
    assert!(notes.contains("`config.ssl.ca.location` names a file that is not here"), "{notes}");
    if cfg!(feature = "kafka") {
        assert_eq!(config.get("made.up"), None);
        assert!(notes.contains("`config.made.up` is left out: "), "{notes}");
        assert!(notes.contains("`config.max.poll.interval.ms` is left out: "), "{notes}");
    } else {
        assert!(notes.contains("queue `a`: not checked"), "{notes}");
    }
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
    assert!(told("", None).contains("expected the key `queues`"));
    assert!(told("[5]", None).contains("at place 1 has no `name`"));
    assert!(told("queues: { a: 5 }", None).contains("queue `a`: expected a mapping"));
    assert!(told("queues: [{ value: x }]", None).contains("at place 1 has no `name`"));
    assert!(told("queues: { a: { profile: rsmq } }", None).contains("queue `a` has no `value`"));
    let twice = "queues: [{ name: a, value: x, type: rsmq }, { name: a, value: y, type: rsmq }]";
    assert!(told(twice, None).contains("two queues are called `a`"));
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
