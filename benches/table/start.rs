//! How long it takes to be there.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use brigade::component::Raw;
use brigade::{Failure, Memory, MemoryState, Message};

use crate::support::{Goal, Row, pipeline, timed};

const SAMPLES: usize = 20;
const STAGES: usize = 1000;

/// From reading the file to the first message in a component, with embedded queues on disk.
pub(crate) fn first_message(name: &'static str) -> Row {
    let goal = Goal::AtMost(100.0);
    let mut row = Row { name, unit: "ms", ours: vec![], by_hand: vec![], goal };
    for _ in 0..SAMPLES {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let seen = Arc::new(AtomicBool::new(false));
        let see = Arc::clone(&seen);
        let memory = Memory::new();
        memory.put("bench", "in", [Message::new("1")]);
        let begun = Instant::now();
        let registry = brigade::registry().connector(Arc::new(memory));
        let registry = registry.component("see", move |_: Raw| {
            see.store(true, Relaxed);
            Ok::<_, Failure>(())
        });
        let text = "pipeline: bench
queues:
  in: { type: memory }
  between: { type: embedded }
stages:
  a: { component: pass, input: in, outputs: [between] }
  b: { component: see, input: between }
";
        let pipeline = pipeline(text, &registry).state_path(directory.path());
        timed(pipeline, async |_| {
            while !seen.load(Relaxed) {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            row.ours.push(begun.elapsed().as_secs_f64() * 1000.0);
        });
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
