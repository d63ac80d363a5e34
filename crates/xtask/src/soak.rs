//! The long runs: two processes over embedded queues that are disturbed in every way, the broker
//! tests at full scale, and fuzzing. Their log is kept in the documentation.

mod books;
mod course;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use clap::Args;

use crate::fuzz::Fuzz;

/// The parts, by the names that `--without` takes.
const PARTS: [&str; 3] = ["processes", "brokers", "fuzz"];
/// How long each target is fuzzed, in seconds.
const FUZZED: u64 = 60;
/// The tests that run at a larger scale here, and which of their output is logged.
const BROKERS: [&str; 6] =
    ["--test", "kafka", "--test", "storm", "--features", "real-kafka,real-redis"];
const PROGRAMS: [&str; 5] =
    ["build", "--example", "unreliable", "--features", "real-kafka,real-redis"];
const CRASHES: [&str; 3] = ["from_kafka", "exactly_once", "members_join"];
/// A line of the log is cut off at this length: it has room for all ranges of repeated messages.
const LINE_MAX: usize = 50_000;

/// Disturb processes and brokers in every way for a long time.
#[derive(Debug, Args)]
pub(crate) struct Soak {
    /// How long messages are sent to the two processes, in minutes.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// The same seed makes the same messages and the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the log.
    #[arg(long, default_value = "docs/soak.log")]
    log: PathBuf,
    /// Leave out a part: `processes`, `brokers` or `fuzz`.
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
}

impl Soak {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        for name in &self.without {
            ensure!(PARTS.contains(&name.as_str()), "no part `{name}`: {}", PARTS.join(", "));
        }
        let with = |name: &str| !self.without.iter().any(|without| without == name);
        let mut log = String::new();
        let mut outcome = Ok(());
        if with("processes") {
            let (told, ended) = course::run(self.minutes, self.seed)?;
            log.push_str(&told);
            outcome = outcome.and(ended);
        }
        if with("brokers") {
            let (told, ended) = brokers()?;
            log.push_str(&told);
            outcome = outcome.and(ended);
        }
        if with("fuzz") {
            let ended = Fuzz::all(FUZZED);
            let told = if ended.is_ok() { "nothing found" } else { "FAILED" };
            let _ = writeln!(log, "\nfuzzing, {FUZZED} s each target: {told}");
            outcome = outcome.and(ended);
        }
        for name in &self.without {
            let _ = writeln!(log, "\nwithout {name}");
        }
        fs::write(&self.log, log).with_context(|| self.log.display().to_string())?;
        outcome
    }
}

/// Runs the broker tests at full scale.
fn brokers() -> anyhow::Result<(String, anyhow::Result<()>)> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    // The programs that the tests run as processes, built with the same features.
    let built = Command::new(&cargo).args(PROGRAMS).status().context("cargo cannot be run")?;
    ensure!(built.success(), "the tests' program does not build");
    let mut tests = Command::new(cargo);
    tests.arg("test").args(BROKERS).args(["--", "--nocapture", "--test-threads", "1"]);
    tests.args(CRASHES).env("BRIGADE_FULL", "1").stderr(Stdio::inherit());
    let output = tests.output().context("cargo cannot be run")?;
    let mut log = String::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let told: String = line.chars().take(LINE_MAX).collect();
        let cut = if told.len() < line.len() { " ..." } else { "" };
        let _ = writeln!(log, "{told}{cut}");
    }
    let ended = match output.status.success() {
        true => Ok(()),
        false => Err(anyhow::anyhow!("the tests of brokers failed")),
    };
    Ok((log, ended))
}
