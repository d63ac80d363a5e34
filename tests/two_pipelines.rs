//! A program with two pipelines inside, each with a supervisor of its own and started off the main
//! thread: the signal is the program's, and one of them ends both.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "common/place.rs"]
mod place;

use std::fs;
use std::process::{Child, Command};

use actix_web::rt::System;
use actix_web::rt::signal::unix::{SignalKind, signal};
use brigade::{Pipeline, Supervisor};
use place::{eventually, start};

const YAML: &str = "
pipeline: NAME
queues:
  in: { type: generator, template: { n: '{{seq}}' }, rate: 500 }
  kept: { type: embedded }
  out: { type: file, path: NAME.jsonl }
stages:
  keep: { component: pass, input: in, outputs: [kept] }
  copy: { component: pass, input: kept, outputs: [out] }
";
const NAMES: [&str; 2] = ["one", "two"];
/// Set where this program is the one that is told to end.
const INSIDE: &str = "BRIGADE_TEST_INSIDE";

/// Runs both until the signal comes; says of each how many messages went out, and whether its books
/// close.
async fn run_both() {
    let mut ends = signal(SignalKind::terminate()).unwrap();
    let mut both = Vec::new();
    for name in NAMES {
        let yaml = YAML.replace("NAME", name);
        let pipeline = Pipeline::from_yaml(&yaml, &brigade::registry()).unwrap();
        let pipeline = pipeline.state_path(name);
        both.push(Supervisor::new().add(pipeline).start().await.unwrap());
    }
    ends.recv().await.unwrap();
    for running in both {
        let stopped = running.drain().await.remove(0).status;
        let out = stopped.stage("copy").unwrap().acked;
        eprintln!("{}: {out} went out, books close: {}", stopped.pipeline, stopped.closes());
    }
}

/// A program that is killed at the end of its test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn one_signal_drains_both_pipelines_of_a_program() {
    const NAME: &str = "one_signal_drains_both_pipelines_of_a_program";
    if std::env::var_os(INSIDE).is_some() {
        return System::new().block_on(run_both());
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.current_dir(directory.path()).env(INSIDE, "").args(["--exact", NAME, "--nocapture"]);
    let mut program = Program(start(program, &path("log")));
    let log = || fs::read_to_string(path("log")).unwrap();
    let lines = |name: &str| {
        fs::read_to_string(path(&format!("{name}.jsonl"))).map_or(0, |text| text.lines().count())
    };
    for name in NAMES {
        eventually("messages go through both", || {
            assert_eq!(program.0.try_wait().unwrap(), None, "{}", log());
            lines(name) > 100
        });
    }
    let process = program.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
    eventually("it ends", || program.0.try_wait().unwrap().is_some());
    assert_eq!(program.0.wait().unwrap().code(), Some(0), "{}", log());
    for name in NAMES {
        let told = format!("{name}: {} went out, books close: true", lines(name));
        assert!(log().lines().any(|line| line == told), "{told}: {}", log());
    }
}
