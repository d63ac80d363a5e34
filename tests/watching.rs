//! Metrics, health and log lines of the real command.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "common/scrape.rs"]
mod scrape;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use scrape::{Metric, Run, differences, tables, told, value};

const YAML: &str = "
pipeline: watched
state: state
metrics: 127.0.0.1:0
log: { stats: 50ms }
queues:
  in: { type: generator, template: { n: '{{int 0 9}}' }, rate: 2000 }
  kept: { type: embedded }
  out: { type: file, path: out.jsonl }
stages:
  sort: { component: { map: 'if .n == 0 then error else . end' }, input: in, outputs: [kept] }
  copy: { component: pass, input: kept, outputs: [out] }
";

#[test]
fn metrics_are_those_of_the_documentation_and_tell_what_happens() {
    let run = Run::start(YAML);
    assert_eq!(run.get("/health/live").0, 200);
    run.until("/health/ready", |code, _| code == 200);
    for path in ["/metrics", "/health/live", "/health/ready"] {
        assert_eq!(run.ask("HEAD", path), (200, String::new()), "{path}");
    }
    let acked = "brigade_messages_acked_total{pipeline=\"watched\",stage=\"copy\"}";
    // A queue that does not answer in time is left out.
    let bytes = "brigade_queue_bytes{pipeline=\"watched\",stage=\"copy\",queue=\"kept\"}";
    let text = run.until("/metrics", |_, body| value(body, acked) > 100.0 && body.contains(bytes));
    let dead = "brigade_dead_letters_total{pipeline=\"watched\",stage=\"sort\",cause=\"rejected\"}";
    assert!(value(&text, dead) > 0.0, "{text}");
    for place in ["consumer", "edge", "worker"] {
        let labels = format!("pipeline=\"watched\",stage=\"sort\",place=\"{place}\"");
        let lost = format!("brigade_unaccounted_messages{{{labels}}} 0\n");
        assert!(text.contains(&lost), "{text}");
    }
    assert!(text.contains("brigade_component_seconds_bucket{"), "{text}");

    let (mut documented, _) = tables();
    // What only queues on Kafka tell is looked for in `brokers.rs`.
    documented.retain(|(name, ..)| name != "brigade_partition_messages");
    assert_eq!(differences(&documented, &told(&text)), "", "names, types and labels");
}

#[test]
fn what_the_metrics_tell_adds_up() {
    let run = Run::start(YAML);
    let outputs =
        "brigade_outputs_total{pipeline=\"watched\",stage=\"sort\",input=\"in\",output=\"kept\"}";
    let copy = "pipeline=\"watched\",stage=\"copy\"";
    let value_of = |text: &str, name: &str| value(text, &format!("{name}{{{copy}}}"));
    // 2,000 messages a second leave it idle, and one came not long ago: but for a machine that stood still.
    let text = run.until("/metrics", |_, body| {
        value(body, outputs) > 500.0
            && value_of(body, "brigade_idle_milliseconds_total")
                > value_of(body, "brigade_busy_milliseconds_total")
            && value_of(body, "brigade_last_message_age_seconds") < 10.0
    });
    let of = |name: &str, labels: &str| value(&text, &format!("{name}{{{labels}}}"));
    let acked = of("brigade_messages_acked_total", copy);
    assert!(of("brigade_settle_seconds_count", copy) >= acked, "{text}");
    assert!(of("brigade_age_seconds_count", copy) >= acked, "{text}");
    assert!(of("brigade_age_seconds_sum", copy) > 0.0, "{text}");
    assert!(of("brigade_pulls_total", copy) > 0.0, "{text}");
    assert!(text.contains(&format!("brigade_last_message_age_seconds{{{copy}}}")), "{text}");
    let kept = "pipeline=\"watched\",queue=\"kept\",operation=\"ack\"";
    assert!(of("brigade_queue_seconds_count", kept) > 0.0, "{text}");
    let bytes = "brigade_queue_bytes{pipeline=\"watched\",stage=\"copy\",queue=\"kept\"}";
    run.until("/metrics", |_, body| body.contains(bytes));
}

