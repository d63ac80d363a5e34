//! The real command: layers, formats, looking into queues, signals, exit codes.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const YAML: &str = "
pipeline: sorted
state: state
queues:
  in: { type: file, path: in.jsonl }
  big: { type: embedded }
  out: { type: file, path: out.jsonl }
stages:
  sort: { component: { filter: '.n > 10' }, input: in, outputs: [big] }
  copy: { component: pass, input: big, outputs: [out] }
";

const TOML: &str = "
pipeline = \"sorted\"
state = \"state\"
[queues]
in = { type = \"file\", path = \"in.jsonl\" }
big = { type = \"embedded\" }
out = { type = \"file\", path = \"out.jsonl\" }
[stages.sort]
component = { filter = \".n > 10\" }
input = \"in\"
outputs = [\"big\"]
[stages.copy]
component = \"pass\"
input = \"big\"
outputs = [\"out\"]
";

const JSON: &str = r#"{
  "pipeline": "sorted", "state": "state",
  "queues": {
    "in": { "type": "file", "path": "in.jsonl" },
    "big": { "type": "embedded" },
    "out": { "type": "file", "path": "out.jsonl" }
  },
  "stages": {
    "sort": { "component": { "filter": ".n > 10" }, "input": "in", "outputs": ["big"] },
    "copy": { "component": "pass", "input": "big", "outputs": ["out"] }
  }
}"#;

/// A directory to run the command in.
struct Place(tempfile::TempDir);

impl Place {
    fn new(name: &str, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(name), text).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(self.0.path()).args(arguments).env_remove("RUST_LOG");
        command
    }

    /// Runs the command to its end, which has to have this exit code; answers with what it printed.
    fn run(&self, arguments: &[&str], code: i32) -> (String, String) {
        ended(&self.command(arguments).output().unwrap(), code)
    }
}

fn ended(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{err}");
    (out, err)
}

fn numbers(range: std::ops::Range<u32>) -> String {
    range.map(|n| format!("{{\"n\":{n}}}\n")).collect()
}

#[test]
fn the_same_pipeline_in_three_formats_does_the_same() {
    for (name, text) in [("p.yaml", YAML), ("p.toml", TOML), ("p.json", JSON)] {
        let place = Place::new(name, text);
        place.write("in.jsonl", &numbers(0..100));
        place.run(&["run", name, "--until-idle"], 0);
        assert_eq!(place.read("out.jsonl"), numbers(11..100), "{name}");
    }
}

#[test]
fn a_run_ends_with_its_books() {
    let place = Place::new("p.yaml", YAML);
    place.write("in.jsonl", &(numbers(0..100) + "{\n"));
    let (_, told) = place.run(&["run", "p.yaml", "--until-idle"], 3);
    let row = |stage: &str| -> Vec<&str> {
        let line = told.lines().find(|line| line.starts_with(&format!(" {stage} "))).unwrap();
        line.split_whitespace().skip(1).collect()
    };
    // Calls, received, acked, filtered, dead letters, discarded, requeued, released, in flight.
    assert_eq!(row("sort")[..9], ["101", "101", "89", "11", "1", "0", "0", "0", "0"], "{told}");
    assert_eq!(row("sort")[9..], ["big", "89"], "{told}");
    assert_eq!(row("copy")[9..], ["out", "89"], "{told}");
    let last = told.lines().last().unwrap();
    assert_eq!(last, "the books close: 190 messages received, each has an outcome", "{told}");
}

#[test]
fn the_command_line_lies_over_the_environment_and_that_over_the_file() {
    let place = Place::new("p.yaml", YAML);
    place.write("in.jsonl", &numbers(0..20));
    let run = |set: &[&str]| {
        let mut command = place.command(&["run", "p.yaml", "--until-idle"]);
        command.args(["--state", "fresh"]).args(set);
        command.env("BRIGADE__queues__out__path", "environment.jsonl");
        ended(&command.output().unwrap(), 0);
        fs::remove_dir_all(place.path("fresh")).unwrap();
    };
    run(&[]);
    assert_eq!(place.read("environment.jsonl"), numbers(11..20));
    run(&["--set", "queues.out.path=set.jsonl"]);
    assert_eq!(place.read("set.jsonl"), numbers(11..20));
    assert!(!place.path("out.jsonl").exists() && !place.path("state").exists());
}

#[test]
fn an_error_names_the_layer_that_the_value_came_from() {
    let place = Place::new("p.yaml", YAML);
    let (_, error) = place.run(&["check", "p.yaml", "--set", "stages.copy.workers=many"], 2);
    assert!(error.contains("--> --set stages.copy.workers (stages"), "{error}");
    let mut command = place.command(&["check", "p.yaml"]);
    command.env("BRIGADE__stages__copy__workers", "many");
    let (_, error) = ended(&command.output().unwrap(), 2);
    assert!(error.contains("BRIGADE__stages__copy__workers"), "{error}");
}

#[test]
fn a_password_that_was_set_is_not_shown() {
    let text = YAML.replace("{ type: embedded }", "{ type: rsmq }");
    let place = Place::new("p.yaml", &text);
    for set in [
        "queues.big.url=redis://bob:hunter2@h:x",
        "queues.big.nosuch=redis://bob:hunter2@h",
        "queues.big.limit=redis://bob:hunter2@h",
        "queues.big.url=[redis://bob:hunter2@h",
    ] {
        let (_, error) = place.run(&["check", "p.yaml", "--set", set], 2);
        assert!(error.contains("--set queues.big.") && !error.contains("hunter2"), "{error}");
        let mut command = place.command(&["check", "p.yaml"]);
        let (key, value) = set.split_once('=').unwrap();
        command.env(format!("BRIGADE__{}", key.replace('.', "__")), value);
        let (_, error) = ended(&command.output().unwrap(), 2);
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn every_queue_can_be_asked_whether_it_is_reached() {
    let place = Place::new("p.yaml", YAML);
    let (_, told) = place.run(&["check", "--connect", "p.yaml"], 2);
    assert!(told.contains("queue `in`: in.jsonl cannot be read"), "{told}");
    place.write("in.jsonl", "");
    let (told, _) = place.run(&["check", "--connect", "p.yaml"], 0);
    assert!(told.contains("queue `big` (embedded): reached"), "{told}");
    assert!(told.contains("queue `out` (file): reached"), "{told}");
    place.write("p.yaml", &YAML.replace("queues:", "queues:\n  unused: { type: embedded }"));
    let (_, error) = place.run(&["check", "--connect", "p.yaml"], 0);
    assert_eq!(error.matches("warning").count(), 1, "{error}");
    let away = YAML.replace("{ type: embedded }", "{ type: rsmq, url: 'redis://127.0.0.1:1' }");
    place.write("p.yaml", &away);
    let (told, error) = place.run(&["check", "--connect", "p.yaml"], 2);
    assert!(told.contains("queue `in` (file): reached"), "{told}");
    assert!(error.contains("queue `big`: Redis") && error.contains("`url` right?"), "{error}");
    // Directories of outputs are made when it runs.
    place.write("p.yaml", &YAML.replace("out.jsonl", "new/out.jsonl"));
    place.run(&["check", "--connect", "p.yaml"], 0);
}

#[test]
fn queues_are_filled_looked_into_and_emptied() {
    let place = Place::new("p.yaml", YAML);
    let mut put = place.command(&["queues", "put", "p.yaml", "big", "--key", "k"]);
    let mut put = put.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(numbers(0..3).as_bytes()).unwrap();
    assert!(put.wait().unwrap().success());
    let (list, _) = place.run(&["queues", "list", "p.yaml"], 0);
    let row = list.lines().find(|line| line.contains("big")).unwrap();
    assert!(row.contains("embedded") && row.contains('3'), "{list}");
    let (peek, _) = place.run(&["queues", "peek", "p.yaml", "big", "--limit", "2"], 0);
    assert_eq!(peek.lines().filter(|line| line.contains("{\"n\":")).count(), 2, "{peek}");
    let (purged, _) = place.run(&["queues", "purge", "p.yaml", "big"], 0);
    assert!(purged.contains("3 messages deleted"), "{purged}");
    let (peek, _) = place.run(&["queues", "peek", "p.yaml", "big"], 0);
    assert_eq!(peek.trim(), "");
    // One that cannot be asked does not keep the others from being told.
    let away = "{ type: rsmq, url: 'redis://127.0.0.1:1' }";
    place.write("p.yaml", &YAML.replace("{ type: file, path: out.jsonl }", away));
    let (list, note) = place.run(&["queues", "list", "p.yaml"], 0);
    let row = |queue: &str| list.lines().find(|line| line.contains(queue)).unwrap();
    assert!(row("out").contains('?') && row("big").contains('0'), "{list}");
    assert!(note.contains("note: queue `out`: ") && note.contains("`url` right?"), "{note}");
    assert!(note.contains("note: queue `in`: "), "{note}");
}

#[test]
fn dead_letters_are_listed_shown_redriven_and_deleted() {
    let place = Place::new("p.yaml", YAML);
    place.write("in.jsonl", "{\"n\":11}\nbroken\n{\"n\":\n{\"n\":12}\n");
    let (_, _) = place.run(&["run", "p.yaml", "--until-idle"], 3);
    let (list, _) = place.run(&["dead-letters", "list", "p.yaml"], 0);
    let numbers: Vec<&str> = list
        .lines()
        .filter(|line| line.contains("decode"))
        .filter_map(|line| line.split(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty()))
        .collect();
    assert_eq!(numbers.len(), 2, "{list}");
    let (show, _) = place.run(&["dead-letters", "show", "p.yaml", numbers[0]], 0);
    assert!(show.contains("broken") && show.contains("in.jsonl:record 2"), "{show}");
    place.run(&["dead-letters", "delete", "p.yaml", numbers[0]], 0);
    place.run(&["dead-letters", "redrive", "p.yaml"], 0);
    let (list, _) = place.run(&["dead-letters", "list", "p.yaml"], 0);
    assert!(!list.contains("decode"), "{list}");
    // It is broken still: it ends there again.
    place.run(&["run", "p.yaml", "--until-idle"], 3);
    let (list, _) = place.run(&["dead-letters", "list", "p.yaml"], 0);
    assert_eq!(list.lines().filter(|line| line.contains("decode")).count(), 1, "{list}");
    assert_eq!(place.read("out.jsonl"), "{\"n\":11}\n{\"n\":12}\n");
}

#[test]
fn a_dead_letter_that_is_not_there_is_an_error_of_each_command() {
    let place = Place::new("p.yaml", YAML);
    place.write("in.jsonl", "broken\n");
    place.run(&["run", "p.yaml", "--until-idle"], 3);
    for command in ["show", "redrive", "delete"] {
        let (out, error) = place.run(&["dead-letters", command, "p.yaml", "99"], 2);
        assert!(out.is_empty() && error.contains("no dead letter 99"), "{command}: {out}{error}");
    }
    for command in ["redrive", "delete"] {
        place.run(&["dead-letters", command, "p.yaml", "1", "99"], 2);
    }
    place.run(&["dead-letters", "show", "p.yaml", "1"], 0);
    place.run(&["dead-letters", "delete", "p.yaml", "1"], 0);
    place.run(&["dead-letters", "delete", "p.yaml", "1"], 2);
    place.run(&["dead-letters", "redrive", "p.yaml"], 0);
}

#[test]
fn to_look_makes_no_state() {
    let place = Place::new("p.yaml", YAML);
    let (_, unknown) = place.run(&["queues", "peek", "p.yaml", "bog"], 2);
    assert!(unknown.contains("no queue `bog`"), "{unknown}");
    for arguments in [
        &["queues", "list", "p.yaml"][..],
        &["queues", "peek", "p.yaml", "big"],
        &["queues", "release", "p.yaml", "big"],
        &["queues", "purge", "p.yaml", "big"],
        &["dead-letters", "list", "p.yaml"],
        &["dead-letters", "show", "p.yaml", "1"],
        &["dead-letters", "redrive", "p.yaml"],
        &["dead-letters", "delete", "p.yaml", "1"],
    ] {
        let listed = arguments[1] == "list" || arguments[1] == "redrive";
        let output = place.command(arguments).output().unwrap();
        let (_, error) = ended(&output, if listed { 0 } else { 2 });
        assert!(!place.path("state").exists(), "{arguments:?}");
        if arguments.contains(&"big") {
            assert!(error.contains("there is no state in state"), "{error}");
        }
        // Who names a state means one that is there.
        let mut command = place.command(arguments);
        let (out, error) = ended(&command.args(["--state", "nonexist"]).output().unwrap(), 2);
        assert!(out.is_empty() && error.contains("there is no state in nonexist"), "{error}");
        assert!(!place.path("nonexist").exists(), "{arguments:?}");
    }
}

#[test]
fn a_line_that_cannot_be_put_is_told_with_its_number() {
    let bytes = "queues:\n  raw: { type: embedded, codec: bytes }";
    let text = YAML.replace("queues:", bytes).replace("input: big", "input: [big, raw]");
    let place = Place::new("p.yaml", &text);
    let put = |queue: &str, code: i32| {
        let mut put = place.command(&["queues", "put", "p.yaml", queue]);
        let put = put.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut put = put.spawn().unwrap();
        put.stdin.take().unwrap().write_all(b"1\r\n2\n3\xff\n4\n").unwrap();
        ended(&put.wait_with_output().unwrap(), code)
    };
    let (_, error) = put("big", 2);
    let words = "line 3 is not UTF-8 from byte 2 on, and queue `big` takes json; the 2 before it";
    assert!(error.contains(words), "{error}");
    let (peek, _) = place.run(&["queues", "peek", "p.yaml", "big"], 0);
    assert!(peek.contains(" 1\n") && peek.contains(" 2\n") && !peek.contains(" 4\n"), "{peek}");
    let (out, _) = put("raw", 0);
    assert_eq!(out, "4 messages put\n");
}

/// Puts lines on a queue of `p.yaml`; answers with what the command printed, which ends so.
fn put_lines(place: &Place, queue: &str, lines: &str, code: i32) -> (String, String) {
    let mut put = place.command(&["queues", "put", "p.yaml", queue]);
    let put = put.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut put = put.spawn().unwrap();
    put.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    ended(&put.wait_with_output().unwrap(), code)
}

#[test]
fn what_is_put_is_what_a_stage_would_put() {
    let place = Place::new(
        "p.yaml",
        "
pipeline: keyed
state: state
queues:
  in: { type: embedded, key: k, schema: { required: [k] } }
  out: { type: file, path: out.jsonl }
stages:
  s: { component: pass, input: in, outputs: [out], order: key }
",
    );
    put_lines(&place, "in", "{\"k\":1}\n{\"k\":\"two\"}\n", 0);
    let state = rusqlite::Connection::open(place.path("state/brigade.db")).unwrap();
    let mut keys = state.prepare("SELECT CAST(key AS TEXT) FROM messages ORDER BY id").unwrap();
    let keys = keys.query_map([], |row| row.get(0)).unwrap();
    let keys: Vec<String> = keys.map(Result::unwrap).collect();
    assert_eq!(keys, ["1", "two"], "messages of a key wait for each other");
    let (out, error) = put_lines(&place, "in", "{\"k\":3}\n{}\n{\"k\":4}\n", 2);
    let words = "line 2 cannot be put: does not fit the schema of queue `in`";
    assert!(out.is_empty() && error.contains(words), "{error}");
    assert!(error.contains("the 1 before it were put"), "{error}");
}

#[test]
fn where_a_queue_is_full_it_is_told_how_many_were_put() {
    for when_full in ["wait", "refuse"] {
        let limited =
            format!("{{ type: embedded, limit: {{ messages: 1500, when_full: {when_full} }} }}");
        let place = Place::new("p.yaml", &YAML.replace("{ type: embedded }", &limited));
        let (out, error) = put_lines(&place, "big", &numbers(0..3000), 2);
        let words = "of the first 2000 lines 1500 were put, but not line 1501: queue `big` is full";
        assert!(out.is_empty() && error.contains(words), "{error}");
        let (peek, _) = place.run(&["queues", "peek", "p.yaml", "big", "--limit", "3000"], 0);
        assert_eq!(peek.lines().count(), 1500);
    }
}

#[test]
fn a_stage_that_reads_a_queue_alone_now_gets_what_waited_for_it_beside_another() {
    let both = "
pipeline: shared
state: state
queues:
  in: { type: embedded, key: n }
  out: { type: file, path: out.jsonl }
  rest: { type: file, path: rest.jsonl }
stages:
  s: { component: pass, input: in, outputs: [out], order: key }
  t: { component: pass, input: in, outputs: [rest] }
";
    let place = Place::new("p.yaml", both);
    put_lines(&place, "in", &numbers(0..10), 0);
    let alone = both.replace("  t: { component: pass, input: in, outputs: [rest] }\n", "");
    place.write("p.yaml", &alone.replace("  rest: { type: file, path: rest.jsonl }\n", ""));
    put_lines(&place, "in", &numbers(3..4), 0);
    let (_, told) = place.run(&["run", "p.yaml", "--until-idle"], 0);
    let mut lines: Vec<String> = place.read("out.jsonl").lines().map(str::to_owned).collect();
    lines.sort_unstable();
    let mut all: Vec<String> = numbers(0..10).lines().map(str::to_owned).collect();
    all.insert(3, "{\"n\":3}".to_owned());
    assert_eq!(lines, all, "{told}");
    let warnings: Vec<&str> = told.lines().filter(|line| line.contains("WARN")).collect();
    let of_t = "messages wait for a stage that does not read this queue any more";
    let of_t = warnings.iter().filter(|line| line.contains(of_t)).collect::<Vec<_>>();
    assert!(of_t.len() == 1 && of_t[0].contains("stage=t"), "{told}");
}

const ENDLESS: &str = "
pipeline: endless
state: state
queues:
  in: { type: generator, template: { n: '{{seq}}' }, rate: 500 }
  out: { type: file, path: out.jsonl }
stages:
  copy: { component: pass, input: in, outputs: [out] }
";

/// Waits until a file has so many lines.
fn wait_for_lines(place: &Place, name: &str, lines: usize) {
    let begun = std::time::Instant::now();
    let there =
        || fs::read_to_string(place.path(name)).map_or(0, |text| text.matches('\n').count());
    while there() < lines {
        assert!(begun.elapsed().as_secs() < 180, "{} of {lines} lines came", there());
        std::thread::yield_now();
    }
}

fn signal(pid: u32) {
    assert!(Command::new("kill").arg(pid.to_string()).status().unwrap().success());
}

#[test]
fn the_first_signal_drains() {
    let place = Place::new("p.yaml", ENDLESS);
    let mut command = place.command(&["run", "p.yaml"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_lines(&place, "out.jsonl", 1);
    signal(child.id());
    let (_, told) = ended(&child.wait_with_output().unwrap(), 0);
    assert!(told.contains("received"), "it tells what was done: {told}");
    let text = place.read("out.jsonl");
    assert!(text.ends_with('\n') && text.lines().all(|line| line.ends_with('}')));
}

#[test]
fn a_second_signal_aborts() {
    // The stage cannot end by itself within the deadline: its output goes nowhere.
    let blocked = ENDLESS
        .replace("{ type: file, path: out.jsonl }", "{ type: embedded, limit: { messages: 1 } }");
    let place = Place::new("p.yaml", &blocked);
    let mut command = place.command(&["run", "p.yaml"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut wait_for = |text: &str| {
        let found = lines.by_ref().any(|line| line.unwrap().contains(text));
        assert!(found, "it never said `{text}`");
    };
    wait_for("cannot settle");
    signal(child.id());
    wait_for("draining");
    // One that comes too soon is the first once more.
    let begun = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed().as_secs() < 180, "it does not abort");
        signal(child.id());
    }
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

/// It may wait for ever: for a stage that nobody runs.
#[test]
fn who_waits_for_stages_of_other_processes_says_so() {
    let place = Place::new("p.yaml", YAML);
    let mut command = place.command(&["run", "p.yaml", "--until-idle", "--stage", "copy"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let waits = lines.by_ref().find(|line| line.as_ref().unwrap().contains("waiting until"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(waits.unwrap().unwrap().contains("stages sort are finished, in other processes"));
}

/// Who stops a program may tell it and its process group.
#[test]
fn a_signal_that_comes_twice_at_once_drains() {
    let place = Place::new("p.yaml", ENDLESS);
    let mut command = place.command(&["run", "p.yaml"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_lines(&place, "out.jsonl", 1);
    let both = "kill -INT $0; kill -TERM $0";
    let sent = Command::new("sh").args(["-c", both, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    ended(&child.wait_with_output().unwrap(), 0);
}

#[test]
fn exit_codes_tell_how_it_ended() {
    let place = Place::new("p.yaml", YAML);
    place.run(&["run"], 2);
    place.run(&["run", "missing.yaml"], 2);
    place.write("wrong.yaml", "pipeline: wrong\nstagse: {}\n");
    let (_, error) = place.run(&["check", "wrong.yaml"], 2);
    assert!(error.contains("wrong.yaml:2:1") && error.contains("`stages`"), "{error}");
    let (_, error) = place.run(&["run", "p.yaml", "--stage", "none"], 2);
    assert!(error.contains("no stage `none`") && error.contains("--> --stage"), "{error}");
    place.write("in.jsonl", "");
    place.run(&["run", "p.yaml", "--until-idle"], 0);
    let halting = YAML.replace(
        "component: { filter: '.n > 10' }",
        "on_exhausted: halt, retry: { attempts: 1 }, component: { lookup: { file: none.csv, key: k, match: [] } }",
    );
    place.write("halting.yaml", &halting);
    place.write("in.jsonl", &numbers(0..1));
    let set = "--set=restart.max_restarts=0";
    let (_, error) =
        place.run(&["run", "halting.yaml", "--until-idle", "--state", "other", set], 4);
    assert!(error.contains("none.csv"), "{error}");
    assert!(error.contains("draining"), "not idle: it has `stop_deadline` for the others: {error}");
}

#[test]
fn standard_input_and_output_are_queues() {
    let text = YAML.replace("path: in.jsonl", "path: '-'").replace("path: out.jsonl", "path: '-'");
    let place = Place::new("p.yaml", &text);
    let mut run = place.command(&["run", "p.yaml", "--until-idle"]);
    let mut run = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    run.stdin.take().unwrap().write_all(numbers(9..14).as_bytes()).unwrap();
    let (out, _) = ended(&run.wait_with_output().unwrap(), 0);
    assert_eq!(out, numbers(11..14));
}

/// Whoever writes it may be a program that follows something, and never ends.
#[test]
fn what_came_on_standard_input_is_handled_while_more_is_waited_for() {
    let csv = "path: '-', format: csv";
    for (input, lines) in [("path: '-'", ["{\"n\":\"20\"}\n\n"; 2]), (csv, ["n\n20\n\n", "20\n"])] {
        let text = YAML.replace("path: in.jsonl", input).replace(".n > 10", ".n == \"20\"");
        let place = Place::new("p.yaml", &text);
        let mut run = place.command(&["run", "p.yaml", "--until-idle"]);
        let mut run = run.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdin = run.stdin.take().unwrap();
        for (before, line) in lines.iter().enumerate() {
            stdin.write_all(line.as_bytes()).unwrap();
            wait_for_lines(&place, "out.jsonl", before + 1);
        }
        drop(stdin);
        assert!(run.wait().unwrap().success());
    }
}

#[test]
fn standard_input_is_csv_and_compressed_when_the_file_says_so() {
    let input = "in: { type: file, path: '-', format: csv, compression: gzip }";
    let text = YAML.replace("in: { type: file, path: in.jsonl }", input);
    let text = text.replace("'.n > 10'", "'(.n | tonumber) > 10'").replace("out.jsonl", "'-'");
    let place = Place::new("p.yaml", &text);
    place.write("numbers.csv", "n,name\n9,Ada\n11,Grace\n");
    assert!(Command::new("gzip").arg(place.path("numbers.csv")).status().unwrap().success());
    let input = fs::File::open(place.path("numbers.csv.gz")).unwrap();
    let mut run = place.command(&["run", "p.yaml", "--until-idle"]);
    let (out, _) = ended(&run.stdin(input).output().unwrap(), 0);
    assert_eq!(out, "{\"n\":\"11\",\"name\":\"Grace\"}\n");
}

#[test]
fn files_are_globs_of_csv_and_long_lines_are_dead_letters() {
    let place = Place::new(
        "p.yaml",
        "
pipeline: files
state: state
queues:
  rows: { type: file, path: 'rows/*.csv' }
  lines: { type: file, path: lines.txt, max_message_bytes: 100 }
  out: { type: file, path: out.jsonl.gz }
stages:
  table: { component: pass, input: rows, outputs: [out] }
  text: { component: pass, input: lines, outputs: [out] }
",
    );
    fs::create_dir(place.path("rows")).unwrap();
    place.write("rows/1.csv", "a,b\n1,\"x, y\"\n");
    place.write("rows/2.csv", "a,b\n2,\"q\"\"q\"\n");
    place.write("lines.txt", &format!("short\n{}\nlast", "x".repeat(150)));
    place.run(&["run", "p.yaml", "--until-idle"], 3);
    let (show, _) = place.run(&["dead-letters", "show", "p.yaml", "1"], 0);
    let letter: serde_json::Value = serde_json::from_str(&show).unwrap();
    assert_eq!(letter["cause"]["kind"], "too_large");
    let truncated = &letter["truncated"];
    assert_eq!(
        (&truncated["bytes"], &truncated["from"], &truncated["to"]),
        (&150.into(), &6.into(), &156.into())
    );
    // What was written compressed is read again.
    let back = "
pipeline: back
state: state
queues: { in: { type: file, path: out.jsonl.gz }, back: { type: file, path: back.jsonl } }
stages: { copy: { component: pass, input: in, outputs: [back] } }
";
    place.write("back.yaml", back);
    place.run(&["run", "back.yaml", "--until-idle"], 0);
    let back = place.read("back.jsonl");
    let mut lines: Vec<&str> = back.lines().collect();
    lines.sort_unstable();
    let rows = [r#"{"a":"1","b":"x, y"}"#, r#"{"a":"2","b":"q\"q"}"#];
    assert_eq!(lines, ["last", "short", rows[0], rows[1]]);
}
