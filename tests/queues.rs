//! `brigade queues` and its neighbours: what they say of queues, and what they leave behind.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A directory with a pipeline.
struct Place(tempfile::TempDir);

impl Place {
    fn new(queues: &str, stages: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let text = format!("pipeline: p\nstate: state\nqueues:\n{queues}\nstages:\n{stages}\n");
        fs::write(directory.path().join("p.yaml"), text).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the command with these lines as its input; it ends with this code. What it printed, and
    /// what it said.
    fn run(&self, arguments: &[&str], input: &str, code: i32) -> (String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(self.0.path()).args(arguments).env_remove("RUST_LOG");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = command.spawn().unwrap();
        running.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = running.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (out, error) = (text(output.stdout), text(output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}\n{error}");
        (out, error)
    }

    fn put(&self, queue: &str, lines: &str, code: i32) -> String {
        self.run(&["queues", "put", "p.yaml", queue, "--key", "k"], lines, code).1
    }

    /// The rows of the table, each with its cells.
    fn listed(&self) -> Vec<Vec<String>> {
        let (list, _) = self.run(&["queues", "list", "p.yaml"], "", 0);
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        list.lines().skip(1).map(cells).collect()
    }

    /// What is written to the database of the state by somebody else.
    fn write(&self, sql: &str) -> usize {
        let db = rusqlite::Connection::open(self.path("state/brigade.db")).unwrap();
        db.execute(sql, []).unwrap()
    }
}

const QUEUES: &str = "
  in: { type: embedded, schema: { type: object } }
  out: { type: embedded }
  dead: { type: embedded }";
const STAGES: &str = "  s: { component: pass, input: in, outputs: [out], dead_letter: dead }";

#[test]
fn a_queue_is_listed_before_anything_has_opened_it() {
    let place = Place::new(QUEUES, STAGES);
    place.put("in", "{}\n{}\n", 0);
    let row = |cells: &str| cells.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let rows = place.listed();
    for cells in ["dead embedded 0 0 0 0 0", "out embedded 0 0 0 0 0"] {
        assert!(rows.contains(&row(cells)), "{rows:?}");
    }
    assert!(rows.iter().any(|cells| cells[..3] == row("in embedded 2")), "{rows:?}");
    // Each of its readers gets what is put.
    let both = "  s: { component: pass, input: in, outputs: [out], dead_letter: dead }
  t: { component: log, input: dead }
  u: { component: log, input: dead }";
    let place = Place::new(QUEUES, both);
    place.put("in", "{}\n", 0);
    let rows = place.listed();
    for cells in ["dead embedded t 0 0 0 0 0", "dead embedded u 0 0 0 0 0"] {
        assert!(rows.contains(&row(cells)), "{rows:?}");
    }
}

#[test]
fn to_look_makes_no_store_and_to_put_does() {
    let queues = QUEUES.replace("in: { type: embedded", "in: { type: embedded, path: elsewhere");
    let place = Place::new(&queues, STAGES);
    place.put("out", "{}\n", 0);
    for command in ["list", "peek", "purge", "release"] {
        let (arguments, code) = match command {
            "list" => (vec!["queues", command, "p.yaml"], 0),
            _ => (vec!["queues", command, "p.yaml", "in"], 2),
        };
        let (_, error) = place.run(&arguments, "", code);
        assert!(error.contains("there is no store in elsewhere, as nothing has run"), "{error}");
        assert!(!place.path("elsewhere").exists(), "{command}");
    }
    place.put("in", "{}\n", 0);
    assert!(place.listed().iter().any(|cells| cells[0] == "in" && cells[2] == "1"));
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// A cron job may do so every minute.
#[test]
fn a_command_that_ends_with_an_error_leaves_no_file() {
    let place = Place::new(QUEUES, STAGES);
    place.put("in", "{}\n", 0);
    let holders = place.path("state/holders");
    for _ in 0..5 {
        place.put("in", "1\n", 2);
        assert_eq!(files(&holders), [""; 0].map(PathBuf::from));
        place.run(&["dead-letters", "show", "p.yaml", "999"], "", 2);
        place.run(&["queues", "peek", "p.yaml", "no"], "", 2);
        assert_eq!(files(&holders), [""; 0].map(PathBuf::from));
    }
}

#[test]
fn what_is_shown_of_a_queue_that_several_stages_read_says_for_whom_it_is() {
    let both = "  s: { component: pass, input: in, outputs: [out] }
  t: { component: log, input: in }";
    let place = Place::new(QUEUES, both);
    place.put("in", "{}\n", 0);
    let (peek, _) = place.run(&["queues", "peek", "p.yaml", "in"], "", 0);
    let shown: Vec<&str> = peek.lines().collect();
    assert!(shown.len() == 2 && peek.contains(" for=s ") && peek.contains(" for=t "), "{peek}");
}

/// Three messages of a key, of which the first is parked.
fn parked() -> Place {
    let stages =
        "  s: { component: pass, input: in, outputs: [out], order: key, on_exhausted: park }";
    let place = Place::new(QUEUES, stages);
    place.run(&["run", "p.yaml", "--until-idle"], "", 0);
    place.put("in", "{}\n{}\n{}\n", 0);
    let sql = "UPDATE messages SET state = 4, error = 'no luck' WHERE state = 0";
    assert_eq!(place.write(sql), 1, "the others wait behind it");
    place
}

#[test]
fn who_names_a_message_that_is_not_parked_is_told_so() {
    let place = parked();
    let (peek, _) = place.run(&["queues", "peek", "p.yaml", "in"], "", 0);
    let positions: Vec<&str> =
        peek.lines().map(|line| line.trim_start_matches('#').split(' ').next().unwrap()).collect();
    for wrong in [positions[1], "99"] {
        let arguments = ["queues", "release", "p.yaml", "in", positions[0], wrong];
        let (out, error) = place.run(&arguments, "", 2);
        let told = format!("queue `in`: no message is parked at position {wrong}");
        assert!(out.is_empty() && error.contains(&told), "{error}");
    }
    let (out, _) = place.run(&["queues", "release", "p.yaml", "in", positions[0]], "", 0);
    assert_eq!(out, "1 messages released\n");
    let (out, _) = place.run(&["queues", "release", "p.yaml", "in"], "", 0);
    assert_eq!(out, "0 messages released\n");
}

#[test]
fn a_run_that_leaves_parked_messages_says_so() {
    let place = parked();
    let (_, said) = place.run(&["run", "p.yaml", "--until-idle"], "", 0);
    let told = "queue `in`: 3 messages are parked, or wait behind one that is, before stage `s`";
    assert!(said.contains(told), "{said}");
    place.run(&["queues", "release", "p.yaml", "in"], "", 0);
    let (_, said) = place.run(&["run", "p.yaml", "--until-idle"], "", 0);
    assert!(!said.contains("parked"), "{said}");
}

#[test]
fn a_full_queue_says_so_once() {
    let queues =
        QUEUES.replace("out: { type: embedded", "out: { type: embedded, limit: { messages: 1 }");
    let place = Place::new(&queues, STAGES);
    let error = place.put("out", "{}\n{}\n", 2);
    assert_eq!(error.matches("its limit").count(), 1, "{error}");
    assert!(error.contains("is full: its limit is 1 messages: it takes more once"), "{error}");
}
