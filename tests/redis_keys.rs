//! What the keys of queues on Redis say, in whole runs: which server and database, and how often a
//! message is handed out.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use brigade::{CauseKind, DeadLetter};
use brigade_testkit::servers::Redis;

/// A command at a server, in a directory with the pipeline.
fn brigade(directory: &Path, server: &Redis, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory).args(arguments).env("REDIS_URL", server.url());
    command.env("RUST_LOG", "error").stdout(Stdio::null()).stderr(Stdio::null());
    command
}

const RUN: [&str; 3] = ["run", "p.yaml", "--until-idle"];

/// Whether something comes to be so.
fn in_time(mut is_so: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if begun.elapsed() > Duration::from_secs(180) {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Puts lines on the queue `orders`.
fn put(directory: &Path, server: &Redis, lines: &str) {
    let mut put = brigade(directory, server, &["queues", "put", "p.yaml", "orders"]);
    let mut put = put.stdin(Stdio::piped()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(put.wait().unwrap().success());
}

/// Where the file names none it is the environment's, and a database is the one that is named.
#[test]
fn the_server_and_the_database_that_the_file_names_go_before_the_environments() {
    for (kind, count) in [("redis_stream", "XLEN :key"), ("rsmq", "ZCARD rsmq::key")] {
        let (directory, ours, theirs) =
            (tempfile::tempdir().unwrap(), Redis::start(), Redis::start());
        let yaml = "
pipeline: shop
state: state
queues:
  in: { type: generator, count: 10, template: { n: '{{seq}}' } }
  named: { type: KIND, url: '${REDIS_URL}/2' }
  unnamed: { type: KIND }
  out: { type: file, path: out.jsonl }
stages:
  feed: { component: pass, input: in, outputs: [named, unnamed], copy: true }
  keep: { component: pass, input: named, outputs: [out] }
  lose: { component: pass, input: unnamed, outputs: [out] }
";
        fs::write(directory.path().join("p.yaml"), yaml.replace("KIND", kind)).unwrap();
        let run = |stage: &str| {
            let mut command = brigade(directory.path(), &ours, &RUN);
            command
                .args(["--stage", stage])
                .env("REDIS_HOST", format!("127.0.0.1:{}", theirs.port()));
            assert!(command.status().unwrap().success(), "{kind}");
        };
        let there = |server: &Redis, database: usize, key: &str| -> usize {
            let url = format!("{}/{database}", server.url());
            let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
            let (name, of) = count.split_once(' ').unwrap();
            redis::cmd(name).arg(of.replace(":key", key)).query(&mut connection).unwrap()
        };
        run("feed");
        assert_eq!((there(&ours, 2, "named"), there(&theirs, 0, "unnamed")), (10, 10), "{kind}");
        for (server, database) in [(&ours, 0), (&theirs, 0), (&theirs, 2)] {
            assert_eq!(there(server, database, "named"), 0, "{kind}");
        }
        run("keep");
        assert_eq!((there(&ours, 2, "named"), there(&theirs, 0, "unnamed")), (0, 10), "{kind}");
        let out = fs::read_to_string(directory.path().join("out.jsonl")).unwrap();
        assert_eq!(out.lines().count(), 10, "{kind}");
    }
}

/// A message that is with a process each time that one is killed is given up in the end; what comes
/// after it is handled.
#[test]
fn what_is_handed_out_too_often_without_an_outcome_becomes_a_dead_letter() {
    let count = |connection: &mut redis::Connection, kind: &str| -> Option<u64> {
        if kind == "rsmq" {
            let ids: Vec<String> =
                redis::cmd("ZRANGE").arg("rsmq:orders").arg(0).arg(0).query(connection).unwrap();
            let mut received = redis::cmd("HGET");
            received.arg("rsmq:orders:Q").arg(format!("{}:rc", ids.first()?));
            return received.query(connection).unwrap();
        }
        let mut pending = redis::cmd("XPENDING");
        pending.arg("orders").arg("shop").arg("-").arg("+").arg(1);
        // None while nobody has made the group.
        let held: Vec<(String, String, u64, u64)> = pending.query(connection).ok()?;
        Some(held.first()?.3)
    };
    for (kind, more) in [("redis_stream", ""), ("rsmq", ", vt: 2s")] {
        let (directory, server) = (tempfile::tempdir().unwrap(), Redis::start());
        let directory = directory.path();
        let yaml = "
pipeline: shop
state: state
queues:
  orders: { type: KIND, url: '${REDIS_URL}', max_redeliveries: 2 }
  dead: { type: file, path: dead.jsonl }
  out: { type: file, path: out.jsonl }
stages:
  bill:
    component: { map: 'if .n == 0 then until(false; .) else .billed = true end' }
    input: orders
    outputs: [out]
    dead_letter: dead
";
        fs::write(directory.join("p.yaml"), yaml.replace("KIND", &format!("{kind}{more}")))
            .unwrap();
        let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        put(directory, &server, "{\"n\":0}\n");
        for time in 1..=3 {
            let mut running = brigade(directory, &server, &RUN).spawn().unwrap();
            let is_held = in_time(|| count(&mut connection, kind) == Some(time));
            running.kill().unwrap();
            running.wait().unwrap();
            assert!(is_held, "{kind}: it was not handed out {time} times");
        }
        put(directory, &server, "{\"n\":1}\n");
        let mut running = brigade(directory, &server, &RUN).spawn().unwrap();
        let has_ended = in_time(|| running.try_wait().unwrap().is_some());
        running.kill().unwrap();
        assert!(has_ended, "{kind}: it is handed out again");
        let ended = running.wait().unwrap();
        assert_eq!(ended.code(), Some(3), "{kind}: there is a dead letter");
        let out = fs::read_to_string(directory.join("out.jsonl")).unwrap();
        assert_eq!(out, "{\"n\":1,\"billed\":true}\n", "{kind}");
        let dead = fs::read_to_string(directory.join("dead.jsonl")).unwrap();
        let dead: Vec<DeadLetter> =
            dead.lines().map(|line| DeadLetter::from_json(line.as_bytes()).unwrap()).collect();
        let [letter] = &dead[..] else { panic!("{kind}: {dead:?}") };
        assert_eq!(letter.cause.kind, CauseKind::Crash, "{kind}");
        assert_eq!(letter.message.payload.as_deref(), Some(&b"{\"n\":0}"[..]), "{kind}");
    }
}
