//! Commands of a page, run in a directory of their own.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::blocks::Block;

/// What may stand in a block that is not run.
const NOT_RUN: [&str; 8] =
    ["cargo", "git", "cd", "mkdir", "curl", "redis-server", "redis-cli", "mdbook"];

/// A command and the lines that it is said to print.
struct Step {
    place: String,
    command: String,
    printed: Vec<String>,
}

/// Runs the commands of a page; says how many there were.
pub(crate) fn run(page: &str, blocks: &[Block]) -> usize {
    let place = tempfile::tempdir().unwrap();
    let mut steps: Vec<Step> = Vec::new();
    let mut script = setup(place.path());
    for (name, block) in blocks.iter().filter_map(|block| Some((block.word("file")?, block))) {
        fs::write(place.path().join(name), &block.text).unwrap();
    }
    for block in blocks {
        if block.words.first().is_none_or(|word| word != "console") {
            continue;
        }
        let begin = steps.len();
        for line in block.text.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => steps.push(Step {
                    place: format!("{page}:{}", block.line),
                    command: command.to_owned(),
                    printed: Vec::new(),
                }),
                None => steps[begin..].last_mut().unwrap().printed.push(line.trim().to_owned()),
            }
        }
        if block.words.iter().any(|word| word == "norun") {
            for step in steps.drain(begin..) {
                let program = step.command.split(' ').next().unwrap();
                assert!(NOT_RUN.contains(&program), "{}: run `{}`", step.place, step.command);
            }
        }
        for (number, step) in steps.iter().enumerate().skip(begin) {
            // The shell says where a command ends; `$?` stays what it was.
            let _ = write!(
                script,
                "{}\nr=$?; echo; echo \"@@{number} $r\"; (exit $r)\n",
                without_pause(&step.command)
            );
        }
    }
    if steps.is_empty() {
        return 0;
    }
    let printed = shell(place.path(), &script);
    let mut rest = printed.as_str();
    for (number, step) in steps.iter().enumerate() {
        let Some((own, after)) = rest.split_once(&format!("\n@@{number} ")) else {
            panic!("{}: `{}` never ended:\n{rest}", step.place, step.command);
        };
        let (code, after) = after.split_once('\n').unwrap();
        let told = steps.get(number + 1).is_some_and(|next| next.command == "echo $?");
        assert!(told || code == "0", "{}: `{}`: {code}\n{own}", step.place, step.command);
        check(step, own);
        rest = after;
    }
    steps.len()
}

/// A command with what its pause of a second is for in the place of that: something came through.
fn without_pause(command: &str) -> String {
    const WORKS: &str =
        "& until brigade queues peek endless.yaml kept 2>&1 | grep -q seq; do :; done;";
    command.replace("& sleep 1;", WORKS)
}

/// The project's pipelines, and the programs that pages speak of.
fn setup(place: &Path) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_brigade")).parent().unwrap();
    let pipelines = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    fs::create_dir(place.join(".bin")).unwrap();
    for (name, program) in [("brigade", "brigade"), ("shop", "examples/tutorial")] {
        let program = programs.join(program);
        assert!(program.exists(), "{} is not there: `cargo build --examples`", program.display());
        std::os::unix::fs::symlink(program, place.join(".bin").join(name)).unwrap();
    }
    let place = place.display();
    format!(
        "export PATH=\"{place}/.bin:$PATH\" HOME=\"{place}\"\ncp -r {} .\n",
        pipelines.display()
    )
}

fn shell(place: &Path, script: &str) -> String {
    let log = fs::File::create(place.join(".log")).unwrap();
    fs::write(place.join(".script"), script).unwrap();
    // What never ends is ended, and told by the command that it hung in.
    let mut shell = Command::new("timeout");
    shell
        .args(["-k", "5", "180", "sh"])
        .arg(place.join(".script"))
        .current_dir(place)
        .stdin(Stdio::null());
    shell.env_remove("RUST_LOG").env_remove("XDG_STATE_HOME");
    shell.stdout(log.try_clone().unwrap()).stderr(log);
    shell.status().unwrap();
    fs::read_to_string(place.join(".log")).unwrap()
}

/// Each line that is shown was printed, in this order.
fn check(step: &Step, printed: &str) {
    let fits = |shown: &str, line: &str| {
        let mut rest = line.trim();
        let mut parts = shown.split('…');
        let first = parts.next().unwrap();
        let Some(after) = rest.strip_prefix(first) else { return false };
        rest = after;
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            let Some((_, after)) = rest.split_once(part) else { return false };
            rest = after;
        }
        rest.ends_with(last)
    };
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines = printed.lines().map(squeezed);
    for shown in step.printed.iter().filter(|line| !line.is_empty()) {
        assert!(
            lines.any(|line| fits(&squeezed(shown), &line)),
            "{}: `{}` does not print `{shown}` there:\n{printed}",
            step.place,
            step.command
        );
    }
}
