//! The real command on dead letters: whose they are, several commands at once, and while they come; and what it puts
//! on queues.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Two stages that give up everything, on one queue.
const YAML: &str = "
pipeline: two
state: state
queues:
  for_a: { type: embedded }
  for_b: { type: embedded }
  dead: { type: embedded }
  out: { type: file, path: out.jsonl }
stages:
  a: { component: { map: error }, input: for_a, outputs: [out], dead_letter: dead }
  b: { component: { map: error }, input: for_b, outputs: [out], dead_letter: dead }
";

/// A directory with the pipeline.
struct Place(tempfile::TempDir);

impl Place {
    /// So many messages were given up by each stage.
    fn new(a: usize, b: usize) -> Self {
        Self::of(YAML, a, b)
    }

    fn of(yaml: &str, a: usize, b: usize) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.0.path().join("p.yaml"), yaml).unwrap();
        place.put("for_a", &"{}\n".repeat(a));
        place.put("for_b", &"{}\n".repeat(b));
        place.run(&["run", "--until-idle"], 3);
        place
    }

    /// `brigade SUB COMMAND p.yaml ...`, for three minutes at most.
    fn command(&self, arguments: &[&str]) -> Command {
        let subs = if arguments[0] == "run" { 1 } else { 2 };
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "180", env!("CARGO_BIN_EXE_brigade")]);
        command.args(&arguments[..subs]).arg("p.yaml").args(&arguments[subs..]);
        command.current_dir(self.0.path()).env_remove("RUST_LOG");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end, which has to have this exit code; answers with what it printed.
    fn run(&self, arguments: &[&str], code: i32) -> String {
        ended(&self.command(arguments).output().unwrap(), code)
    }

    fn put(&self, queue: &str, lines: &str) {
        let mut put =
            self.command(&["queues", "put", queue]).stdin(Stdio::piped()).spawn().unwrap();
        put.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        ended(&put.wait_with_output().unwrap(), 0);
    }

    /// The numbers of the dead letters of a stage, or of all.
    fn listed(&self, stage: Option<&str>) -> Vec<String> {
        let mut arguments = vec!["dead-letters", "list", "--limit", "1000"];
        arguments.extend(stage.iter().flat_map(|stage| ["--stage", *stage]));
        let list = self.run(&arguments, 0);
        let rows = list.lines().filter(|line| line.contains(" dead "));
        rows.map(|row| row.split_whitespace().next().unwrap().to_owned()).collect()
    }

    /// How many wait to be handled again by a stage.
    fn sent_back(&self, stage: &str) -> usize {
        let queue = format!("~redrive.{stage}");
        self.run(&["queues", "peek", &queue, "--limit", "1000"], 0).lines().count()
    }
}

/// What a command printed that ended so.
fn ended(output: &Output, code: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let both = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{both}");
    both
}

#[test]
fn of_a_queue_of_several_stages_only_those_of_the_stage_are_meant() {
    let place = Place::new(3, 2);
    assert_eq!(place.listed(None).len(), 5);
    let (of_a, of_b) = (place.listed(Some("a")), place.listed(Some("b")));
    assert_eq!((of_a.len(), of_b.len()), (3, 2));
    for command in ["show", "delete", "redrive"] {
        let told = place.run(&["dead-letters", command, "--stage", "a", &of_b[0]], 2);
        assert!(told.contains(&format!("no dead letter {} of stage `a`", of_b[0])), "{told}");
    }
    place.run(&["dead-letters", "delete", "--stage", "b", &of_b[0]], 0);
    let told = place.run(&["dead-letters", "redrive", "--stage", "a"], 0);
    assert!(told.contains("3 dead letters sent back"), "{told}");
    assert_eq!((place.sent_back("a"), place.sent_back("b")), (3, 0));
    assert_eq!(place.listed(None), of_b[1..]);
}

