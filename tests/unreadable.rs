//! Files and directories that may not be read: an error, or with `follow` told, and read when they may be. And more
//! files than a process may open. Root may read everything, so the command is run by another user where the tests are root's.
#![allow(clippy::unwrap_used, reason = "a test that stops says where")]

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// How long anything may take: longer is a hang.
const PATIENCE: Duration = Duration::from_secs(180);
/// The user to whom nothing belongs.
const NOBODY: u32 = 65534;

struct Place {
    directory: tempfile::TempDir,
    command: PathBuf,
}

impl Place {
    /// A pipeline from this path to `out.jsonl`.
    fn new(path: &str, follow: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let command = directory.path().join("brigade");
        let built = Path::new(env!("CARGO_BIN_EXE_brigade"));
        // Where it was built may be closed to others.
        fs::hard_link(built, &command).or_else(|_| fs::copy(built, &command).map(drop)).unwrap();
        fs::create_dir(directory.path().join("work")).unwrap();
        let place = Self { directory, command };
        fs::set_permissions(place.directory.path(), Permissions::from_mode(0o755)).unwrap();
        place.allow("", true);
        let yaml = format!(
            "
pipeline: closed
state: state
queues:
  in: {{ type: file, path: '{path}', follow: {follow} }}
  out: {{ type: file, path: out.jsonl }}
stages:
  pass: {{ component: pass, input: in, outputs: [out] }}
"
        );
        place.write("p.yaml", &yaml);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("work").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// Lets everybody do everything with a file or a directory, or nobody anything.
    fn allow(&self, name: &str, all: bool) {
        let mode = if all { 0o777 } else { 0 };
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    fn start(&self, arguments: &[&str]) -> Run<'_> {
        self.begin("true", &[&["run", "p.yaml"], arguments].concat())
    }

    /// Starts the command by a shell that does this before, by the user to whom nothing belongs.
    fn begin(&self, before: &str, arguments: &[&str]) -> Run<'_> {
        let told = File::create(self.directory.path().join("told")).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{before}; exec \"$0\" \"$@\"")]);
        command.arg(&self.command).args(arguments);
        command.current_dir(self.path("")).env_remove("RUST_LOG").stderr(told);
        if fs::metadata(self.directory.path()).unwrap().uid() == 0 {
            command.uid(NOBODY).gid(NOBODY);
        }
        Run { place: self, child: command.spawn().unwrap() }
    }

    /// The lines that were put out.
    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("out.jsonl")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// The command, which is killed at the end of its test.
struct Run<'p> {
    place: &'p Place,
    child: Child,
}

