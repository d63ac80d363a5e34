//! How long it takes to be there.

use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade::{Memory, MemoryState};

use crate::support::{Goal, Row, pipeline, timed};

const SAMPLES: usize = 20;
const STAGES: usize = 1000;

/// From the start of the command to the first message that is out, through two stages with an embedded queue on disk
/// between them.
pub(crate) fn first_message(name: &'static str) -> Row {
    let goal = Goal::AtMost(100.0);
    let mut row = Row { name, unit: "ms", ours: vec![], by_hand: vec![], goal };
    let text = "pipeline: bench
state: state
queues:
  in: { type: file, path: in.jsonl }
  between: { type: embedded }
  out: { type: file, path: out.jsonl }
stages:
  a: { component: pass, input: in, outputs: [between] }
  b: { component: pass, input: between, outputs: [out] }
";
    for _ in 0..SAMPLES {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("p.yaml"), text).expect("the directory can be written");
        fs::write(path("in.jsonl"), "{\"n\":1}\n").expect("the directory can be written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(directory.path()).args(["run", "p.yaml"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let begun = Instant::now();
        let mut running = command.spawn().expect("the program is there");
        while fs::metadata(path("out.jsonl")).map_or(0, |out| out.len()) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing comes out");
            std::thread::sleep(Duration::from_micros(200));
        }
        row.ours.push(begun.elapsed().as_secs_f64() * 1000.0);
        running.kill().expect("it runs");
        running.wait().expect("nobody else waits for it");
    }
    row
}

/// From reading the file to every stage running, and the threads that takes.
pub(crate) fn many_stages(name: &'static str) -> Row {
    let goal = Goal::AtMost(2000.0);
    let mut row = Row { name, unit: "ms", ours: vec![], by_hand: vec![], goal };
    let mut text = "pipeline: bench\nqueues:\n".to_owned();
    for n in 0..=STAGES {
        writeln!(text, "  q{n}: {{ type: memory }}").expect("a text takes it");
    }
    text.push_str("stages:\n");
    for n in 0..STAGES {
        let next = n + 1;
        writeln!(text, "  s{n}: {{ component: pass, input: q{n}, outputs: [q{next}] }}")
            .expect("a text takes it");
    }
    for _ in 0..5 {
        let begun = Instant::now();
        let registry = brigade::registry().connector(Arc::new(Memory::new()));
        let pipeline = pipeline(&text, &registry).state(MemoryState::new());
        timed(pipeline, async |running| {
            while !running.is_ready().await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            row.ours.push(begun.elapsed().as_secs_f64() * 1000.0);
            let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
            assert!(threads < 64, "{threads} threads for {STAGES} stages");
        });
    }
    row
}