#[test]
fn the_time_that_outputs_wait_for_a_full_queue_is_told_of_their_stage() {
    // It takes less than what comes.
    let full = YAML
        .replace("kept: { type: embedded }", "kept: { type: embedded, limit: { messages: 1 } }")
        .replace("input: kept", "input: kept, throttle: { rate: 20, per: 1s, burst: 1 }");
    let run = Run::start(&full);
    let of = |name: &str, stage: &str| {
        format!("brigade_{name}{{pipeline=\"watched\",stage=\"{stage}\"}}")
    };
    run.until("/metrics", |_, body| value(body, &of("stage_blocked", "sort")) == 1.0);
    let waited = of("blocked_milliseconds_total", "sort");
    let text = run.until("/metrics", |_, body| value(body, &waited) > 1000.0);
    let not = of("blocked_milliseconds_total", "copy");
    assert!(text.contains(&not) && value(&text, &not) == 0.0, "{text}");
}

#[test]
fn the_names_of_volley_are_those_of_the_documentation() {
    let yaml =
        YAML.replace("metrics: 127.0.0.1:0", "metrics: { address: '127.0.0.1:0', names: volley }");
    let run = Run::start(&yaml);
    let produced =
        "messages_produced_count_total{volley_app=\"sort\",source=\"in\",destination=\"kept\"}";
    // What is consumed is looked at a little earlier: a tenth of so many is more than comes meanwhile.
    let text = run.until("/metrics", |_, body| value(body, produced) > 1000.0);
    let consumed = "messages_consumed_count_total{volley_app=\"sort\",status=\"success\"}";
    assert!(value(&text, consumed) > value(&text, produced), "a tenth is rejected: {text}");
    let cycle = "process_time_seconds_count{volley_app=\"sort\",process_name=\"cycle\"}";
    assert!(value(&text, cycle) > 0.0, "{text}");
    for process in ["deserialize", "serialize"] {
        let of = |part| format!("data_model_process_seconds_{part}{{process=\"{process}\"}}");
        assert!(value(&text, &of("count")) > 0.0 && value(&text, &of("sum")) > 0.0, "{text}");
    }
    assert!(!text.contains("brigade_"), "{text}");

    let (created, told): (BTreeSet<Metric>, BTreeSet<Metric>) =
        told(&text).into_iter().partition(|(name, ..)| name.ends_with("_created"));
    // Those of servers: tests/brokers.rs.
    let elsewhere = |name: &str| name.starts_with("redis_") || name.starts_with("delivery_");
    let (_, documented) = tables();
    let here = documented.into_iter().filter(|(name, ..)| !elsewhere(name)).collect();
    assert_eq!(differences(&here, &told), "", "names, types and labels");
    assert_eq!(created.len(), told.len());
}

#[test]
fn a_stage_that_is_not_running_makes_the_process_unready_and_says_why() {
    let waiting = YAML.replace(
        "component: pass",
        "component: { lookup: { file: missing.csv, key: k, match: [{ field: n, add: { m: k } }] } }",
    );
    let run = Run::start(&waiting);
    let body = run.until("/health/ready", |code, body| code == 503 && body.contains("missing.csv"));
    assert!(body.contains("\"stage\":\"copy\""), "{body}");
    assert_eq!(run.get("/health/live").0, 200);
}

#[test]
fn each_stage_tells_its_counts_from_time_to_time() {
    let run = Run::start(YAML);
    let stats = |stage: &'static str| {
        move |line: &String| {
            line.contains("STATS") && line.contains(&format!("stage=\"{stage}\""))
                || line.contains("STATS") && line.contains(&format!("stage={stage}"))
        }
    };
    assert!(run.lines.iter().any(|line| stats("sort")(&line)));
    assert!(run.lines.iter().any(|line| stats("copy")(&line)));
}

#[test]
fn an_address_that_is_taken_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let yaml = YAML.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    std::fs::write(directory.path().join("p.yaml"), yaml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    let output = command.current_dir(directory.path()).args(["run", "p.yaml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("metrics cannot be served at 127.0.0.1:"), "{error}");
    assert!(!directory.path().join("state").exists(), "nothing has run");
}

/// A queue that cannot tell whether it is empty is found out only when it runs.
#[test]
fn a_run_that_cannot_tell_its_end_drains_and_fails() {
    let directory = tempfile::tempdir().unwrap();
    // Between two messages nothing is in flight.
    let yaml = YAML.replace("metrics: 127.0.0.1:0", "").replace("rate: 2000", "rate: 10");
    std::fs::write(directory.path().join("p.yaml"), yaml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory.path()).args(["run", "p.yaml", "--until-idle"]);
    let output = command.env_remove("RUST_LOG").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("cannot tell whether it is empty"), "{error}");
    assert!(error.contains("the books close"), "{error}");
    assert_eq!(output.status.code(), Some(4));
}

#[test]
fn directives_that_are_none_are_told_with_where_they_stand() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("p.yaml"), FINITE).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory.path()).args(["run", "p.yaml"]);
    let output = command.env("RUST_LOG", "info,brigade=loud").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("RUST_LOG: expected a level such as `info`"), "{error}");
    assert!(error.contains("found `info,brigade=loud`"), "{error}");
}

