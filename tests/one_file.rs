//! The real command on files that are somebody else's too, and on what is no file.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

#[path = "common/place.rs"]
mod place;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;

use place::{Place, eventually, numbers, start};

fn append(place: &Place, name: &str, text: &str) {
    let mut file = fs::File::options().append(true).open(place.path(name)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

#[test]
fn two_states_that_write_one_file_destroy_nothing() {
    let place = Place::new(numbers(10).as_bytes());
    place.run(&[], 0);
    let run =
        |state: &str| place.command(&["--state", state]).output().unwrap().status.code().unwrap();
    assert_eq!(run("other"), 0);
    let both = place.out();
    assert_eq!(both.lines().count(), 20);
    append(&place, "in.jsonl", "{\"n\":10}\n");
    let error = place.run(&[], 4);
    for words in ["out.jsonl has 160 bytes", "only the first 80", "a file of its own"] {
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(place.out(), both);
    // Away with it, as it says: nothing was lost meanwhile.
    fs::rename(place.path("out.jsonl"), place.path("both.jsonl")).unwrap();
    place.run(&[], 0);
    assert_eq!(place.out(), "{\"n\":10}\n");
}

#[test]
fn what_a_killed_process_left_is_cut_off_with_a_warning() {
    let place = Place::new(numbers(100_000).as_bytes());
    let log = place.path("log");
    // It has work for more than a minute.
    let slow = ["--set", "stages.copy.throttle={rate: 1000, burst: 1000}"];
    let mut child = start(place.command(&slow), &log);
    eventually("something came out", || {
        fs::metadata(place.path("out.jsonl")).is_ok_and(|out| out.len() > 0)
    });
    // `timeout` passes it on to the command, but not a kill.
    let pid = child.id().to_string();
    let killed = Command::new("pkill").args(["-KILL", "-P", &pid]).status().unwrap();
    assert!(killed.success());
    child.wait().unwrap();
    append(&place, "out.jsonl", "{\"n\":");
    let told = place.run(&[], 0);
    assert!(told.contains("cutting off") && told.contains("bytes="), "{told}");
    assert_eq!(place.arrived(), numbers(100_000));
    // It ended well, so what comes now is somebody else's.
    append(&place, "out.jsonl", "more\n");
    append(&place, "in.jsonl", "{\"n\":0}\n");
    let error = place.run(&[], 4);
    assert!(error.contains("somebody else has written the rest"), "{error}");
    assert!(place.out().ends_with("more\n"));
}

#[test]
fn two_queues_that_lead_to_one_file_are_refused_at_the_start() {
    let place = Place::new(b"{\"n\":1}\nbroken\n");
    symlink("out.jsonl", place.path("dead.jsonl")).unwrap();
    let text = fs::read_to_string(place.path("p.yaml")).unwrap();
    let text = text
        .replace("outputs: [kept]", "outputs: [out]")
        .replace("  copy: { component: pass, input: kept, outputs: [out] }\n", "");
    fs::write(place.path("p.yaml"), text).unwrap();
    let error = place.run(&[], 4);
    assert!(error.contains("both write") && error.contains("give each a file"), "{error}");
    place.run(&["queues.dead.path=letters.jsonl"], 3);
    assert_eq!(place.out(), "{\"n\":1}\n");
}

/// Runs it in two processes, which have nothing in common but the state; each number comes once, also when
/// the second takes over.
fn one_of_two_processes_reads(input: &str) {
    let place = Place::new(numbers(10).as_bytes());
    // On one lane, and with the time to finish what it has in hand: so what is out are the first ones.
    let set = ["--set", input, "--set", "lanes=1", "--set", "stop_deadline=60s"];
    let run = |name: &str| {
        fs::create_dir(place.path(name)).unwrap();
        // A test that fails leaves none behind.
        let mut command = Command::new("timeout");
        command.args(["180", env!("CARGO_BIN_EXE_brigade"), "run", "p.yaml"]).args(set);
        command.current_dir(place.path("")).env("TMPDIR", place.path(name)).env_remove("RUST_LOG");
        start(command, &place.path(&format!("{name}.log")))
    };
    let out = || fs::read_to_string(place.path("out.jsonl")).unwrap_or_default();
    let mut first = run("first");
    eventually("the first one works", || out().lines().count() >= 10);
    let mut second = run("second");
    eventually("the second one waits", || {
        let log = fs::read_to_string(place.path("second.log")).unwrap();
        log.contains("is being read by another process")
    });
    assert!(Command::new("kill").arg(first.id().to_string()).status().unwrap().success());
    first.wait().unwrap();
    let before = out().lines().count();
    append(&place, "in.jsonl", "{\"n\":10}\n");
    eventually("the second one takes over", || out().lines().count() > before);
    assert!(Command::new("kill").arg(second.id().to_string()).status().unwrap().success());
    second.wait().unwrap();
    let count = u32::try_from(out().lines().count()).unwrap();
    assert_eq!(place.arrived(), numbers(count));
}

#[test]
fn a_file_is_read_by_one_of_two_processes() {
    one_of_two_processes_reads("queues.in={type: file, path: in.jsonl, follow: true}");
}

#[test]
fn a_generator_is_read_by_one_of_two_processes() {
    let queue = "{type: generator, rate: 100, template: {n: '{{seq}}'}}";
    one_of_two_processes_reads(&format!("queues.in={queue}"));
}

/// Its mark of before says nothing of what has come since; who waits for the position looks itself.
#[test]
fn a_stage_that_has_finished_before_does_not_end_before_it_has_begun() {
    let place = Place::new(numbers(5).as_bytes());
    let check = ["--stage", "check"];
    // The other stage has not run: it is still one run of the pipeline's.
    assert!(place.command(&check).status().unwrap().success());
    let mut reading = Command::new(env!("CARGO_BIN_EXE_brigade"));
    reading.current_dir(place.path("")).args(["run", "p.yaml", "--set", "log.stats=50ms"]);
    reading.args(check).env_remove("RUST_LOG");
    let (one, two) = (place.path("one"), place.path("two"));
    let mut reading = start(reading, &one);
    let stats = || fs::read_to_string(&one).unwrap().matches("STATS").count();
    eventually("it has read to the end", || stats() > 3);
    let mut waiting = start(place.command(&check), &two);
    eventually("it waits", || fs::read_to_string(&two).unwrap().contains("another process"));
    append(&place, "in.jsonl", "{\"n\":5}\n");
    assert!(Command::new("kill").arg(reading.id().to_string()).status().unwrap().success());
    reading.wait().unwrap();
    assert!(waiting.wait().unwrap().success());
    let received = |log| {
        let told = fs::read_to_string(log).unwrap();
        let count = told.split_once("the books close: ").and_then(|(_, rest)| rest.split_once(' '));
        count.unwrap_or_else(|| panic!("{told}")).0.parse::<u64>().unwrap()
    };
    // By the second, but where the first got no core to read to the end before there was more.
    assert_eq!(received(&one) + received(&two), 1);
}

#[test]
fn what_is_no_file_is_told_at_once() {
    let place = Place::new(numbers(3).as_bytes());
    assert!(Command::new("mkfifo").arg(place.path("fifo")).status().unwrap().success());
    for path in ["/dev/null", "fifo"] {
        let error = place.run(&[&format!("queues.out.path={path}")], 4);
        assert!(error.contains("is not a regular file"), "{error}");
        assert!(error.contains("`-` for standard output"), "{error}");
    }
    for path in ["/dev/null", "fifo"] {
        let error = place.run(&[&format!("queues.in.path={path}")], 4);
        assert!(
            error.contains("queue `in`") && error.contains("`-` for standard input"),
            "{error}"
        );
    }
    let mut check = Command::new(env!("CARGO_BIN_EXE_brigade"));
    check.current_dir(place.path("")).args(["check", "--connect", "p.yaml"]);
    let output = check.args(["--set", "queues.in.path=fifo"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("is not a regular file"));
    place.run(&[], 0);
    assert_eq!(place.arrived(), numbers(3));
}
