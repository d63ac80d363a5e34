//! Bad machines, for which privileges are needed: file systems that are full or read-only, files of
//! others, a clock that is set. Nothing is lost, and when the fault is mended everything arrives
//! once. Behind the feature `machine`; `cargo xtask test --without mounts` goes without.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "../common/place.rs"]
mod place;
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use place::{Place, eventually, in_order, numbers, said, start};

/// A file system in memory, mounted in a place for as long as this lives.
struct Mount(PathBuf);

impl Mount {
    fn new(path: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&path).unwrap();
        mount(&["-t", "tmpfs", "-o", options, "tmpfs"], &path);
        Self(path)
    }

    fn remount(&self, options: &str) {
        mount(&["-o", &format!("remount,{options}")], &self.0);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(arguments: &[&str], path: &Path) {
    let mounted = Command::new("mount").args(arguments).arg(path).status();
    assert!(
        mounted.is_ok_and(|status| status.success()),
        "a file system cannot be mounted at {}: this needs root; \
         `cargo xtask test --without mounts` goes without",
        path.display()
    );
}

/// Fills a file system but for so many bytes.
fn fill(directory: &Path, but: u64) -> PathBuf {
    let ballast = directory.join("ballast");
    let _ = fs::write(&ballast, vec![0; 64 << 20]);
    let full = fs::metadata(&ballast).unwrap().len();
    assert!(full > but, "there is more room than thought");
    fs::File::options().write(true).open(&ballast).unwrap().set_len(full - but).unwrap();
    ballast
}

fn log_says(log: &Path, what: &str) -> bool {
    fs::read_to_string(log).unwrap().contains(what)
}

fn ends_well(mut child: Child, log: &Path) {
    let code = child.wait().unwrap().code();
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("panicked") && !log.contains("not accounted for"), "{log}");
}

#[test]
fn a_state_on_a_disk_that_fills_waits_until_there_is_room() {
    let place = Place::new(numbers(20_000).as_bytes());
    let disk = Mount::new(place.path("state"), "size=2m");
    let ballast = fill(&disk.0, 1 << 20);
    let log = place.path("log");
    let child = start(place.command(&[]), &log);
    eventually("it says that the disk is full", || log_says(&log, "is full: make room"));
    fs::remove_file(ballast).unwrap();
    disk.remount("size=64m");
    ends_well(child, &log);
    assert_eq!(place.arrived(), numbers(20_000));
}

/// What the queue itself has no room for it refuses; what the disk has none for waits.
#[test]
fn a_queue_that_refuses_when_it_is_full_waits_for_a_full_disk() {
    let place = Place::new(numbers(20_000).as_bytes());
    let disk = Mount::new(place.path("disk"), "size=2m");
    let ballast = fill(&disk.0, 1 << 20);
    let log = place.path("log");
    let limit = "queues.kept.limit={messages: 1000000, when_full: refuse}";
    let set = ["--set", "queues.kept.path=disk/kept", "--set", limit];
    let child = start(place.command(&set), &log);
    eventually("it says that the disk is full", || log_says(&log, "is full: make room"));
    fs::remove_file(ballast).unwrap();
    disk.remount("size=64m");
    ends_well(child, &log);
    assert_eq!(place.dead().len(), 0);
    assert_eq!(place.arrived(), numbers(20_000));
}

#[test]
fn a_state_on_a_full_disk_is_told_at_the_start() {
    let place = Place::new(numbers(10).as_bytes());
    let disk = Mount::new(place.path("state"), "size=2m");
    let ballast = fill(&disk.0, 0);
    let error = place.run(&[], 2);
    assert!(error.contains("is full: make room") || error.contains("No space left"), "{error}");
    fs::remove_file(ballast).unwrap();
    place.run(&[], 0);
    assert_eq!(place.arrived(), numbers(10));
}

#[test]
fn an_output_on_a_disk_that_fills_waits_until_there_is_room() {
    let place = Place::new(numbers(20_000).as_bytes());
    let disk = Mount::new(place.path("disk"), "size=2m");
    let ballast = fill(&disk.0, 50_000);
    let log = place.path("log");
    let child = start(place.command(&["--set", "queues.out.path=disk/out.jsonl"]), &log);
    eventually("it says that the disk is full", || log_says(&log, "the disk is full"));
    fs::remove_file(ballast).unwrap();
    ends_well(child, &log);
    let out = fs::read_to_string(place.path("disk/out.jsonl")).unwrap();
    assert_eq!(in_order(&out), numbers(20_000));
}

#[test]
fn a_state_on_a_read_only_disk_is_told() {
    let place = Place::new(numbers(100).as_bytes());
    let disk = Mount::new(place.path("state"), "ro");
    let error = place.run(&[], 2);
    assert!(error.contains("Read-only file system"), "{error}");
    disk.remount("rw");
    said(&place.command(&["--stage", "check"]).output().unwrap(), &[0]);
    disk.remount("ro");
    let error = place.run(&[], 2);
    assert!(error.contains("cannot be written: Read-only file system"), "{error}");
    disk.remount("rw");
    place.run(&[], 0);
    assert_eq!(place.arrived(), numbers(100));
}

#[test]
fn an_output_on_a_read_only_disk_is_told() {
    let place = Place::new(numbers(100).as_bytes());
    let disk = Mount::new(place.path("disk"), "ro");
    let set = ["queues.out.path=disk/out.jsonl"];
    let error = place.run(&set, 4);
    assert!(error.contains("disk/out.jsonl") && error.contains("Read-only"), "{error}");
    disk.remount("rw");
    place.run(&set, 0);
    let out = fs::read_to_string(place.path("disk/out.jsonl")).unwrap();
    assert_eq!(in_order(&out), numbers(100));
}

