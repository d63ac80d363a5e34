//! Other systems at the same work, as their own documentation recommends them for throughput. Both read a
//! queue that is full, as processes with all cores, and are measured from outside: from when a tenth
//! has come out until all has. `cargo xtask bench` builds them (`benches/peers`) and says where they are.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use brigade_testkit::servers::Redis;

use crate::redis::{connect, payload};
use crate::support::{Goal, Row};
use crate::{added, memory};

/// How often a pair is measured; a peer's part of it may be slow.
const PAIRS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(300);
const STREAMED: usize = 100_000;
const VOLLEY: usize = 5000;
const MEMORY: usize = 500_000;

/// Where the peers are, if they were built.
fn directory() -> Option<PathBuf> {
    std::env::var_os("BRIGADE_PEERS").map(PathBuf::from)
}

/// Whether there is anything to measure.
pub(crate) fn are_there() -> bool {
    directory().is_some()
}

/// A peer's program.
pub(crate) fn peer(path: &str) -> Command {
    Command::new(directory().expect("peers are there").join(path))
}

/// A peer that runs until this is dropped.
pub(crate) struct Run(Child);

impl Run {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::null()).spawn().expect("the program is there"))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // One that has come to its end by itself cannot be killed.
        let _ = self.0.kill();
        self.0.wait().expect("nobody else waits for it");
    }
}

/// How many messages a second come out, once a tenth is there.
pub(crate) fn rate(messages: usize, mut count: impl FnMut() -> usize) -> f64 {
    let (begun, mut first) = (Instant::now(), None);
    loop {
        let there = count();
        if there >= messages / 10 {
            let (since, before) = *first.get_or_insert((Instant::now(), there));
            if there >= messages {
                return (there - before) as f64 / since.elapsed().as_secs_f64();
            }
        }
        assert!(begun.elapsed() < PATIENCE, "{there} of {messages} came out");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The same of a pipeline of Brigade's, which ends then.
pub(crate) fn brigade(text: &str, messages: usize, count: impl FnMut() -> usize + Send) -> f64 {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let rate = rate(messages, count);
            done.store(true, Relaxed);
            rate
        });
        added::brigade(text, &done);
        watching.join().expect("it does not panic")
    })
}

/// A row of rates in pairs, of which the peer's part is to be exceeded so many times.
pub(crate) fn row(
    name: &'static str,
    times: f64,
    ours: impl Fn() -> f64,
    theirs: impl Fn() -> f64,
) -> Row {
    let goal = Goal::OfByHand(times);
    let mut row = Row { name, unit: "messages/s", ours: vec![], by_hand: vec![], goal };
    for _ in 0..PAIRS {
        row.by_hand.push(theirs());
        row.ours.push(ours());
    }
    row
}

/// Over Redis Streams; `name` is the peer's program's.
pub(crate) fn streams(row_name: &'static str, name: &str) -> Row {
    let length = |server: &Redis| {
        let mut client = connect(server);
        move || redis::cmd("XLEN").arg("out").query::<usize>(&mut client).expect("Redis answers")
    };
    let theirs = || {
        let server = Redis::start();
        let mut fill = peer("peers");
        fill.args([&format!("{name}-fill"), &server.url(), "in", &STREAMED.to_string()]);
        assert!(fill.status().expect("the program is there").success());
        let mut work = peer("peers");
        work.args([name, &server.url(), "in", "out", &STREAMED.to_string()]);
        let _running = Run::start(work);
        rate(STREAMED, length(&server))
    };
    let ours = || {
        let server = Redis::start();
        let mut client = connect(&server);
        for n in (0..STREAMED).step_by(500) {
            let mut fill = redis::pipe();
            for n in n..n + 500 {
                fill.cmd("XADD").arg("in").arg("*").arg("payload").arg(payload(n)).ignore();
            }
            fill.query::<()>(&mut client).expect("Redis answers");
        }
        let text = format!(
            "pipeline: bench
queues:
  in: {{ type: redis_stream, url: '{0}' }}
  out: {{ type: redis_stream, url: '{0}' }}
stages:
  add: {{ component: add, input: in, outputs: [out] }}
",
            server.url()
        );
        brigade(&text, STREAMED, length(&server))
    };
    row(row_name, 1.0, ours, theirs)
}

/// Over RSMQ; both queues are made and filled by Volley's own client.
pub(crate) fn volley(name: &'static str) -> Row {
    let python = |script: &str| {
        let mut python = peer("volley/bin/python");
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers/volley");
        python.current_dir(directory).env("PYTHONDONTWRITEBYTECODE", "1").arg(script);
        python
    };
    let filled = |messages: usize| {
        let server = Redis::start();
        let mut fill = python("fill.py");
        fill.args([server.url(), messages.to_string()]).stderr(Stdio::null());
        assert!(fill.status().expect("the program is there").success());
        let mut client = connect(&server);
        let count = move || {
            redis::cmd("ZCARD")
                .arg("rsmq:output")
                .query::<usize>(&mut client)
                .expect("Redis answers")
        };
        (server, count)
    };
    let theirs = || {
        let (server, count) = filled(VOLLEY);
        let mut work = python("app.py");
        work.env("REDIS_HOST", "127.0.0.1").env("REDIS_PORT", server.port().to_string());
        let _running = Run::start(work);
        rate(VOLLEY, count)
    };
    let ours = || {
        // As many as Volley gets would be through before they are counted.
        let (server, count) = filled(10 * VOLLEY);
        let text = format!(
            "pipeline: bench
queues:
  in: {{ type: rsmq, url: '{0}', queue: input }}
  out: {{ type: rsmq, url: '{0}', queue: output }}
stages:
  add: {{ component: add, input: in, outputs: [out] }}
",
            server.url()
        );
        brigade(&text, 10 * VOLLEY, count)
    };
    row(name, 30.0, ours, theirs)
}

/// Three stages over RustStream's broker in memory, beside three stages over direct edges.
pub(crate) fn ruststream_memory(name: &'static str) -> Row {
    let ours = || MEMORY as f64 / memory::bytes_ours(1).took.as_secs_f64();
    row(name, 1.0, ours, || told(&["ruststream-memory", &MEMORY.to_string(), "1"]))
}

/// Three stages with typed JSON in between.
pub(crate) fn ruststream_json(name: &'static str) -> Row {
    let ours = || MEMORY as f64 / memory::json_ours().took.as_secs_f64();
    row(name, 1.0, ours, || told(&["ruststream-json", &MEMORY.to_string()]))
}

/// The messages a second that a peer itself tells.
fn told(arguments: &[&str]) -> f64 {
    let output = peer("peers").args(arguments).output().expect("the program is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("it was written so");
    told["messages"].as_f64().expect("the peer tells a number")
        / told["seconds"].as_f64().expect("the peer tells a number")
}