/// Each of the stages that read the queue has a letter of its own.
#[test]
fn of_a_queue_that_several_stages_read_each_letter_goes_back_once() {
    let place = Place(tempfile::tempdir().unwrap());
    let readers =
        "  alert: { component: log, input: dead }\n  archive: { component: log, input: dead }\n";
    fs::write(place.0.path().join("p.yaml"), [YAML, readers].concat()).unwrap();
    place.put("for_a", &"{}\n".repeat(3));
    place.put("for_b", "{}\n");
    place.run(&["run", "--until-idle", "--stage", "a", "--stage", "b"], 3);
    assert_eq!(place.listed(None).len(), 8);
    let told = place.run(&["dead-letters", "redrive"], 0);
    assert!(told.contains("4 dead letters sent back"), "{told}");
    assert_eq!((place.sent_back("a"), place.sent_back("b")), (3, 1));
    assert_eq!(place.listed(None), [""; 0]);
}

#[test]
fn those_of_another_pipeline_stay_where_they_are() {
    let place = Place::new(2, 0);
    let number = &place.listed(None)[0];
    let letter = place.run(&["dead-letters", "show", number], 0);
    let letter: serde_json::Value = serde_json::from_str(&letter).unwrap();
    // On a server a queue may have the letters of several pipelines.
    let mut other = letter;
    other["pipeline"] = "other".into();
    place.put("dead", &format!("{other}\n"));
    assert_eq!(place.listed(None).len(), 2);
    let told = place.run(&["dead-letters", "redrive"], 0);
    assert!(told.contains("2 dead letters sent back"), "{told}");
    let left = place.run(&["queues", "peek", "dead"], 0);
    assert!(left.lines().count() == 1 && left.contains("\"pipeline\":\"other\""), "{left}");
}

#[test]
fn one_that_is_named_twice_goes_back_once() {
    let place = Place::new(2, 0);
    let number = &place.listed(None)[0];
    let told = place.run(&["dead-letters", "redrive", number, number], 0);
    assert!(told.contains("1 dead letter sent back"), "{told}");
    assert_eq!(place.sent_back("a"), 1);
}

#[test]
fn two_commands_at_once_send_each_back_once() {
    const LETTERS: usize = 200;
    let place = Place::new(LETTERS, 0);
    let redrive = || place.command(&["dead-letters", "redrive"]).spawn().unwrap();
    let both = [redrive(), redrive()];
    for child in both {
        ended(&child.wait_with_output().unwrap(), 0);
    }
    assert_eq!(place.sent_back("a"), LETTERS);
    assert_eq!(place.listed(None).len(), 0);
}

#[test]
fn what_is_given_up_again_meanwhile_is_left_for_the_next_time() {
    const LETTERS: usize = 100;
    let place = Place::new(LETTERS, 0);
    let mut running = place.command(&["run"]).stderr(Stdio::null()).spawn().unwrap();
    let told = place.run(&["dead-letters", "redrive"], 0);
    assert!(told.contains("100 dead letters sent back"), "{told}");
    let pid = running.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    running.wait().unwrap();
    // What it has not done.
    place.command(&["run", "--until-idle"]).output().unwrap();
    assert_eq!(place.listed(None).len(), LETTERS);
}

#[test]
fn of_dead_letters_in_a_file_it_is_told_how_they_are_sent_back() {
    let in_file = "dead: { type: file, path: dead.jsonl }";
    let place = Place::of(&YAML.replace("dead: { type: embedded }", in_file), 2, 1);
    for command in ["list", "redrive"] {
        let told = place.run(&["dead-letters", command], 2);
        assert!(told.contains("queue `dead` of type file cannot be looked into"), "{told}");
        assert!(told.contains("queues put") && !told.contains("0 dead letters"), "{told}");
    }
    // As it says.
    fs::write(place.0.path().join("p.yaml"), YAML).unwrap();
    place.put("dead", &fs::read_to_string(place.0.path().join("dead.jsonl")).unwrap());
    let told = place.run(&["dead-letters", "redrive"], 0);
    assert!(told.contains("3 dead letters sent back"), "{told}");
    assert_eq!((place.sent_back("a"), place.sent_back("b")), (2, 1));
}

