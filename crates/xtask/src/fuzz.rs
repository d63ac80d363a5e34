//! Fuzzing of code that reads foreign input; `fuzz/README.md` says what is needed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;

/// The fuzz targets: the programs in `fuzz/fuzz_targets`.
const TARGETS: [&str; 4] = ["pipeline_file", "state", "lines", "dead_letter"];

/// The largest input, in bytes.
const LENGTH_MAX: u32 = 8192;

/// The most memory that one target may take, in MiB, including the sanitizer's own.
const MEMORY_MAX: u32 = 2048;

/// Fuzz each target for a while.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only this target; may be given several times.
    #[arg(long, value_name = "NAME")]
    target: Vec<String>,
}

impl Fuzz {
    /// Fuzzes each target for this many seconds.
    pub(crate) fn all(seconds: u64) -> anyhow::Result<()> {
        Self { seconds, target: Vec::new() }.run()
    }

    pub(crate) fn run(&self) -> anyhow::Result<()> {
        for name in &self.target {
            ensure!(TARGETS.contains(&name.as_str()), "no target `{name}`: {}", TARGETS.join(", "));
        }
        for target in TARGETS {
            if self.target.is_empty() || self.target.iter().any(|name| name == target) {
                self.fuzz(target)?;
            }
        }
        Ok(())
    }

    fn fuzz(&self, target: &str) -> anyhow::Result<()> {
        // Findings are kept out of the tree; initial inputs are in it.
        let corpus = Path::new("fuzz/corpus").join(target);
        std::fs::create_dir_all(&corpus)
            .with_context(|| format!("cannot make {}", corpus.display()))?;
        // This toolchain's `cargo` would not find the other toolchain.
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo", "fuzz", "run", target]);
        command.arg(corpus).arg(Path::new("fuzz/seeds").join(target)).arg("--");
        command.args([
            format!("-max_total_time={}", self.seconds),
            format!("-max_len={LENGTH_MAX}"),
            format!("-rss_limit_mb={MEMORY_MAX}"),
            "-timeout=20".to_owned(),
            "-print_final_stats=1".to_owned(),
        ]);
        for variable in ["CARGO", "RUSTUP_TOOLCHAIN"] {
            command.env_remove(variable);
        }
        let status = command.status().context("rustup cannot be run")?;
        ensure!(
            status.success(),
            "`{target}` failed. If something was found, it lies in fuzz/artifacts/{target}: mend it \
             with a unit test. What fuzzing needs is in fuzz/README.md"
        );
        Ok(())
    }
}
