//! Metrics, health and log lines of the real command.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};

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

/// A run that is killed at the end of its test.
struct Run {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStderr>>,
    address: String,
    _directory: tempfile::TempDir,
}

impl Run {
    fn start(yaml: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("p.yaml"), yaml).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(directory.path()).args(["run", "p.yaml"]).env_remove("RUST_LOG");
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.by_ref().map(Result::unwrap).find(|line| line.contains("metrics at"));
        let line = line.expect("it says where its metrics are");
        let (_, address) = line.split_once("http://").unwrap();
        let address = address.trim_end_matches("/metrics").to_owned();
        Self { child, lines, address, _directory: directory }
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path)
    }

    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let code = text.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        (code, body.to_owned())
    }

    /// Asks until the answer is as it should be.
    fn until(&self, path: &str, is_so: impl Fn(u16, &str) -> bool) -> String {
        let begun = std::time::Instant::now();
        loop {
            let (code, body) = self.get(path);
            if is_so(code, &body) {
                return body;
            }
            assert!(begun.elapsed().as_secs() < 30, "{path} still answers {code} {body}");
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a line of the exposition.
fn value(text: &str, line: &str) -> f64 {
    let found = text.lines().find_map(|have| have.strip_prefix(line));
    found.map_or(0.0, |value| value.trim().parse().unwrap())
}

#[test]
fn metrics_are_those_of_the_documentation_and_tell_what_happens() {
    let run = Run::start(YAML);
    assert_eq!(run.get("/health/live").0, 200);
    run.until("/health/ready", |code, _| code == 200);
    for path in ["/health/live", "/health/ready"] {
        assert_eq!(run.ask("HEAD", path), (200, String::new()), "{path}");
    }
    let acked = "brigade_messages_acked_total{pipeline=\"watched\",stage=\"copy\"}";
    let text = run.until("/metrics", |_, body| value(body, acked) > 100.0);
    let dead = "brigade_dead_letters_total{pipeline=\"watched\",stage=\"sort\",cause=\"rejected\"}";
    assert!(value(&text, dead) > 0.0, "{text}");
    let lost = "brigade_unaccounted_messages{pipeline=\"watched\",stage=\"sort\"}";
    assert!(text.contains(lost) && value(&text, lost) == 0.0, "{text}");
    assert!(text.contains("brigade_component_seconds_bucket{"), "{text}");

    let told = types(&text);
    let documented = include_str!("../docs/src/metrics.md");
    let (own, _) = documented.split_once("## The names of Volley").unwrap();
    let mut documented = rows(own);
    // Told of queues on Kafka only.
    assert!(documented.remove(&("brigade_partition_messages".into(), "gauge".into())));
    let missing: Vec<_> = told.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/src/metrics.md: {missing:?}");
    let never: Vec<_> = documented.difference(&told).collect();
    assert!(never.is_empty(), "in docs/src/metrics.md, but never told: {never:?}");
}

/// The names and types that a table documents.
fn rows(table: &str) -> BTreeSet<(String, String)> {
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let name = cells.next()?.trim().trim_end_matches('`').to_owned();
        Some((name, cells.next()?.trim().to_owned()))
    };
    table.lines().filter_map(row).collect()
}

/// The names and types that an exposition tells.
fn types(text: &str) -> BTreeSet<(String, String)> {
    let type_of = |line: &str| {
        let mut words = line.strip_prefix("# TYPE ")?.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    text.lines().filter_map(type_of).collect()
}

#[test]
fn what_the_metrics_tell_adds_up() {
    let run = Run::start(YAML);
    let outputs =
        "brigade_outputs_total{pipeline=\"watched\",stage=\"sort\",input=\"in\",output=\"kept\"}";
    let text = run.until("/metrics", |_, body| value(body, outputs) > 500.0);
    let of = |name: &str, labels: &str| value(&text, &format!("{name}{{{labels}}}"));
    let copy = "pipeline=\"watched\",stage=\"copy\"";
    let acked = of("brigade_messages_acked_total", copy);
    assert!(of("brigade_settle_seconds_count", copy) >= acked, "{text}");
    assert!(of("brigade_age_seconds_count", copy) >= acked, "{text}");
    assert!(of("brigade_age_seconds_sum", copy) > 0.0, "{text}");
    assert!(of("brigade_pulls_total", copy) > 0.0, "{text}");
    let idle = of("brigade_idle_milliseconds_total", copy);
    let busy = of("brigade_busy_milliseconds_total", copy);
    assert!(idle > busy, "2,000 messages a second leave it idle: {idle} ms, {busy} ms busy");
    assert!(of("brigade_last_message_age_seconds", copy) < 10.0, "{text}");
    let kept = "pipeline=\"watched\",queue=\"kept\",operation=\"ack\"";
    assert!(of("brigade_queue_seconds_count", kept) > 0.0, "{text}");
    let bytes = "brigade_queue_bytes{pipeline=\"watched\",stage=\"copy\",queue=\"kept\"}";
    run.until("/metrics", |_, body| body.contains(bytes));
}

#[test]
fn the_names_of_volley_are_those_of_the_documentation() {
    let yaml =
        YAML.replace("metrics: 127.0.0.1:0", "metrics: { address: '127.0.0.1:0', names: volley }");
    let run = Run::start(&yaml);
    let produced =
        "messages_produced_count_total{volley_app=\"sort\",source=\"in\",destination=\"kept\"}";
    let text = run.until("/metrics", |_, body| value(body, produced) > 100.0);
    let consumed = "messages_consumed_count_total{volley_app=\"sort\",status=\"success\"}";
    assert!(value(&text, consumed) > value(&text, produced), "a tenth is rejected: {text}");
    let cycle = "process_time_seconds_count{volley_app=\"sort\",process_name=\"cycle\"}";
    assert!(value(&text, cycle) > 0.0, "{text}");
    assert!(!text.contains("brigade_"), "{text}");

    let documented = include_str!("../docs/src/metrics.md");
    let (_, table) = documented.split_once("## The names of Volley").unwrap();
    let told: BTreeSet<_> = types(&text);
    let (created, told): (BTreeSet<_>, BTreeSet<_>) =
        told.into_iter().partition(|(name, _)| name.ends_with("_created"));
    let elsewhere = |name: &str| name.starts_with("redis_") || name.starts_with("delivery_");
    let documented: BTreeSet<_> =
        rows(table).into_iter().filter(|(name, _)| !elsewhere(name)).collect();
    assert_eq!(told, documented);
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
    let mut run = Run::start(YAML);
    let stats = |stage: &'static str| {
        move |line: &String| {
            line.contains("STATS") && line.contains(&format!("stage=\"{stage}\""))
                || line.contains("STATS") && line.contains(&format!("stage={stage}"))
        }
    };
    assert!(run.lines.by_ref().map(Result::unwrap).any(|line| stats("sort")(&line)));
    assert!(run.lines.by_ref().map(Result::unwrap).any(|line| stats("copy")(&line)));
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

#[test]
fn a_run_logs_where_each_stage_begins_and_ends() {
    let said = said(FINITE, &["--set", "log.format=json"]);
    let lines: Vec<serde_json::Value> =
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let with = |message: &str| {
        let fields = lines.iter().map(|line| &line["fields"]);
        fields.into_iter().find(|fields| fields["message"] == message && fields["stage"] == "copy")
    };
    assert!(with("running").is_some(), "{said}");
    let done = with("done").unwrap();
    assert_eq!((&done["received"], &done["dead_letters"]), (&10.into(), &10.into()), "{said}");
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
