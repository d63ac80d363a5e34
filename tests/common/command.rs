//! The command, run on a pipeline file `p.yaml`.

use std::path::Path;
use std::process::Command;

/// Runs `brigade` in a directory, with a variable of the environment; returns its exit code and all that it wrote.
pub(crate) fn brigade(
    directory: &Path,
    variable: (&str, &str),
    arguments: &[&str],
) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.current_dir(directory).args(arguments).env(variable.0, variable.1);
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// How many messages of a queue are ready, in what `brigade queues list` wrote.
pub(crate) fn ready(listed: &str, queue: &str) -> String {
    let row = listed.lines().find(|line| line.trim_start().starts_with(queue));
    let row = row.unwrap_or_else(|| panic!("{listed}"));
    row.split_whitespace().nth(2).unwrap().to_owned()
}
