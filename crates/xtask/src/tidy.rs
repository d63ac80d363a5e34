//! The rules of the tree that no compiler checks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The longest file.
const LINES_MAX: usize = 600;

/// Holds the tree against its rules; tells everything that is wrong.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for path in rust_files()? {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        check(&path, &text, &mut wrong);
    }
    ensure!(wrong.is_empty(), "the tree breaks its rules:\n{}", wrong.join("\n"));
    Ok(())
}

fn rust_files() -> anyhow::Result<Vec<PathBuf>> {
    let listed = Command::new("git").args(["ls-files", "*.rs"]).output();
    let listed = listed.context("git cannot be run")?;
    let names = String::from_utf8(listed.stdout).context("a file's name is not UTF-8")?;
    Ok(names.lines().map(PathBuf::from).filter(|path| path.exists()).collect())
}

fn check(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let place = path.display();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        wrong.push(format!("{place}: {lines} lines, more than {LINES_MAX}"));
    }
    let within = |folder: &str| path.starts_with(folder);
    for (number, line) in text.lines().enumerate() {
        let mut tell = |what: &str| wrong.push(format!("{place}:{}: {what}", number + 1));
        let (open, stub) = (["TO", "DO"].concat(), ["unimplemented", "!("].concat());
        if line.contains(&open) || line.contains(&stub) {
            tell("something was left open");
        }
        // The web framework is not the actors.
        if line.replace("actix_web", "").replace("actix-web", "").contains("actix")
            && within("crates")
            && !within("crates/runtime")
            && !within("crates/xtask")
        {
            tell("only the runtime names actix");
        }
        if within("crates/core/src") {
            for clock in ["SystemTime::now", "Instant::now", "std::fs", "std::net", "thread::spawn"]
            {
                let test =
                    text.find("#[cfg(test)]").is_some_and(|at| text[..at].lines().count() < number);
                if line.contains(clock) && !test {
                    tell("core reads no clock, does no IO and spawns nothing");
                }
            }
        }
        if within("tests") && line.contains("sleep(") {
            tell("a test waits for what it wants to see, it does not sleep");
        }
    }
}
