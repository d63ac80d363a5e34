//! What is told on a terminal, which `script` (of util-linux) makes.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

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
    let run = in_a_shell("run p.yaml --until-idle");
    let mut script = Command::new("script");
    script.args(["-qc", &run, "/dev/null"]).current_dir(place.path("."));
    let output = script.output().expect("`script` of util-linux is needed to make a terminal");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains(" done, ") && told.contains("/s"), "{told}");
    assert!(told.contains(" left"), "a finite input tells what is left: {told}");
    assert!(told.contains("copy"), "the table stays at the end: {told}");
    assert!(told.contains("it ended with 0"), "{told}");
}

/// A run that tells how it ended. `script` would answer it too, but not always what it was: it may look before
/// its child, which has closed the terminal, is quite gone. The shell lives through a Ctrl-C to tell it.
fn in_a_shell(arguments: &str) -> String {
    let brigade = env!("CARGO_BIN_EXE_brigade");
    format!("trap : INT; {brigade} {arguments}; echo it ended with $?")
}

/// Of an endless input nobody knows what is left.
#[test]
fn on_a_terminal_a_line_tells_the_rate_of_an_endless_run() {
    let place = Place::new(b"");
    let yaml = "
pipeline: told
state: state
queues:
  in: { type: generator, template: { n: '{{seq}}' }, rate: 500 }
  out: { type: file, path: out.jsonl }
stages:
  copy: { component: pass, input: in, outputs: [out] }
";
    std::fs::write(place.path("p.yaml"), yaml).unwrap();
    let run = in_a_shell("run p.yaml");
    // Without the line that is waited for, it ends all the same.
    let mut script = Command::new("timeout");
    script.args(["180", "script", "-qc", &run, "/dev/null"]).current_dir(place.path("."));
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = script.spawn().expect("`script` of util-linux is needed to make a terminal");
    let mut stdout = script.stdout.take().unwrap();
    let (mut told, mut some) = (String::new(), [0; 4096]);
    // Until it is ended, after the second line with a rate, as a user would: with Ctrl-C.
    let mut stdin = script.stdin.take();
    loop {
        let read = stdout.read(&mut some).unwrap();
        if read == 0 {
            break;
        }
        told += &String::from_utf8_lossy(&some[..read]);
        if told.matches(" done, ").count() > 1
            && let Some(mut stdin) = stdin.take_if(|_| told.contains("/s"))
        {
            stdin.write_all(b"\x03").unwrap();
        }
    }
    script.wait().unwrap();
    assert!(told.contains("it ended with 0"), "{told}");
    assert!(!told.contains(" left"), "{told}");
    assert!(told.contains("the books close"), "{told}");
}
