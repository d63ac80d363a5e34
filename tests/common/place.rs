//! A directory in which the real command runs, and what came of it.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use brigade::DeadLetter;

/// How long anything may take: longer is a hang.
const PATIENCE: Duration = Duration::from_secs(180);

const YAML: &str = "
pipeline: bad
state: state
stop_deadline: 200ms
queues:
  in: { type: file, path: in.jsonl, schema: { type: object } }
  kept: { type: embedded }
  out: { type: file, path: out.jsonl }
  dead: { type: file, path: dead.jsonl }
stages:
  check: { component: { map: '.' }, input: in, outputs: [kept], dead_letter: dead }
  copy: { component: pass, input: kept, outputs: [out] }
";

/// A directory with a pipeline (file to embedded to file) and its input.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new(input: &[u8]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("p.yaml"), YAML).unwrap();
        fs::write(place.path("in.jsonl"), input).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `brigade run` in the directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_by(&[], arguments)
    }

    /// The same, by a program that runs programs.
    pub(crate) fn command_by(&self, by: &[&str], arguments: &[&str]) -> Command {
        let limit = PATIENCE.as_secs().to_string();
        let mut command = Command::new("timeout");
        command.args(["--foreground", "--kill-after=1", &limit]).args(by);
        command.arg(env!("CARGO_BIN_EXE_brigade")).args(["run", "p.yaml", "--until-idle"]);
        command.current_dir(self.0.path()).env_remove("RUST_LOG").args(arguments);
        command
    }

    /// Runs it with these `--set`s; it ends with this code. What it said.
    pub(crate) fn run(&self, set: &[&str], code: i32) -> String {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", *set]).collect();
        said(&self.command(&set).output().unwrap(), &[code])
    }

    pub(crate) fn out(&self) -> String {
        fs::read_to_string(self.path("out.jsonl")).unwrap()
    }

    /// What came out, in the order of its lines' numbers or texts: queues that keep no order were
    /// asked for none.
    pub(crate) fn arrived(&self) -> String {
        in_order(&self.out())
    }

    /// The dead letters, in the order of the file.
    pub(crate) fn dead(&self) -> Vec<DeadLetter> {
        let text = fs::read_to_string(self.path("dead.jsonl")).unwrap_or_default();
        text.lines().map(|line| DeadLetter::from_json(line.as_bytes()).unwrap()).collect()
    }
}

/// What a command said, which ended with one of these codes and did not panic.
pub(crate) fn said(output: &Output, codes: &[i32]) -> String {
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.code().is_some_and(|code| codes.contains(&code)), "{output:?}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// `{"n":0}` and so on, a line each.
pub(crate) fn numbers(n: u32) -> String {
    (0..n).map(|n| format!("{{\"n\":{n}}}\n")).collect()
}

/// Lines in order: shorter ones first.
pub(crate) fn in_order(text: &str) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    lines.sort_unstable_by_key(|line| (line.len(), *line));
    lines.concat()
}

/// Starts a command whose words are written to a file.
pub(crate) fn start(mut command: Command, log: &std::path::Path) -> Child {
    let log = fs::File::create(log).unwrap();
    command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

/// Waits until something is so; fails where that never comes.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::yield_now();
    }
}