/// Volley's kill flag: a run with nothing to do ends when it is told to, its books closed.
#[test]
fn a_signal_stops_a_run_that_is_idle() {
    let idle = YAML.replace(", rate: 2000 }", ", count: 0 }");
    let mut run = Run::start(&idle);
    run.until("/health/ready", |code, _| code == 200);
    let process = run.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
    let begun = Instant::now();
    while run.child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(180), "it does not end");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let said: Vec<String> = run.lines.iter().collect();
    assert_eq!(run.child.wait().unwrap().code(), Some(0), "{said:?}");
    let books = "the books close: 0 messages received, each has an outcome";
    assert!(said.iter().any(|line| line == books), "{said:?}");
}

/// What a run says on standard error.
fn said(yaml: &str, arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("p.yaml"), yaml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory.path()).args(["run", "p.yaml", "--until-idle"]);
    let output = command.args(arguments).env_remove("RUST_LOG").output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

const FINITE: &str = "
pipeline: finite
state: state
queues:
  in: { type: generator, template: { secret: '{{int 4711 4711}}' }, count: 10 }
  out: { type: file, path: out.jsonl }
stages:
  copy: { component: { map: 'error(\"first\\nERROR forged\\r\")' }, input: in, outputs: [out] }
";

/// The line of a log in JSON with this message, of the stage `copy`.
fn logged(said: &str, message: &str) -> Option<serde_json::Value> {
    let mut lines = said.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.find(|line: &serde_json::Value| {
        line["fields"]["message"] == message && line["fields"]["stage"] == "copy"
    })
}

#[test]
fn a_run_logs_where_each_stage_begins_and_ends() {
    let said = said(FINITE, &["--set", "log.format=json"]);
    assert!(logged(&said, "running").is_some(), "{said}");
    let done = &logged(&said, "done").unwrap()["fields"];
    assert_eq!((&done["received"], &done["dead_letters"]), (&10.into(), &10.into()), "{said}");
}

#[test]
fn a_run_logs_why_a_stage_fails() {
    let failing = FINITE.replace(
        "{ map: 'error(\"first\\nERROR forged\\r\")' }",
        "{ lookup: { file: gone.csv, key: k, match: [{ field: n, add: { m: k } }] } }",
    );
    let set = ["--set", "restart.max_restarts=0", "--set", "log.format=json"];
    let said = said(&failing, &set);
    let failed = logged(&said, "failed").unwrap_or_else(|| panic!("{said}"));
    assert_eq!(
        (&failed["level"], &failed["fields"]["pipeline"]),
        (&"ERROR".into(), &"finite".into())
    );
    assert!(failed["fields"]["error"].as_str().unwrap().contains("gone.csv"), "{failed}");
    assert!(logged(&said, "done").is_none(), "{said}");
}

#[test]
fn what_an_error_says_cannot_forge_a_log_line_and_payloads_are_not_logged() {
    let said = said(FINITE, &["--set", "log.level=debug,brigade=trace"]);
    assert!(said.contains("dead letter"), "{said}");
    let forged = said.lines().filter(|line| line.trim_start().starts_with("ERROR forged"));
    assert_eq!(forged.count(), 0, "{said}");
    assert!(!said.contains("4711"), "{said}");
    let file = FINITE.replace(
        "{ map: 'error(\"first\\nERROR forged\\r\")' }",
        "{ lookup: { file: \"gone\\nERROR forged\", key: k, match: [{ field: n, add: { m: k } }] } }",
    );
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("p.yaml"), file).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory.path()).args(["run", "p.yaml"]).env_remove("RUST_LOG");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let told = lines.find(|line| line.contains("gone")).unwrap();
    assert!(told.contains("gone\\nERROR forged"), "{told}");
    child.kill().unwrap();
    child.wait().unwrap();
}
