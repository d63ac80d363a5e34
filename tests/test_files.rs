//! `brigade test`: cases pass or say what is wrong; files that test nothing are told, each with its place.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that stops says where")]

use std::fs;
use std::process::Command;

const PIPELINE: &str = "
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

/// Runs the command on a test file; what it printed, and said.
fn test(name: &str, text: &str, arguments: &[&str], code: i32) -> (String, String) {
    test_of(PIPELINE, name, text, arguments, code)
}

fn test_of(
    pipeline: &str,
    name: &str,
    text: &str,
    arguments: &[&str],
    code: i32,
) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("p.yaml"), pipeline).unwrap();
    fs::write(directory.path().join(name), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory.path()).args(["test", name]).args(arguments);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{out}\n{error}");
    assert!(!directory.path().join("state").exists(), "nothing of the pipeline's own is touched");
    (out, error)
}

fn said(text: &str, expected: &[&str]) {
    let (out, error) = test("x.test.yaml", text, &[], 2);
    assert_eq!(out, "");
    for words in expected {
        assert!(error.contains(words), "`{words}` is not in:\n{error}");
    }
    assert!(!error.contains("TestFile") && !error.contains("Some("), "{error}");
}

fn case(rest: &str) -> String {
    format!("pipeline: p.yaml\ncases:\n  - name: one\n{rest}\n")
}

#[test]
fn the_cases_of_the_example_pass() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    let output = command.args(["test", "pipelines/flights.test.yaml"]).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && out.contains("2 passed, 0 failed"), "{out}");
}

#[test]
fn cases_pass_or_say_what_is_wrong() {
    let cases = "
pipeline: p.yaml
cases:
  - name: what is big goes on
    send: { in: [{ n: 11 }, { n: 3 }, { n: 12 }] }
    expect: { outputs: { out: [{ n: 12 }, { n: 11 }] }, outcomes: { sort: { filtered: 1 } } }
  - name: wrong in many ways
    send: { in: [{ n: 11 }, { raw: '{' }] }
    expect:
      outputs: { out: [{ n: 99 }] }
      dead_letters: { copy: [{ cause: panic, message: oops, attempts: 2, payload: 7 }] }
      outcomes: { sort: { filtered: 7 } }
";
    let (out, _) = test("p.test.yaml", cases, &[], 4);
    for said in [
        "ok      p.test.yaml: what is big goes on",
        "FAILED  p.test.yaml: wrong in many ways",
        "queue `out`: missing {\"n\":99}",
        "queue `out`: not expected {\"n\":11}",
        "stage `sort`: 7 filtered expected, 0 found",
        "stage `sort`: dead letter not expected: decode",
        "stage `copy`: no dead letter has cause panic, `oops` in its message, 2 attempts, payload 7",
        "1 passed, 1 failed",
    ] {
        assert!(out.contains(said), "`{said}` is not in:\n{out}");
    }
    test("p.test.yaml", cases, &["--only", "big"], 0);
}

/// A pipeline whose dead letters are repaired by a stage, and one whose other outputs come to a queue of
/// dead letters.
const REPAIRED: &str = "
pipeline: repaired
queues:
  orders: { type: embedded }
  bills: { type: embedded }
  dead: { type: embedded }
  fixed: { type: embedded }
  more: { type: embedded }
stages:
  bill: { component: { map: 'if . < 0 then error else . end' }, input: orders, outputs: [bills], dead_letter: dead }
  repair: { component: { map: '.stage' }, input: dead, outputs: [fixed] }
  check: { component: { map: 'if . > 9 then error else . end' }, input: bills, outputs: [more], dead_letter: more }
";

#[test]
fn dead_letters_that_another_stage_reads_are_told_and_can_be_expected() {
    let send = "    send: { orders: [-1] }\n    expect:\n      outputs: { fixed: ['bill'] }\n";
    let (out, _) = test_of(REPAIRED, "x.test.yaml", &case(send), &[], 4);
    let told = "stage `bill`: dead letter not expected: rejected";
    assert!(out.contains(told), "{out}");
    let right = [send, "      dead_letters: { bill: [{ cause: rejected, payload: -1 }] }"].concat();
    test_of(REPAIRED, "x.test.yaml", &case(&right), &[], 0);
}

