//! The examples, run as a reader would run them, and the connector of one of them in the conformance
//! suite. `cargo test` builds them; with `--test examples` alone, run `cargo build --examples` first.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long anything may take: longer is a hang.
const PATIENCE: Duration = Duration::from_secs(180);

/// The component of an example, and its tests.
#[path = "../examples/testing_a_component.rs"]
#[allow(dead_code, reason = "nobody calls its main here")]
mod testing_a_component;

/// The connector of an example.
#[path = "../examples/custom_connector/spool.rs"]
mod spool;

/// A built example, to be run in the project's directory.
fn example(name: &str) -> Command {
    let examples = Path::new(env!("CARGO_BIN_EXE_brigade")).parent().unwrap().join("examples");
    let program = examples.join(name);
    assert!(program.exists(), "{} is not there: `cargo build --examples`", program.display());
    let mut command = Command::new(program);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG");
    command
}

/// Runs an example to its good end; answers with the lines that it printed.
fn lines(command: &mut Command) -> Vec<String> {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn hello_greets_three_names() {
    let state = tempfile::tempdir().unwrap();
    let mut hello = example("hello");
    let hello = hello.args(["run", "pipelines/hello.yaml", "--until-idle", "--state"]);
    let greetings = lines(hello.arg(state.path()));
    assert_eq!(greetings.len(), 3);
    assert!(greetings.iter().all(|line| line.starts_with("{\"text\":\"Hello, ")), "{greetings:?}");
}

#[test]
fn from_volley_scores_shares_and_keeps_what_violates_the_schema() {
    let state = tempfile::tempdir().unwrap();
    let mut example = example("from_volley");
    let run = ["run", "pipelines/from_volley.yaml", "--until-idle", "--state"];
    let output = example.args(run).arg(state.path()).output().unwrap();
    // There are dead letters in a hundred messages, but for one run in a hundred thousand.
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let mut queues = self::example("from_volley");
    let queues = queues.args(["queues", "list", "pipelines/from_volley.yaml", "--state"]);
    let listed = lines(queues.arg(state.path()));
    let ready = |queue: &str| -> usize {
        let row = listed.iter().find(|line| line.trim_start().starts_with(queue)).unwrap();
        row.split_whitespace().nth(2).unwrap().parse().unwrap()
    };
    assert_eq!(ready("queue-a"), ready("queue-b"), "{listed:?}");
    assert!(ready("queue-a") > 10, "about 45 of a hundred are positive and fit: {listed:?}");
    assert!(ready("dead-letter-queue") > 0, "{listed:?}");
    // A field that the component's types do not name has gone through.
    let mut queues = self::example("from_volley");
    let queues =
        queues.args(["queues", "peek", "pipelines/from_volley.yaml", "queue-a", "--state"]);
    let peeked = lines(queues.arg(state.path())).join("\n");
    assert_eq!(peeked.matches("\"origin\":\"web\"").count(), 10, "{peeked}");
    // One more component looks at them.
    let mut look = self::example("from_volley");
    look.args(run).arg(state.path());
    lines(look.args(["--set", "stages.look={ component: look, input: queue-a }"]));
    let mut queues = self::example("from_volley");
    let queues = queues.args(["queues", "list", "pipelines/from_volley.yaml", "--state"]);
    let listed = lines(queues.arg(state.path()));
    let left = listed.iter().find(|line| line.trim_start().starts_with("queue-a")).unwrap();
    assert_eq!(left.split_whitespace().nth(2), Some("0"), "{listed:?}");
}

#[test]
fn quickstart_ends_with_bills_and_dead_letters() {
    let told = lines(&mut example("quickstart")).join("\n");
    assert!(
        told.contains("bill  1000 orders in,  984 passed on,    0 filtered, 16 dead"),
        "{told}"
    );
    assert!(told.contains("has no total (rejected)"), "{told}");
}

#[test]
fn several_components_split_count_and_shout() {
    let mut told = lines(&mut example("several_components"));
    told.sort_unstable();
    let expected = [
        "counted: [1,1] a",
        "counted: [2,1] of",
        "counted: [4,1] line",
        "counted: [5,1] words",
        "counted: [6,2] tricky",
        "loud: {\"text\":\"LINE\"} ",
        "loud: {\"text\":\"TRICKY\"} ",
        "loud: {\"text\":\"WORDS\"} ",
    ];
    assert_eq!(told, expected);
}

#[test]
fn no_output_lets_most_go_and_does_its_work_with_the_rest() {
    let mut told = lines(&mut example("no_output"));
    told.sort_unstable();
    assert_eq!(
        told,
        ["220 degrees", "ring: 1 of 1 put nothing out", "watch: 2 of 3 put nothing out"]
    );
}

#[test]
fn stateful_goes_on_with_its_totals_at_the_next_start() {
    let out = tempfile::tempdir().unwrap();
    let last = |customer: &str| {
        let totals = fs::read_to_string(out.path().join("totals.txt")).unwrap();
        let of = |line: &&str| line.contains(customer);
        totals.lines().rfind(of).unwrap().trim_matches('"').to_owned()
    };
    lines(example("stateful").arg(out.path()));
    assert_eq!((last("Ada"), last("Grace")), ("Ada: 15 EUR".into(), "Grace: 20 EUR".into()));
    lines(example("stateful").arg(out.path()));
    assert_eq!((last("Ada"), last("Grace")), ("Ada: 30 EUR".into(), "Grace: 40 EUR".into()));
}

#[test]
fn batch_answers_for_each_row() {
    let told = lines(&mut example("batch"));
    let (dead, stored) = told.split_last().unwrap();
    assert_eq!(dead, "dead letters: 1");
    let mut names: Vec<&str> =
        stored.iter().filter_map(|line| line.trim_matches('"').split(' ').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["Ada", "Grace", "Linus"]);
}

#[test]
fn embedded_in_a_program_squares_and_tells_of_what_it_cannot() {
    let told = lines(&mut example("embedded_in_a_program"));
    assert!(told[0].starts_with("a dead letter: "), "{told:?}");
    let mut squares: Vec<&str> = told[1..].iter().map(String::as_str).collect();
    squares.sort_unstable();
    assert_eq!(squares, ["1", "16", "25", "4", "9"]);
}

#[test]
fn testing_a_component_shows_what_the_component_does() {
    assert_eq!(lines(&mut example("testing_a_component")), ["Ok(1)"]);
}

#[test]
fn the_tutorials_program_passes_its_cases() {
    let told = lines(example("tutorial").args(["test", "pipelines/tutorial/shop.test.yaml"]));
    assert_eq!(told.last().unwrap(), "2 passed, 0 failed");
}

/// A program that is killed at the end of its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn inside_an_actix_web_service_what_is_posted_is_billed_also_after_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = example("inside_an_actix_web_service");
        command.arg("127.0.0.1:0").env("TMPDIR", state.path()).stdout(Stdio::piped());
        let mut service = Running(command.spawn().unwrap());
        let mut told = BufReader::new(service.0.stdout.take().unwrap()).lines();
        let line = told.next().unwrap().unwrap();
        (service, line.rsplit('/').next().unwrap().to_owned())
    };
    let ask = |address: &str, request: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    let order = "{\"item\":\"tea\",\"price\":4}";
    let post = format!(
        "POST /orders HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{order}",
        order.len()
    );
    let (service, address) = start();
    assert_eq!(ask(&address, &post), "202");
    drop(service);
    let (_service, address) = start();
    assert_eq!(ask(&address, &post), "202");
    let begun = std::time::Instant::now();
    while ask(&address, "GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n") != "200" {
        assert!(begun.elapsed() < PATIENCE, "it never was ready");
    }
}