impl Run<'_> {
    fn told(&self) -> String {
        fs::read_to_string(self.place.directory.path().join("told")).unwrap()
    }

    fn wait_until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < PATIENCE, "never came: {what}\n{}", self.told());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Waits until it is told that this cannot be read.
    fn wait_for_told(&mut self, name: &str) {
        let tells = |line: &str| line.contains(name) && line.contains("Permission denied");
        self.wait_until(name, |run| run.told().lines().any(tells));
    }

    fn wait_for_lines(&mut self, lines: &[&str]) {
        self.wait_until("the lines", |run| run.place.lines().len() >= lines.len());
        assert_eq!(self.place.lines(), lines);
    }

    /// Waits for its end, after having asked for it if it does not come by itself.
    fn end(mut self, ask: bool) -> (Option<i32>, String) {
        if ask {
            let process = self.child.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
        }
        self.wait_until("its end", |run| run.child.try_wait().unwrap().is_some());
        (self.child.wait().unwrap().code(), self.told())
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_a_glob_may_not_look_at_is_an_error() {
    for path in ["in/*/data.jsonl", "in/*/*.jsonl", "in/b/*.jsonl"] {
        let place = Place::new(path, false);
        for name in ["in/a/data.jsonl", "in/b/data.jsonl"] {
            place.write(name, "1\n");
        }
        place.allow("in/b", false);
        let (code, told) = place.start(&["--until-idle"]).end(false);
        assert_eq!(code, Some(4), "{path}: {told}");
        let of = |line: &str| line.contains("queue `in`") && line.contains("in/b");
        assert!(told.lines().any(|line| of(line) && line.contains("Permission denied")), "{told}");
        place.allow("in/b", true);
    }
}

#[test]
fn what_may_not_be_read_or_written_is_not_told_to_be_reached() {
    for (path, closed, queue) in [
        ("in/a.jsonl", "in/a.jsonl", "in"),
        ("in/*/*.jsonl", "in/b", "in"),
        ("in/a.jsonl", "out.jsonl", "out"),
        ("in/a.jsonl", "", "out"),
    ] {
        let place = Place::new(path, false);
        for name in ["in/a.jsonl", "in/b/a.jsonl", "out.jsonl"] {
            place.write(name, "1\n");
        }
        place.allow("out.jsonl", true);
        let check = ["check", "--connect", "p.yaml"];
        let (code, told) = place.begin("true", &check).end(false);
        assert_eq!(code, Some(0), "{told}");
        match closed {
            // A directory in which nothing can be made.
            "" => {
                fs::remove_file(place.path("out.jsonl")).unwrap();
                fs::set_permissions(place.path(""), Permissions::from_mode(0o555)).unwrap();
            }
            closed => place.allow(closed, false),
        }
        let (code, told) = place.begin("true", &check).end(false);
        assert_eq!(code, Some(2), "{path}: {told}");
        let of = |line: &str| line.contains(&format!("queue `{queue}`"));
        assert!(told.lines().any(|line| of(line) && line.contains("ermission denied")), "{told}");
        place.allow(closed, true);
    }
}

#[test]
fn what_a_followed_glob_may_not_read_is_told_and_read_when_it_may_be() {
    let place = Place::new("in/*", true);
    place.write("in/a", "1\n");
    place.write("in/b", "2\n");
    place.allow("in/b", false);
    let mut run = place.start(&[]);
    run.wait_for_told("in/b");
    run.wait_for_lines(&["1"]);
    place.allow("in/b", true);
    run.wait_for_lines(&["1", "2"]);
    assert_eq!(run.end(true).0, Some(0));
}

/// As a rotation makes the new one before it says whose it is.
#[test]
fn a_new_file_of_the_name_that_may_not_be_read_yet_is_waited_for() {
    let place = Place::new("log", true);
    place.write("log", "1\n");
    let mut run = place.start(&[]);
    run.wait_for_lines(&["1"]);
    place.rename("log", "log.1");
    place.write("new", "2\n");
    place.allow("new", false);
    place.rename("new", "log");
    run.wait_for_told("log");
    place.allow("log", true);
    run.wait_for_lines(&["1", "2"]);
    assert_eq!(run.end(true).0, Some(0));
}

#[test]
fn what_comes_after_a_rotated_file_that_may_not_be_read_waits_for_it() {
    let place = Place::new("log", true);
    place.write("log", "1\n");
    let mut run = place.start(&[]);
    run.wait_for_lines(&["1"]);
    assert_eq!(run.end(true).0, Some(0));
    place.rename("log", "log.2");
    place.write("log.1", "2\n");
    place.allow("log.1", false);
    place.write("log", "3\n");
    let mut run = place.start(&[]);
    run.wait_for_told("log.1");
    assert_eq!(place.lines(), ["1"]);
    place.allow("log.1", true);
    run.wait_for_lines(&["1", "2", "3"]);
    assert_eq!(run.end(true).0, Some(0));
}

/// As an hourly rotation leaves them in some weeks.
#[test]
fn a_rotation_is_followed_beside_more_files_than_may_be_open() {
    let place = Place::new("log", true);
    for number in 2..300 {
        place.write(&format!("log.{number}"), "0\n");
    }
    place.write("log", "1\n");
    let mut run = place.begin("ulimit -n 150", &["run", "p.yaml"]);
    run.wait_for_lines(&["1"]);
    place.rename("log", "log.1");
    place.write("log", "2\n");
    run.wait_for_lines(&["1", "2"]);
    assert_eq!(run.end(true).0, Some(0));
}

/// As a name is in the middle of being made anew.
#[test]
fn a_directory_of_the_name_is_told_and_waited_for() {
    let place = Place::new("log", true);
    place.write("log", "1\n");
    let mut run = place.start(&[]);
    run.wait_for_lines(&["1"]);
    place.rename("log", "log.1");
    fs::create_dir(place.path("log")).unwrap();
    run.wait_until("the directory", |run| run.told().contains("is a directory"));
    fs::remove_dir(place.path("log")).unwrap();
    place.write("log", "2\n");
    run.wait_for_lines(&["1", "2"]);
    assert_eq!(run.end(true).0, Some(0));
}

/// As a rotation makes it before it says whose it is.
#[test]
fn a_new_output_that_may_not_be_written_yet_is_waited_for() {
    let place = Place::new("log", true);
    place.write("log", "1\n");
    let mut run = place.start(&[]);
    run.wait_for_lines(&["1"]);
    place.rename("out.jsonl", "out.jsonl.1");
    place.write("out.jsonl", "");
    place.allow("out.jsonl", false);
    File::options().append(true).open(place.path("log")).unwrap().write_all(b"2\n").unwrap();
    run.wait_for_told("out.jsonl: Permission denied");
    place.allow("out.jsonl", true);
    run.wait_for_lines(&["2"]);
    assert_eq!(run.end(true).0, Some(0));
}

/// As a rotation does that gives the old file to somebody else; its writer was killed before, perhaps in the
/// middle of a line.
#[test]
fn an_output_that_was_renamed_and_may_not_be_written_any_more_is_let_be() {
    for (closed, torn) in [(0o444, ""), (0o444, "{\"to"), (0, ""), (0, "{\"to")] {
        let place = Place::new("log", true);
        place.write("log", "1\n");
        let mut run = place.start(&[]);
        run.wait_for_lines(&["1"]);
        drop(run);
        place.rename("out.jsonl", "out.jsonl.1");
        let old = place.path("out.jsonl.1");
        File::options().append(true).open(&old).unwrap().write_all(torn.as_bytes()).unwrap();
        fs::set_permissions(&old, Permissions::from_mode(closed)).unwrap();
        place.write("log", "1\n2\n");
        let mut run = place.start(&[]);
        run.wait_until("the second line", |run| run.place.lines().iter().any(|line| line == "2"));
        // It was killed when its line was there, which may have been before that was committed.
        let lines = place.lines();
        assert!(lines == ["2"] || lines == ["1", "2"], "{lines:?}");
        let (code, told) = run.end(true);
        assert_eq!(code, Some(0), "{told}");
        assert!(torn.is_empty() || told.contains("what was not committed stays in it"), "{told}");
        fs::set_permissions(&old, Permissions::from_mode(0o644)).unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), format!("1\n{torn}"));
    }
}
