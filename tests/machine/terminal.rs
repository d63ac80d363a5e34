//! What is told on a terminal, which `script` (of util-linux) makes.

use std::process::Command;

use super::Place;
use super::place::numbers;

#[test]
fn on_a_terminal_a_line_tells_how_far_a_run_is() {
    let place = Place::new(numbers(1).as_bytes());
    let yaml = "
pipeline: told
state: state
queues:
  in: { type: generator, template: { n: '{{seq}}' }, rate: 500, count: 1000 }
  out: { type: file, path: out.jsonl }
stages:
  copy: { component: pass, input: in, outputs: [out] }
";
    std::fs::write(place.path("p.yaml"), yaml).unwrap();
    let run = format!("{} run p.yaml --until-idle", env!("CARGO_BIN_EXE_brigade"));
    let mut script = Command::new("script");
    script.args(["-qec", &run, "/dev/null"]).current_dir(place.path("."));
    let output = script.output().expect("`script` of util-linux is needed to make a terminal");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains(" done, ") && told.contains("/s"), "{told}");
    assert!(told.contains(" left"), "a finite input tells what is left: {told}");
    assert!(told.contains("copy"), "the table stays at the end: {told}");
}