#[test]
fn the_custom_connector_reads_and_writes_directories() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir_all(place.path().join("out/in")).unwrap();
    for (name, word) in [("1", "\"hello\""), ("2", "\"brigade\"")] {
        fs::write(place.path().join(format!("out/in/{name}.msg")), word).unwrap();
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/spool.yaml");
    let mut run = example("custom_connector");
    lines(run.current_dir(place.path()).arg("run").arg(file).arg("--until-idle"));
    let messages = |directory: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(place.path().join(directory)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|kind| kind == "msg")).collect()
    };
    let mut done: Vec<String> =
        messages("out/done").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    done.sort_unstable();
    assert_eq!(done, ["\"BRIGADE\"", "\"HELLO\""]);
    assert!(messages("out/in").is_empty());
}

// ANCHOR: suite
mod the_custom_connector {
    use std::sync::Arc;

    use brigade::MemoryState;
    use brigade::connector::{ConnectorEnv, QueueSpec};
    use brigade_testkit::Fixture;

    fn fixture() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let settings = serde_json::json!({ "directory": directory.path() });
        let queue = QueueSpec::new("suite", "queue", settings);
        let env = ConnectorEnv { state: MemoryState::new() };
        Fixture::new(Arc::new(super::spool::Spool), env, queue).keep(directory)
    }

    brigade_testkit::conformance!(|| fixture());
}
// ANCHOR_END: suite

