//! The real command where nobody hears it: standard output and error that are full or closed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "common/place.rs"]
mod place;

use std::fs::{self, File};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};

use place::{Place, eventually, numbers};

const ENDLESS: &str = "
pipeline: endless
state: state
log: { stats: 5ms }
queues:
  in: { type: generator, template: { n: '{{seq}}' }, rate: 500 }
  out: { type: file, path: out.jsonl }
stages:
  copy: { component: pass, input: in, outputs: [out] }
";

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn endless() -> Place {
    let place = Place::new(b"");
    fs::write(place.path("p.yaml"), ENDLESS).unwrap();
    place
}

fn brigade(place: &Place, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(place.path("")).args(arguments).env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn lines(place: &Place) -> usize {
    fs::read_to_string(place.path("out.jsonl")).map_or(0, |text| text.lines().count())
}

/// Lets so many more lines come out, then asks it to drain.
fn drained_after(place: &Place, child: &mut Child, more: usize) -> ExitStatus {
    let before = lines(place);
    eventually("it goes on", || {
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        lines(place) >= before + more
    });
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    child.wait().unwrap()
}

#[test]
fn a_log_on_a_full_disk_changes_nothing() {
    for format in ["human", "json"] {
        let place = Place::new(numbers(500).as_bytes());
        let mut command = place.command(&["--set", &format!("log.format={format}")]);
        let status = command.stdout(Stdio::null()).stderr(full()).status().unwrap();
        assert_eq!((status.code(), place.arrived()), (Some(0), numbers(500)));
    }
}

#[test]
fn an_endless_pipeline_whose_log_is_full_works_and_drains() {
    let place = endless();
    let mut child = brigade(&place, &["run", "p.yaml"]).stderr(full()).spawn().unwrap();
    assert_eq!(drained_after(&place, &mut child, 100).code(), Some(0));
}

#[test]
fn a_log_whose_reader_goes_away_changes_nothing() {
    let place = endless();
    let mut command = brigade(&place, &["run", "p.yaml"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = child.stderr.take().unwrap();
    log.read_exact(&mut [0; 20]).unwrap();
    drop(log);
    assert_eq!(drained_after(&place, &mut child, 100).code(), Some(0));
    let text = fs::read_to_string(place.path("out.jsonl")).unwrap();
    assert!(text.ends_with('\n') && text.lines().all(|line| line.ends_with('}')));
}

#[test]
fn what_cannot_be_printed_is_an_error_but_for_a_reader_that_went_away() {
    let place = endless();
    for arguments in [
        &["schema"][..],
        &["schema", "--format", "keys"],
        &["check", "p.yaml"],
        &["graph", "p.yaml"],
        &["asyncapi", "p.yaml"],
        &["queues", "list", "p.yaml"],
        &["dead-letters", "list", "p.yaml"],
        &["--help"],
    ] {
        let output = brigade(&place, arguments).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = brigade(&place, arguments).stdout(writer).output().unwrap();
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"), "{arguments:?}");
        if arguments != ["--help"] {
            assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        }
    }
    let output = brigade(&place, &["graph", "p.yaml"]).stdout(full()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("error: standard output cannot be written: No space"), "{error}");
}
