//! What a process costs that has nothing to do, with the features that a build has by default.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Goal, Row, processor_time, resident};

const WATCHED: Duration = Duration::from_secs(30);

/// Two stages over embedded queues and a file, with the program that this build makes.
fn start(directory: &std::path::Path) -> Child {
    let text = "pipeline: idle
state: state
queues:
  in: { type: embedded }
  checked: { type: embedded }
  out: { type: file, path: out.jsonl }
stages:
  check: { component: pass, input: in, outputs: [checked] }
  copy: { component: pass, input: checked, outputs: [out] }
";
    std::fs::write(directory.join("p.yaml"), text).expect("the directory can be written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory).args(["run", "p.yaml"]);
    let child =
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program is there");
    // Beyond its start.
    std::thread::sleep(Duration::from_secs(2));
    child
}

fn watched(row: Row, mut watch: impl FnMut(&Child, &mut Vec<f64>)) -> Row {
    let directory = tempfile::tempdir().expect("a directory can be made");
    let mut running = start(directory.path());
    let mut row = row;
    watch(&running, &mut row.ours);
    running.kill().expect("it runs");
    running.wait().expect("nobody else waits for it");
    row
}

pub(crate) fn memory(name: &'static str) -> Row {
    let goal = Goal::AtMost(20.0);
    let row = Row { name, unit: "MB resident", ours: vec![], by_hand: vec![], goal };
    watched(row, |running, samples| {
        let begun = Instant::now();
        while begun.elapsed() < WATCHED {
            samples.push(resident(&running.id().to_string()));
            std::thread::sleep(Duration::from_millis(200));
        }
    })
}

pub(crate) fn processor(name: &'static str) -> Row {
    let (unit, goal) = ("% of one core", Goal::AtMost(0.2));
    let row = Row { name, unit, ours: vec![], by_hand: vec![], goal };
    watched(row, |running, samples| {
        let process = running.id().to_string();
        let (begun, before) = (Instant::now(), processor_time(&process));
        std::thread::sleep(WATCHED);
        let spent = processor_time(&process) - before;
        samples.push(100.0 * spent.as_secs_f64() / begun.elapsed().as_secs_f64());
    })
}
