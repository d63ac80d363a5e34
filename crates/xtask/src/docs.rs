//! The pages of the documentation that are generated from the code, and the parts included from
//! other files.

mod include;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The pages, and their names for `brigade schema`.
const PAGES: [(&str, &str); 2] =
    [("keys", "docs/src/reference/keys.md"), ("features", "docs/src/reference/features.md")];

/// Writes them, for a program with every connector.
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
    for page in pages(Path::new("docs/src"))? {
        let text = std::fs::read_to_string(&page)?;
        let folder = page.parent().unwrap_or(Path::new("."));
        let renewed = include::renewed(&text, folder);
        let renewed = renewed.map_err(|why| anyhow::anyhow!("{}: {why}", page.display()))?;
        std::fs::write(&page, renewed)?;
    }
    Ok(())
}

/// All pages below a folder.
fn pages(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(pages(&path)?),
            false if path.extension().is_some_and(|kind| kind == "md") => found.push(path),
            false => {}
        }
    }
    Ok(found)
}
