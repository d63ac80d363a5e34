//! Every test there is, and what was real in them.

use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;

/// Run every test.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Go without something that tests need; it then stands in the last line.
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
}

/// What tests need beside Rust and a C compiler, by the name that `--without` takes.
const NEEDS: [&str; 0] = [];

impl Test {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        for name in &self.without {
            ensure!(NEEDS.contains(&name.as_str()), "no test needs `{name}`");
        }
        crate::tidy::run()?;
        // The crash tests kill the real command, so it has to be there.
        cargo(&["build", "--bin", "brigade"])?;
        cargo(&["test", "--workspace", "--all-features", "--no-fail-fast"])?;
        report(&self.without);
        Ok(())
    }
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status = Command::new(cargo).args(arguments).status().context("cargo cannot be run")?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a script's output")]
fn report(without: &[String]) {
    println!("real: processes (killed with SIGKILL), files, SQLite (bundled)");
    match without {
        [] => println!("all tests passed, without nothing"),
        without => println!("all tests passed, without {}", without.join(", ")),
    }
}