/// The letter of each handing-back is another: a queue that stores none twice would know it.
#[test]
fn what_is_given_up_again_is_kept_again_where_nothing_is_stored_twice() {
    let dedup = "dead: { type: embedded, dedup: { for: 1h, max: 1000 } }";
    let place = Place::of(&YAML.replace("dead: { type: embedded }", dedup), 2, 1);
    for _ in 0..3 {
        assert_eq!(place.listed(None).len(), 3);
        let told = place.run(&["dead-letters", "redrive"], 0);
        assert!(told.contains("3 dead letters sent back"), "{told}");
        place.run(&["run", "--until-idle"], 3);
    }
    assert_eq!(place.listed(None).len(), 3);
}

/// Stages whose dead letters are in stores of their own, which count each from 1.
const APART: &str = "
pipeline: two
state: state
queues:
  for_a: { type: embedded, path: work }
  for_b: { type: embedded, path: work }
  dead: { type: embedded, path: other }
  out: { type: file, path: out.jsonl }
stages:
  a: { component: { map: error }, input: for_a, outputs: [out] }
  b: { component: { map: error }, input: for_b, outputs: [out], dead_letter: dead }
";

#[test]
fn a_number_that_is_in_several_queues_is_nobodys() {
    let place = Place::of(APART, 1, 1);
    let numbers = || {
        let list = place.run(&["dead-letters", "list"], 0);
        list.lines().filter(|row| row.trim_start().starts_with("1 ")).count()
    };
    assert_eq!(numbers(), 2);
    for command in ["show", "delete", "redrive"] {
        let told = place.run(&["dead-letters", command, "1"], 2);
        let said = "dead letter 1 is in several queues, `~dead.a` and `dead`";
        assert!(told.contains(said) && told.contains("--stage"), "{command}: {told}");
    }
    assert_eq!(numbers(), 2, "nothing was done");
    let shown = place.run(&["dead-letters", "show", "--stage", "b", "1"], 0);
    assert!(shown.contains("\"stage\": \"b\""), "{shown}");
    let told = place.run(&["dead-letters", "delete", "--stage", "b", "1"], 0);
    assert!(told.contains("1 dead letter deleted"), "{told}");
    // Now it is only in one.
    let told = place.run(&["dead-letters", "redrive", "1"], 0);
    assert!(told.contains("1 dead letter sent back"), "{told}");
    assert_eq!((numbers(), place.sent_back("a")), (0, 1));
}

#[test]
fn a_number_that_no_queue_can_have_is_the_number_of_no_dead_letter() {
    let place = Place::new(1, 0);
    for command in ["show", "delete", "redrive"] {
        let told = place.run(&["dead-letters", command, "18446744073709551615"], 2);
        assert!(told.contains("no dead letter 18446744073709551615"), "{command}: {told}");
    }
    let all = place.run(&["queues", "peek", "dead", "--limit", "18446744073709551615"], 0);
    assert_eq!(all.lines().count(), 1, "{all}");
    let told = place.run(&["queues", "release", "dead", "9223372036854775808"], 2);
    assert!(told.contains("no message is parked at position 9223372036854775808"), "{told}");
}

#[test]
fn one_that_is_named_and_stays_is_an_error_that_says_why() {
    let place = Place::new(1, 1);
    let without_b = YAML.split_inclusive('\n').filter(|line| !line.starts_with("  b:"));
    fs::write(place.0.path().join("p.yaml"), without_b.collect::<String>()).unwrap();
    let of_a = &place.listed(Some("a"))[0];
    let all = place.listed(None);
    let of_b = all.iter().find(|number| *number != of_a).unwrap();
    let told = place.run(&["dead-letters", "redrive", of_b], 2);
    assert!(told.contains(&format!("{of_b} stays: there is no stage `b`")), "{told}");
    assert!(told.contains("error: nothing was sent back"), "{told}");
    assert_eq!(place.listed(None), all);
    // What can go goes.
    let told = place.run(&["dead-letters", "redrive", of_a, of_b], 0);
    assert!(told.contains("stays: ") && told.contains("1 dead letter sent back"), "{told}");
    let told = place.run(&["dead-letters", "redrive"], 0);
    assert!(told.contains("stays: ") && told.contains("0 dead letters sent back"), "{told}");
}