const LONG: &str = "
pipeline: long
state: state
queues:
  in: { type: generator, count: 1000000, rate: 500, template: { n: '{{seq}}' } }
  out: { type: file, path: out.jsonl }
stages:
  work: { component: pass, input: in, outputs: [out] }
";

#[test]
fn scaled_does_what_it_is_told_while_it_runs() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("long.yaml"), LONG).unwrap();
    let mut run = example("scaled");
    run.current_dir(place.path()).args(["long.yaml", "127.0.0.1:0", "work"]);
    let mut scaled = Running(run.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut orders = scaled.0.stdin.take().unwrap();
    let mut told = BufReader::new(scaled.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut order = |order: &str| {
        writeln!(orders, "{order}").unwrap();
        told.next().unwrap()
    };
    assert_eq!(order("work many"), "`work many` is no order: `STAGE WORKERS`, or `drain`");
    assert!(order("play 3").starts_with("not scaled: no stage `play` here"));
    let begun = std::time::Instant::now();
    while order("work 3") != "`work` has 3 workers" {
        assert!(begun.elapsed() < PATIENCE, "it never runs");
    }
    assert_eq!(order("drain"), "draining");
    assert!(told.next().unwrap().starts_with("the books close: "));
    assert!(scaled.0.wait().unwrap().success());
}

const UNRELIABLE: &str = "
pipeline: luck
state: state
log: { level: info }
queues:
  in: { type: generator, rate: 500, template: { n: '{{seq}}' } }
  out: { type: file, path: out.jsonl }
stages:
  check: { component: check, input: in, outputs: [out], retry: { attempts: 20, min: 1ms, max: 5ms } }
";

/// What a component counts is on the endpoint, beside the engine's own counts.
#[test]
fn unreliable_counts_its_bad_luck_on_the_metrics_endpoint() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("luck.yaml"), UNRELIABLE).unwrap();
    let mut run = example("unreliable");
    run.current_dir(place.path()).args(["run", "luck.yaml", "--metrics", "127.0.0.1:0"]);
    let mut child = run.stderr(Stdio::piped()).env("RUST_BACKTRACE", "0").spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let told = log.find(|line| line.contains("metrics at http://")).unwrap();
    let (_, address) = told.split_once("http://").unwrap();
    let address = address.split('/').next().unwrap().to_owned();
    // Its panics are told: somebody has to read that.
    let rest = std::thread::spawn(move || log.count());
    let wanted = "bad_luck_total{pipeline=\"luck\",stage=\"check\"} ";
    let begun = std::time::Instant::now();
    loop {
        let mut stream = TcpStream::connect(&address).unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix(wanted)?.parse::<u64>().ok());
        if count.is_some_and(|count| count > 0) {
            assert!(text.contains("brigade_panics_total{"), "{text}");
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{text}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    rest.join().unwrap();
}