/// Runs a place as a user who may do little.
fn as_nobody(place: &Place) -> Command {
    // The command may lie where that user cannot look.
    let brigade = place.path("brigade");
    if !brigade.exists() {
        fs::copy(env!("CARGO_BIN_EXE_brigade"), &brigade).unwrap();
    }
    let mut command = Command::new("timeout");
    command.args(["--foreground", "180", "setpriv", "--reuid=65534", "--regid=65534"]);
    command.args(["--clear-groups", "--"]).arg(brigade).args(["run", "p.yaml", "--until-idle"]);
    command.current_dir(place.path("")).env_remove("RUST_LOG");
    command
}

fn chmod(mode: &str, path: &Path) {
    assert!(Command::new("chmod").arg(mode).arg(path).status().unwrap().success());
}

#[test]
fn files_that_may_not_be_read_or_written_are_told() {
    let place = Place::new(numbers(100).as_bytes());
    chmod("777", &place.path(""));
    let refused = |codes: &[i32], words: &str| {
        let error = said(&as_nobody(&place).output().unwrap(), codes);
        assert!(error.contains(words), "{error}");
    };
    chmod("000", &place.path("p.yaml"));
    refused(&[2], "it cannot be read: Permission denied");
    chmod("644", &place.path("p.yaml"));
    chmod("000", &place.path("in.jsonl"));
    refused(&[4], "cannot read in.jsonl: Permission denied");
    chmod("644", &place.path("in.jsonl"));
    fs::write(place.path("out.jsonl"), "").unwrap();
    refused(&[4], "out.jsonl: Permission denied");
    fs::remove_file(place.path("out.jsonl")).unwrap();
    chmod("555", &place.path("state"));
    chmod("444", &place.path("state/brigade.db"));
    refused(&[2], "Permission denied");
    chmod("755", &place.path("state"));
    refused(&[2], "cannot be written: Permission denied");
    chmod("644", &place.path("state/brigade.db"));
    // SQLite gave what it made meanwhile the permissions of the database.
    refused(&[2], "brigade.db-shm cannot be written: Permission denied");
    for beside in ["brigade.db-wal", "brigade.db-shm"].map(|name| place.path("state").join(name)) {
        if beside.exists() {
            chmod("644", &beside);
        }
    }
    said(&as_nobody(&place).output().unwrap(), &[0]);
    assert_eq!(place.arrived(), numbers(100));
}

#[test]
fn what_one_user_began_another_goes_on_with() {
    let place = Place::new(numbers(100).as_bytes());
    place.run(&[], 0);
    fs::write(place.path("in.jsonl"), numbers(200)).unwrap();
    chmod("777", &place.path(""));
    for name in ["state", "state/holders"] {
        chmod("777", &place.path(name));
    }
    for name in ["state/brigade.db", "out.jsonl"] {
        chmod("666", &place.path(name));
    }
    said(&as_nobody(&place).output().unwrap(), &[0]);
    assert_eq!(place.arrived(), numbers(200));
}

const DELAYED: &str = "
pipeline: clock
state: state
queues:
  in: { type: file, path: in.jsonl }
  later: { type: embedded }
  out: { type: file, path: out.jsonl }
stages:
  wait: { component: { delay: { for: 3s } }, input: in, outputs: [later] }
  copy: { component: pass, input: later, outputs: [out], throttle: { rate: 200, burst: 20 } }
";

/// A process whose clock can be set.
struct Clock(PathBuf);

impl Clock {
    fn new(place: &Place) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(place.path("clock.so")).arg(source);
        assert!(compiler.status().unwrap().success(), "a C compiler is needed");
        let clock = Self(place.path("clock"));
        clock.set(0);
        clock
    }

    /// By so many seconds.
    fn set(&self, seconds: i64) {
        fs::write(&self.0, seconds.to_string()).unwrap();
    }

    fn of(&self, command: &mut Command) {
        command.env("LD_PRELOAD", self.0.with_file_name("clock.so")).env("CLOCK_FILE", &self.0);
    }
}

fn out_lines(place: &Place) -> usize {
    fs::read_to_string(place.path("out.jsonl")).map_or(0, |out| out.lines().count())
}

#[test]
fn a_clock_that_is_set_back_an_hour_and_forth_again_loses_nothing() {
    let place = Place::new(numbers(1000).as_bytes());
    let clock = Clock::new(&place);
    let log = place.path("log");
    let mut command = place.command(&["--set", "stages.copy.throttle={rate: 500, burst: 50}"]);
    clock.of(&mut command);
    let child = start(command, &log);
    eventually("something came out", || out_lines(&place) > 0);
    clock.set(-3600);
    eventually("half came out", || out_lines(&place) > 500);
    clock.set(3600);
    ends_well(child, &log);
    assert_eq!(place.arrived(), numbers(1000));
}

/// Delays go by the wall clock, as dates do: set back, they wait until it is there again.
#[test]
fn delays_go_by_the_clock_and_notice_when_it_is_set() {
    let place = Place::new(numbers(1000).as_bytes());
    fs::write(place.path("p.yaml"), DELAYED).unwrap();
    let clock = Clock::new(&place);
    let log = place.path("log");
    let mut command = place.command(&[]);
    clock.of(&mut command);
    let child = start(command, &log);
    eventually("something came out", || out_lines(&place) > 0);
    clock.set(-3600);
    eventually("it is seen that nothing else is due", || {
        let before = out_lines(&place);
        let looked = std::time::Instant::now();
        eventually("a while", || looked.elapsed().as_secs() >= 1);
        out_lines(&place) == before
    });
    clock.set(1);
    ends_well(child, &log);
    assert_eq!(place.arrived(), numbers(1000));
}
