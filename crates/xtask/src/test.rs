//! Runs all tests, and reports which servers in them were real.

mod servers;
mod shown;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::needs::NEEDS;
use crate::test::servers::Counts;
use crate::test::shown::Outcomes;

/// Run every test. What they need and is missing is installed first, on Debian as root.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Leave out something that tests need; the last line then says so. `missing` leaves out
    /// everything that is missing and cannot be installed.
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
}

/// The value of `--without` for everything that is missing.
const MISSING: &str = "missing";

/// What a run has of all that tests need.
struct Chosen<'t> {
    features: Vec<&'static str>,
    /// What is there, by the need it meets, with its version.
    real: Vec<(&'static str, String)>,
    /// The features that are off.
    off: BTreeSet<String>,
    without: Vec<&'t str>,
}

impl Test {
    /// Finds or installs everything that is not to be left out.
    fn choose(&self) -> anyhow::Result<Chosen<'_>> {
        let mut without: Vec<&str> = self.without.iter().map(String::as_str).collect();
        for name in &without {
            let is_known = *name == MISSING || NEEDS.iter().any(|need| need.name == *name);
            ensure!(is_known, "no test needs `{name}`");
        }
        let without_missing = without.contains(&MISSING);
        without.retain(|name| *name != MISSING);
        let mut features = vec!["sabotage"];
        let always = "processes (killed with SIGKILL), files, SQLite (bundled)";
        let mut real = vec![("", always.to_owned())];
        let mut off = BTreeSet::new();
        for need in &NEEDS {
            // The clients of RSMQ are of no use without its server.
            let of_redis = need.name == "rsmq-clients" && without.contains(&"redis");
            if of_redis && !without.contains(&need.name) {
                without.push(need.name);
            }
            let is_wanted = !without.contains(&need.name);
            match is_wanted.then(|| need.find_or_install()).flatten() {
                Some(there) => {
                    real.push((need.name, there));
                    features.push(need.feature);
                    continue;
                }
                None if is_wanted && without_missing => without.push(need.name),
                None if is_wanted => bail!("{need}, or go `--without {}`", need.name),
                None => {}
            }
            // A feature for a real server also enables the code that talks to it.
            off.extend([need.feature, need.feature.trim_start_matches("real-")].map(str::to_owned));
        }
        Ok(Chosen { features, real, off, without })
    }

    pub(crate) fn run(&self) -> anyhow::Result<()> {
        crate::tidy::run()?;
        let Chosen { features, real, off, without } = self.choose()?;
        let features = features.join(",");
        let used = std::env::temp_dir().join(format!("brigade-servers-{}", std::process::id()));
        // The crash tests kill the real command, so it must exist.
        cargo(&["build", "--bin", "brigade", "--features", &features], &used)?;
        let mut test = vec!["test", "--workspace", "--features", &features, "--no-fail-fast"];
        // What they build, C or not, may lack what it needs.
        let packages = [("kafka", "brigade-kafka"), ("schema-registry", "brigade-schemas")];
        let packages = packages.iter().filter(|(need, _)| without.contains(need));
        let packages: Vec<&str> = packages.map(|(_, package)| *package).collect();
        test.extend(packages.iter().flat_map(|package| ["--exclude", package]));
        let mut outcomes = Outcomes::default();
        let passed = cargo_test(&test, &used, &mut outcomes);
        let counts = Counts::read(&used);
        // It belonged to this run; nothing else reads it.
        let _ = std::fs::remove_file(&used);
        let page = std::fs::read_to_string(shown::PAGE)
            .with_context(|| format!("cannot read {}", shown::PAGE))?;
        let left_out = shown::left_out(&off, &packages)?;
        let (shown, wrong) = shown::table(&page, &outcomes, &left_out);
        say(&shown);
        say(&servers::table(&real, &counts));
        say(&servers::others(&real));
        passed?;
        ensure!(wrong.is_empty(), "what is shown by tests is not:\n{}", wrong.join("\n"));
        let unused = servers::unused(&real, &counts);
        ensure!(unused.is_empty(), "there, and used by no test: {}", unused.join("; "));
        let without = if without.is_empty() { "nothing".to_owned() } else { without.join(", ") };
        say(&[format!("all tests passed, without {without}")]);
        Ok(())
    }
}

/// A cargo command whose tests record in the file `used` which servers they start.
fn command(arguments: &[&str], used: &Path) -> Command {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut cargo = Command::new(cargo);
    cargo.args(arguments).env("BRIGADE_SERVERS_USED", used);
    cargo
}

fn cargo(arguments: &[&str], used: &Path) -> anyhow::Result<()> {
    let status = command(arguments, used).status().context("cargo cannot be run")?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

/// Runs tests, passes on their output, and reads how each test ended.
fn cargo_test(arguments: &[&str], used: &Path, outcomes: &mut Outcomes) -> anyhow::Result<()> {
    let mut cargo = command(arguments, used);
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cargo cannot be run")?;
    let mut output = BufReader::new(child.stdout.take().context("it is piped")?);
    let (mut line, mut out) = (Vec::new(), std::io::stdout());
    while output.read_until(b'\n', &mut line)? > 0 {
        out.write_all(&line)?;
        outcomes.read(&String::from_utf8_lossy(&line));
        line.clear();
    }
    let status = child.wait()?;
    ensure!(status.success(), "`cargo {}` failed", arguments.join(" "));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a script's output")]
fn say(lines: &[String]) {
    println!("\n{}", lines.join("\n"));
}
