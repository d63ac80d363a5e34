//! Bad data and bad machines: a clear error that says what to do, nothing lost, no hang, no panic.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const YAML: &str = "
pipeline: bad
state: state
stop_deadline: 200ms
queues:
  in: { type: file, path: in.jsonl, schema: { type: object } }
  kept: { type: embedded }
  out: { type: file, path: out.jsonl }
stages:
  check: { component: { map: '.' }, input: in, outputs: [kept] }
  copy: { component: pass, input: kept, outputs: [out] }
";

struct Place(tempfile::TempDir);

impl Place {
    fn new(input: &[u8]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("p.yaml"), YAML).unwrap();
        fs::write(place.path("in.jsonl"), input).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, set: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(self.0.path()).env_remove("RUST_LOG");
        command.args(["run", "p.yaml", "--until-idle"]);
        for set in set {
            command.args(["--set", set]);
        }
        command
    }

    fn run(&self, set: &[&str], code: i32) -> String {
        let Output { status, stderr, .. } = self.command(set).output().unwrap();
        let error = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(code), "{error}");
        assert!(!error.contains("panicked"), "{error}");
        error
    }

    fn out(&self) -> String {
        fs::read_to_string(self.path("out.jsonl")).unwrap()
    }

    /// The dead letters: cause, where from, and what it says.
    fn dead(&self) -> Vec<String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(self.0.path()).args(["dead-letters", "list", "p.yaml"]);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }
}

#[test]
fn each_bad_line_is_a_dead_letter_and_the_good_ones_go_on() {
    const LONG: usize = 20 << 20;
    let lines: [(&[u8], Option<&str>); 12] = [
        (b"{\"n\":1}", None),
        (b"{\"n\":", Some("decode")),
        (b"\0\0", Some("decode")),
        (b"{\"n\":\"\xff\xfe\"}", Some("decode")),
        (&[b'['; 100_000], Some("decode")),
        (b"{\"n\":1e999}", Some("decode")),
        (b"[1]", Some("schema")),
        (b"null", Some("schema")),
        (b"{\"a\":1,\"a\":2}", None),
        (&[b'x'; LONG], Some("too_large")),
        (b"{\"n\":3}\r", None),
        (b"{\"n\":4}", None),
    ];
    let mut input = Vec::new();
    for (line, _) in &lines {
        input.extend_from_slice(line);
        input.extend_from_slice(b"\n\n");
    }
    let place = Place::new(&input);
    place.run(&[], 3);
    assert_eq!(place.out(), "{\"n\":1}\n{\"a\":2}\n{\"n\":3}\n{\"n\":4}\n");
    let dead = place.dead();
    let expected: Vec<&str> = lines.iter().filter_map(|(_, cause)| *cause).collect();
    assert_eq!(dead.len(), expected.len(), "{dead:#?}");
    for cause in ["decode", "schema", "too_large"] {
        let count = |list: &[&str]| list.iter().filter(|have| **have == cause).count();
        let found = dead.iter().filter(|line| line.contains(&format!(" {cause} "))).count();
        assert_eq!(found, count(&expected), "{cause}: {dead:#?}");
    }
}

fn numbers(n: u32) -> String {
    (0..n).map(|n| format!("{{\"n\":{n}}}\n")).collect()
}

#[test]
fn an_output_that_is_full_blocks_and_everything_arrives_elsewhere() {
    let place = Place::new(numbers(500).as_bytes());
    let mut command = place.command(&["queues.out.path=/dev/full"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = lines
        .by_ref()
        .map(Result::unwrap)
        .any(|line| line.contains("/dev/full") && line.contains("the disk is full"));
    assert!(told, "it says that the disk is full");
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(0), "it gives back what is not done, and ends");
    place.run(&[], 0);
    assert_eq!(place.out(), numbers(500));
}

#[test]
fn what_cannot_be_read_or_written_is_told_with_its_path() {
    let place = Place::new(b"{}\n");
    for (set, said) in [
        ("queues.in.path=missing.jsonl", "cannot read missing.jsonl: No such file"),
        ("queues.in.path=.", "cannot read .: Is a directory"),
        ("queues.out.path=.", ". is not a file's name"),
    ] {
        let error = place.run(&[set], 4);
        assert!(error.contains(said), "{set}: {error}");
    }
}

#[test]
fn a_damaged_state_is_refused_with_advice_and_not_touched() {
    let place = Place::new(b"{}\n");
    fs::create_dir(place.path("state")).unwrap();
    let garbage = b"this was never a database";
    fs::write(place.path("state/brigade.db"), garbage).unwrap();
    let error = place.run(&[], 2);
    assert!(error.contains("is damaged") && error.contains(".recover"), "{error}");
    assert_eq!(error.matches("is damaged").count(), 1, "told once: {error}");
    assert_eq!(fs::read(place.path("state/brigade.db")).unwrap(), garbage);
}

#[test]
fn too_few_file_handles_are_told() {
    let place = Place::new(b"{}\n");
    let brigade = env!("CARGO_BIN_EXE_brigade");
    let script = format!("ulimit -n 16; exec {brigade} run p.yaml --until-idle");
    let mut shell = Command::new("sh");
    let output = shell.current_dir(place.0.path()).args(["-c", &script]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("Too many open files") && !error.contains("panicked"), "{error}");
    place.run(&[], 0);
    assert_eq!(place.out(), "{}\n");
}
