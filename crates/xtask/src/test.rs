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
const NEEDS: [&str; 1] = ["redis"];

/// The features that the tests of a need stand behind.
const REAL: [(&str, &str); 1] = [("redis", "real-servers")];

impl Test {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        for name in &self.without {
            ensure!(NEEDS.contains(&name.as_str()), "no test needs `{name}`");
        }
        crate::tidy::run()?;
        // The crash tests kill the real command, so it has to be there.
        cargo(&["build", "--bin", "brigade"])?;
        let mut features = vec!["sabotage"];
        for (need, feature) in REAL {
            if !self.without.iter().any(|without| without == need) {
                ensure!(
                    version(need).is_some(),
                    "{need}-server is not installed: install it (`apt-get install {need}-server`), \
                     or go `--without {need}`"
                );
                features.push(feature);
            }
        }
        let features = features.join(",");
        cargo(&["test", "--workspace", "--features", &features, "--no-fail-fast"])?;
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

/// The version of a server that is installed.
fn version(need: &str) -> Option<String> {
    let output = Command::new(format!("{need}-server")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split(' ').find_map(|word| word.strip_prefix("v=")).map(str::to_owned)
}

#[expect(clippy::print_stdout, reason = "a script's output")]
fn report(without: &[String]) {
    println!("real: processes (killed with SIGKILL), files, SQLite (bundled)");
    for (need, _) in REAL {
        if let Some(version) = version(need).filter(|_| !without.iter().any(|name| name == need)) {
            println!("real: {need}-server {version}, killed and started again");
        }
    }
    match without {
        [] => println!("all tests passed, without nothing"),
        without => println!("all tests passed, without {}", without.join(", ")),
    }
}