#[test]
fn nothing_is_put_on_a_queue_of_a_stage_that_is_not_there() {
    let place = Place::new(1, 0);
    for queue in ["~redrive.typo", "~dead.a", "~typo"] {
        let told = place.run(&["queues", "put", queue], 2);
        assert!(told.contains(&format!("no queue `{queue}`")), "{told}");
        assert!(told.contains("there are: ~redrive.a, ~redrive.b"), "{told}");
    }
    place.put("~redrive.a", "{}\n");
    assert_eq!(place.sent_back("a"), 1);
    // What the state keeps for a stage that is there no more can still be looked into.
    fs::write(place.0.path().join("p.yaml"), YAML.replace("  a: {", "  c: {")).unwrap();
    assert_eq!(place.sent_back("a"), 1);
    let told = place.run(&["queues", "peek", "~redrive.d"], 2);
    assert!(told.contains("~redrive.c, ~redrive.b, ~redrive.a"), "{told}");
}

/// A queue whose messages have a number as their `id`, and their time in `at`.
const HELD: &str = "
pipeline: held
state: state
queues:
  in:
    type: file
    path: in.jsonl
    event_time: at
    schema: { properties: { id: { type: integer } } }
  out: { type: file, path: out.jsonl }
stages:
  check: { component: pass, input: in, outputs: [out] }
";

/// What was redriven passes by its queue, but not by what the queue asks for.
#[test]
fn what_is_redriven_is_held_against_the_schema_and_event_time_of_its_queue() {
    let place = Place(tempfile::tempdir().unwrap());
    let write = |name: &str, text: &str| fs::write(place.0.path().join(name), text).unwrap();
    write("p.yaml", HELD);
    write("in.jsonl", "{\"id\":\"bad\",\"at\":0}\n{\"id\":1,\"at\":0}\n");
    place.run(&["run", "--until-idle"], 3);
    let out = || fs::read_to_string(place.0.path().join("out.jsonl")).unwrap();
    let redriven = |kind: &str| {
        place.run(&["dead-letters", "redrive"], 0);
        place.run(&["run", "--until-idle"], 3);
        let list = place.run(&["dead-letters", "list"], 0);
        assert_eq!(list.lines().filter(|line| line.contains(kind)).count(), 1, "{list}");
        assert_eq!(out(), "{\"id\":1,\"at\":0}\n");
        let number = list.lines().last().unwrap().split_whitespace().next().unwrap();
        let letter = place.run(&["dead-letters", "show", number], 0);
        let letter: serde_json::Value = serde_json::from_str(&letter).unwrap();
        assert_eq!((&letter["queue"], &letter["headers"]), (&"in".into(), &serde_json::json!([])));
    };
    // Also the second time, when it comes from where it was sent back.
    redriven(" schema ");
    redriven(" schema ");
    let mended = HELD.replace("integer", "string");
    write("p.yaml", &mended.replace("pass,", "pass, expire: { after: 1h, then: dead_letter },"));
    redriven(" expired ");
    write("p.yaml", &mended);
    place.run(&["dead-letters", "redrive"], 0);
    place.run(&["run", "--until-idle"], 0);
    assert_eq!(out(), "{\"id\":1,\"at\":0}\n{\"id\":\"bad\",\"at\":0}\n");
}

/// Lines of a stream that does not end are on the queue as they come.
#[test]
fn what_is_put_from_a_stream_is_there_before_its_end() {
    let place = Place(tempfile::tempdir().unwrap());
    fs::write(place.0.path().join("p.yaml"), YAML).unwrap();
    // Who looks into a queue makes no state.
    place.put("for_a", "{\"n\":0}\n");
    let mut command = place.command(&["queues", "put", "for_a"]);
    let mut put = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stream = put.stdin.take().unwrap();
    stream.write_all(b"{\"n\":1}\n{\"n\":2}\n{\"n\":").unwrap();
    let on_it = || place.run(&["queues", "peek", "for_a"], 0).lines().count();
    // Each look takes a process; the one that puts ends the test after three minutes.
    while on_it() < 3 {
        assert!(put.try_wait().unwrap().is_none(), "it ended");
    }
    stream.write_all(b"3}").unwrap();
    drop(stream);
    let told = ended(&put.wait_with_output().unwrap(), 0);
    assert!(told.contains("3 messages put"), "{told}");
    assert_eq!(on_it(), 4);
}
