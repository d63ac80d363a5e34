//! The pages of the documentation that are generated from the code.

use std::process::Command;

use anyhow::{Context, ensure};

/// The pages, and what `brigade schema` calls them.
const PAGES: [(&str, &str); 2] =
    [("keys", "docs/src/reference/keys.md"), ("features", "docs/src/reference/features.md")];

/// Writes them, for a program with every connector there is.
pub(crate) fn run() -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    for (format, page) in PAGES {
        let mut command = Command::new(&cargo);
        command.args(["run", "--quiet", "--all-features", "--bin", "brigade", "--"]);
        let output = command.args(["schema", "--format", format]).output();
        let output = output.context("cargo cannot be run")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::write(page, output.stdout).with_context(|| format!("cannot write {page}"))?;
    }
    Ok(())
}