/// What a stage put on it and another has read is an output of it all the same.
#[test]
fn outputs_on_a_queue_that_a_stage_reads_can_be_expected() {
    let send = "    send: { in: [{ n: 11 }, { n: 3 }, { n: 12 }] }\n    expect:\n      outputs: ";
    let out = "out: [{ n: 11 }, { n: 12 }]";
    let right = format!("{send}{{ big: [{{ n: 12 }}, {{ n: 11 }}], {out} }}");
    test("x.test.yaml", &case(&right), &[], 0);
    // What is sent to it is not put there by a stage.
    let sent =
        "    send: { big: [{ n: 5 }] }\n    expect: { outputs: { big: [], out: [{ n: 5 }] } }";
    test("x.test.yaml", &case(sent), &[], 0);
    let (told, _) = test("x.test.yaml", &case(&format!("{send}{{ big: [], {out} }}")), &[], 4);
    let wrong: Vec<&str> = told.lines().filter(|line| line.starts_with("    ")).collect();
    let not_expected = |n| format!("        queue `big`: not expected {{\"n\":{n}}}");
    assert_eq!(wrong, [not_expected(11), not_expected(12)], "{told}");
}

/// It is for the file that sets it to say what it is.
#[test]
fn a_variable_that_the_file_sets_may_be_anything_in_the_environment() {
    use std::os::unix::ffi::OsStrExt;
    let directory = tempfile::tempdir().unwrap();
    let pipeline = PIPELINE.replace("pipeline: sorted", "pipeline: ${NAME}");
    fs::write(directory.path().join("p.yaml"), pipeline).unwrap();
    let rest = "    send: { in: [{ n: 3 }] }\nenv: { NAME: sorted }";
    fs::write(directory.path().join("x.test.yaml"), case(rest)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory.path()).args(["test", "x.test.yaml"]);
    command.env("NAME", std::ffi::OsStr::from_bytes(b"\xff"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn outputs_on_a_queue_of_dead_letters_are_told_apart_from_those() {
    let send = "    send: { bills: [1, 10] }\n    expect:\n      dead_letters: { check: [{}] }\n";
    let (out, _) = test_of(REPAIRED, "x.test.yaml", &case(send), &[], 4);
    let wrong: Vec<&str> = out.lines().filter(|line| line.starts_with("    ")).collect();
    assert_eq!(wrong, ["        queue `more`: not expected 1"], "{out}");
}

/// They are dead letters, wherever they are.
#[test]
fn dead_letters_on_a_queue_whose_outputs_are_listed_are_no_outputs() {
    let send = "    send: { bills: [1, 10] }\n    expect:\n      outputs: { more: [1] }\n";
    let right = [send, "      dead_letters: { check: [{}] }"].concat();
    test_of(REPAIRED, "x.test.yaml", &case(&right), &[], 0);
    let (out, _) = test_of(REPAIRED, "x.test.yaml", &case(send), &[], 4);
    assert!(out.contains("stage `check`: dead letter not expected"), "{out}");
    assert!(!out.contains("queue `more`"), "{out}");
}

#[test]
fn what_is_sent_to_a_queue_that_no_stage_reads_is_told() {
    said(
        &case("    send: { out: [{ n: 1 }] }\n    expect: { outputs: { out: [{ n: 1 }] } }"),
        &["no stage reads `out`; stages read `in`, `big`", "x.test.yaml:4:18 (cases.0.send.out)"],
    );
}

#[test]
fn numbers_are_compared_by_their_value() {
    let pipeline = "
pipeline: priced
queues: { in: { type: file, path: in.jsonl }, out: { type: file, path: out.jsonl } }
stages:
  price: { component: { map: '{ total: (.price * .count) }' }, input: in, outputs: [out] }
";
    let send = "    send: { in: [{ price: 2.5, count: 2 }] }
    expect: { outputs: { out: [{ total: 5 }] } }\n";
    test_of(pipeline, "x.test.yaml", &case(send), &[], 0);
    test_of(pipeline, "x.test.yaml", &case(&send.replace("total: 5", "total: 5.5")), &[], 4);
}

/// A file's numbers of more than 64 bits would lose digits before they are sent or compared.
#[test]
fn numbers_of_more_than_64_bits_are_sent_and_expected_as_texts() {
    let long = "{ n: 123456789012345678901 }";
    for (keys, place) in [
        (format!("    send: {{ in: [{long}] }}"), "(cases.0.send.in.0)"),
        (format!("    send: {{}}\n    expect: {{ outputs: {{ out: [1, {long}] }} }}"), ".out.1)"),
        (
            format!(
                "    send: {{}}\n    expect: {{ dead_letters: {{ sort: [{{ payload: {long} }}] }} }}"
            ),
            "(cases.0.expect.dead_letters.sort.0.payload)",
        ),
    ] {
        let (_, error) = test("x.test.yaml", &case(&keys), &[], 2);
        let is_told = error.contains("has more than 64 bits") && error.contains(place);
        assert!(is_told && error.contains("raw"), "{error}");
    }
    let raw = |digits: &str| format!("{{ raw: '{{\"n\":{digits}}}' }}");
    let exact = |got: &str| {
        let send = raw("123456789012345678901");
        case(&format!(
            "    send: {{ big: [{send}] }}\n    expect: {{ outputs: {{ out: [{}] }} }}",
            raw(got)
        ))
    };
    test("x.test.yaml", &exact("123456789012345678901"), &[], 0);
    test("x.test.yaml", &exact("123456789012345678902"), &[], 4);
}

/// Kafka's sign that something is gone.
#[test]
fn a_payload_that_is_none_is_sent_and_told_apart_from_null() {
    let send = |payloads: &str, expected: &str| {
        case(&format!(
            "    send: {{ big: [{payloads}] }}\n    expect: {{ outputs: {{ out: [{expected}] }} }}"
        ))
    };
    test("x.test.yaml", &send("{ raw: null, key: a }", "{ raw: null }"), &[], 0);
    test("x.test.yaml", &send("{ raw: null }, null", "{ raw: 'null' }, { raw: null }"), &[], 0);
    let (out, _) = test("x.test.yaml", &send("null", "{ raw: null }"), &[], 4);
    assert!(out.contains("queue `out`: missing {\"raw\":null}"), "{out}");
    let (out, _) = test("x.test.yaml", &send("{ raw: null }", "5"), &[], 4);
    assert!(out.contains("queue `out`: not expected {\"raw\":null}"), "{out}");
}

/// As one whose table is missing.
#[test]
fn a_stage_that_fails_before_it_runs_is_told_and_can_be_expected() {
    let pipeline = "
pipeline: looked
restart: { max_restarts: 0 }
queues: { in: { type: file, path: in.jsonl }, out: { type: file, path: out.jsonl } }
stages:
  look: { component: { lookup: { file: t.csv, key: id, match: [{ field: id, add: { name: name } }] } }, input: in, outputs: [out] }
";
    let send = "    send: { in: [{ id: 1 }] }\n";
    let (out, _) = test_of(pipeline, "x.test.yaml", &case(send), &[], 4);
    assert!(out.contains("stage `look` failed: ") && out.contains("t.csv"), "{out}");
    let expected = [send, "    expect: { failed: { look: t.csv } }"].concat();
    test_of(pipeline, "x.test.yaml", &case(&expected), &[], 0);
}

#[test]
fn what_is_sent_twice_are_two_messages_of_which_a_component_may_drop_one() {
    let pipeline = "
pipeline: once
queues: { in: { type: file, path: in.jsonl }, out: { type: file, path: out.jsonl } }
stages:
  once: { component: { dedupe: { key: id } }, input: in, outputs: [out] }
";
    let send = "    send: { in: [{ id: 1 }, { id: 1 }, { id: 2 }] }
    expect: { outputs: { out: [{ id: 1 }, { id: 2 }] }, outcomes: { once: { filtered: 1 } } }\n";
    test_of(pipeline, "x.test.yaml", &case(send), &[], 0);
}

#[test]
fn names_of_nothing_are_told_with_the_nearest_right_ones() {
    said(
        &case(
            "    send: { im: [{ n: 11 }] }
    expect:
      outputs: { outt: [] }
      dead_letters: { srot: [] }
      outcomes: { sortt: { acked: 1 } }
      failed: { cop: '' }",
        ),
        &[
            "no queue `im`\n  --> x.test.yaml:4:13 (cases.0.send.im)\n  help: did you mean `in`?",
            "no queue `outt`\n  --> x.test.yaml:6:18",
            "did you mean `out`?",
            "no stage `srot`\n  --> x.test.yaml:7:23",
            "no stage `sortt`\n  --> x.test.yaml:8:19",
            "no stage `cop`\n  --> x.test.yaml:9:17",
            "did you mean `sort`?",
        ],
    );
}

#[test]
fn wrong_keys_and_values_are_told_with_their_places() {
    said(&case("    sent: {}"), &["unknown key `sent`", "x.test.yaml:4:5", "did you mean `send`?"]);
    said(
        &case("    send: {}\n    expect: { dead_letters: { sort: [{ cause: decod }] } }"),
        &["found the text `decod`", "x.test.yaml:5:47", "did you mean `decode`?"],
    );
    said(&case("    send: { in: { n: 1 } }"), &["expected a list, found a mapping", ":4:17"]);
    said(
        &case("    send: { in: [1, { raw: 7 }] }"),
        &["`raw` is a text, not 7", "x.test.yaml:4:21 (cases.0.send.in.1)"],
    );
    said(
        &case("    send: { in: [{ raw: a, headers: [own] }] }"),
        &["`headers` is a mapping, not [\"own\"]", "(cases.0.send.in.0)"],
    );
    said(&case("    send: {}\n    timeout: soon"), &["found the text `soon`", ":5:14"]);
    said("pipeline: p.yaml\ncases: {", &["x.test.yaml:3:1"]);
    said("cases: []", &["the test file lacks the key `pipeline`"]);
    said("pipeline: none.yaml\ncases: []", &["none.yaml", "cannot be read"]);
}

#[test]
fn a_file_without_a_case_is_no_success() {
    said("", &["nothing is in the test file"]);
    said("pipeline: p.yaml\ncases: []", &["no case is in the test file", "x.test.yaml:2:8"]);
    said("pipeline: p.yaml", &["the test file lacks the key `cases`"]);
    said("5", &["expected a mapping, found the number 5"]);
}

#[test]
fn a_choice_of_no_case_is_no_success() {
    let text = case("    send: { in: [{ n: 11 }] }\n    expect: { outputs: { out: [{ n: 11 }] } }");
    let (_, error) = test("x.test.yaml", &text, &["--only", "nosuch"], 2);
    assert!(error.contains("no case has `nosuch` in its name; there are: `one`"), "{error}");
    let (out, _) = test("x.test.yaml", &text, &["--only", "on"], 0);
    assert!(out.contains("1 passed, 0 failed"), "{out}");
}

#[test]
fn test_files_are_json_and_toml_too() {
    let text = r#"{ "pipeline": "p.yaml", "cases": [{ "name": "one", "sent": {} }] }"#;
    let (_, error) = test("x.test.json", text, &[], 2);
    assert!(error.contains("x.test.json:1:") && error.contains("did you mean `send`?"), "{error}");
    let text = "pipeline = \"p.yaml\"\n[[cases]]\nname = \"one\"\n[cases.send]\nim = []\n";
    let (_, error) = test("x.test.toml", text, &[], 2);
    assert!(error.contains("x.test.toml:5:1") && error.contains("did you mean `in`?"), "{error}");
}
