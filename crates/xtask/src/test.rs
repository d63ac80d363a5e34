//! Every test there is, and what was real in them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::needs::NEEDS;

/// Run every test. What is missing for them is installed first, on Debian as root.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Go without something that tests need; it then stands in the last line. `missing` is all that is not
    /// there and cannot be installed.
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
}

/// What `--without` takes for all that is not there.
const MISSING: &str = "missing";

impl Test {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut without: Vec<&str> = self.without.iter().map(String::as_str).collect();
        for name in &without {
            let is_known = *name == MISSING || NEEDS.iter().any(|need| need.name == *name);
            ensure!(is_known, "no test needs `{name}`");
        }
        let without_missing = without.contains(&MISSING);
        without.retain(|name| *name != MISSING);
        crate::tidy::run()?;
        let mut features = vec!["sabotage"];
        let mut real = vec!["processes (killed with SIGKILL), files, SQLite (bundled)".to_owned()];
        for need in &NEEDS {
            if without.contains(&need.name) {
                continue;
            }
            match need.find_or_install() {
                Some(there) => {
                    real.push(there);
                    features.push(need.feature);
                }
                None if without_missing => without.push(need.name),
                None => bail!("{need}, or go `--without {}`", need.name),
            }
        }
        let features = features.join(",");
        let used = std::env::temp_dir().join(format!("brigade-servers-{}", std::process::id()));
        // The crash tests kill the real command, so it has to be there.
        cargo(&["build", "--bin", "brigade", "--features", &features], &used)?;
        let mut test = vec!["test", "--workspace", "--features", &features, "--no-fail-fast"];
        if without.contains(&"kafka") {
            // It builds the C client, whose headers may be missing too.
            test.extend(["--exclude", "brigade-kafka"]);
        }
        if without.contains(&"schema-registry") {
            test.extend(["--exclude", "brigade-schemas"]);
        }
        let passed = cargo(&test, &used);
        let counts = Counts::read(&used);
        // It was this run's; nobody else reads it.
        let _ = std::fs::remove_file(&used);
        passed?;
        report(&real, &counts, &without);
        Ok(())
    }
}

/// Runs cargo; tests that start servers note it in the file `used`.
fn cargo(arguments: &[&str], used: &Path) -> anyhow::Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut cargo = Command::new(cargo);
    cargo.args(arguments).env("BRIGADE_SERVERS_USED", used);
    let status = cargo.status().context("cargo cannot be run")?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

/// The servers that tests use, as they note it, and what they are called in the report.
const SERVERS: [(&str, &str); 9] = [
    ("redis", "Redis"),
    ("redis, secured", "Redis with TLS and a user with few rights"),
    ("redis, sentinel", "Redis with a Sentinel, failed over"),
    ("redis, cluster", "Redis Cluster, slots moved"),
    ("rsmq clients", "the RSMQ clients of Node and Python"),
    ("postgres", "PostgreSQL"),
    ("schema registry", "the schema registry"),
    ("kafka", "Kafka"),
    ("kafka, secured", "Kafka with TLS, SCRAM and OAUTHBEARER"),
];

/// Which tests used which server.
struct Counts(BTreeSet<(String, String)>);

impl Counts {
    /// Reads what the tests noted: a server and a test a line.
    fn read(used: &Path) -> Self {
        let text = std::fs::read_to_string(used).unwrap_or_default();
        let line = |line: &str| {
            let (server, test) = line.split_once('\t')?;
            Some((server.to_owned(), test.to_owned()))
        };
        Self(text.lines().filter_map(line).collect())
    }

    fn of(&self, server: &str) -> usize {
        self.0.iter().filter(|(used, _)| used == server).count()
    }
}

#[expect(clippy::print_stdout, reason = "a script's output")]
fn report(real: &[String], counts: &Counts, without: &[&str]) {
    println!("\n{:<44} {:>5}", "server", "tests");
    for (server, name) in SERVERS {
        match counts.of(server) {
            0 => println!("{name:<44} {:>5}", "none"),
            tests => println!("{name:<44} {tests:>5}"),
        }
    }
    for real in real {
        println!("real: {real}");
    }
    match without {
        [] => println!("all tests passed, without nothing"),
        without => println!("all tests passed, without {}", without.join(", ")),
    }
}
