//! The table of benchmarks: runs `benches/table`, and writes the results for the documentation.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

const JSON: &str = "docs/src/benchmarks.json";
const PAGE: &str = "docs/src/benchmarks.md";
/// The rows that are measured without the Kafka client in the program.
const IDLE: [&str; 2] = ["idle, memory", "idle, processor"];

/// Measure every row of the table, next to hand-written loops.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Only rows whose names contain one of these; the others stay as they were measured before.
    rows: Vec<String>,
    /// Leave out the rows on Kafka.
    #[arg(long)]
    without_kafka: bool,
    /// Leave out the rows on other systems, which need Go, Python 3.11 and Rust 1.95 to be built.
    #[arg(long)]
    without_peers: bool,
}

impl Bench {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let begun = says("date", &["-u", "+%F %H:%M"]);
        let machine = machine();
        let before = fs::read_to_string(JSON).ok().filter(|_| !self.rows.is_empty());
        let before: Value = before.map_or(Ok(Value::Null), |text| serde_json::from_str(&text))?;
        is_of(&before, &machine)?;
        let peers = if self.without_peers { None } else { Some(build_peers()?) };
        let wanted = |name: &str| self.rows.iter().any(|row| name.contains(row.as_str()));
        let idle: Vec<&str> = IDLE.into_iter().filter(|name| wanted(name)).collect();
        let mut rows = Vec::new();
        if self.without_kafka {
            rows.extend(measure(&[], &self.rows, peers.as_deref())?);
        } else {
            rows.extend(measure(&["--features", "real-kafka"], &self.rows, peers.as_deref())?);
            // Most rows are measured in a build with these features.
            if self.rows.is_empty() || !idle.is_empty() {
                let rows_of_idle = if idle.is_empty() { IDLE.to_vec() } else { idle };
                rows.extend(measure(&[], &rows_of_idle, None)?);
            }
        }
        let run = json!({
            "measured": begun,
            "command": self.command(),
            "kernel": says("uname", &["-r"]),
            "rustc": says("rustc", &["--version"]),
        });
        let all = merged(&before, rows, &machine, &run);
        fs::write(JSON, format!("{all:#}\n")).context(JSON)?;
        fs::write(PAGE, page(&all)).context(PAGE)
    }

    /// The command as it was typed.
    fn command(&self) -> String {
        let mut command = "cargo xtask bench".to_owned();
        for (flag, given) in
            [("--without-kafka", self.without_kafka), ("--without-peers", self.without_peers)]
        {
            if given {
                let _ = write!(command, " {flag}");
            }
        }
        for row in &self.rows {
            let _ = write!(command, " '{row}'");
        }
        command
    }
}

/// Refuses to combine rows with those of another machine.
fn is_of(before: &Value, machine: &Value) -> anyhow::Result<()> {
    for what in ["processor", "cores"].into_iter().filter(|_| !before.is_null()) {
        let (was, is) = (&before["machine"][what], &machine[what]);
        ensure!(
            was == is,
            "the other rows are of another machine ({what} {was}, not {is}): measure all"
        );
    }
    Ok(())
}

/// The previous rows with those of this run, each with the details of the run that measured it.
fn merged(before: &Value, rows: Vec<Value>, machine: &Value, run: &Value) -> Value {
    let mut table = before["rows"].as_array().cloned().unwrap_or_default();
    for mut row in rows {
        for (what, value) in run.as_object().into_iter().flatten() {
            row[what] = value.clone();
        }
        match table.iter_mut().find(|have| have["name"] == row["name"]) {
            Some(have) => *have = row,
            None => table.push(row),
        }
    }
    json!({ "machine": machine, "rows": table })
}

/// Measures these rows of the table, built with these features.
fn measure(
    features: &[&str],
    rows: &[impl AsRef<OsStr>],
    peers: Option<&Path>,
) -> anyhow::Result<Vec<Value>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut run = Command::new(cargo);
    run.args(["bench", "--bench", "table"]).args(features).arg("--").args(rows);
    run.stderr(std::process::Stdio::inherit()).envs(peers.map(|peers| ("BRIGADE_PEERS", peers)));
    let output = run.output().context("cargo cannot be run")?;
    ensure!(output.status.success(), "the table could not be measured");
    let text = String::from_utf8(output.stdout).context("rows are text")?;
    let rows = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    Ok(rows.filter(|row: &Value| row["name"].is_string()).collect())
}

/// Builds the other systems that Brigade is compared with; returns the directory of their programs.
fn build_peers() -> anyhow::Result<PathBuf> {
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let peers = std::path::absolute(target)?.join("peers");
    let to = |name: &str| peers.join(name).display().to_string();
    let venv = to("volley");
    let rust = to("rust");
    let run = |directory: &str, program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.current_dir(Path::new("benches/peers").join(directory)).args(arguments);
        let status = command.status().with_context(|| format!("`{program}` cannot be run"))?;
        ensure!(status.success(), "`{program} {}` failed", arguments.join(" "));
        Ok(())
    };
    run("rust", "cargo", &["build", "--release", "--locked", "--target-dir", &rust])?;
    fs::copy(peers.join("rust/release/peers"), peers.join("peers")).context("the Rust peers")?;
    run("connect", "go", &["build", "-o", &to("connect"), "."])?;
    run("volley", "python3", &["-m", "venv", &venv])?;
    let pip = format!("{venv}/bin/pip");
    run("volley", &pip, &["install", "--quiet", "-r", "requirements.txt"])?;
    Ok(peers)
}

/// The output of a program.
fn says(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|| "?".to_owned())
}

/// What it ran on.
fn machine() -> Value {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
    json!({
        "processor": model.trim_start_matches([':', ' ', '\t']),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
    })
}

fn page(all: &Value) -> String {
    let machine = &all["machine"];
    let mut page = format!(
        "<!-- Written by `cargo xtask bench`. -->\n# Benchmarks\n\n`cargo xtask bench`, on {} ({} cores).\n\
         Medians; each row with a loop by hand, or another system, in pairs, one after the other. `measured` is\n\
         when a row's run began (UTC; of older rows only the day is known).\n\n\
         | row | Brigade | p99 | beside | its p99 | of that | goal | met | measured |\n\
         |---|---|---|---|---|---|---|---|---|\n",
        text(&machine["processor"]),
        machine["cores"],
    );
    for row in all["rows"].as_array().into_iter().flatten() {
        let (ours, hand) = (&row["brigade"], &row["by_hand"]);
        let unit = text(&row["unit"]);
        let ratio = row["ratio"].as_f64().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let met = if row["met"] == true { "yes" } else { "no" };
        let _ = writeln!(
            page,
            "| {} | {} {unit} | {} | {} | {} | {ratio} | {} | {met} | {} |",
            text(&row["name"]),
            number(&ours["p50"]),
            number(&ours["p99"]),
            number(&hand["p50"]),
            number(&hand["p99"]),
            goal(&row["goal"]),
            text(&row["measured"]),
        );
    }
    page.push_str(
        "\n[`benchmarks.json`](benchmarks.json) has the numbers of samples, the extremes, and each row's command, kernel and\ncompiler, where they are known.\n",
    );
    page
}

fn goal(goal: &Value) -> String {
    match goal.as_object().and_then(|goal| goal.iter().next()) {
        Some((name, value)) if name == "of_by_hand" && value == 0.0 => String::new(),
        Some((name, value)) if name == "of_by_hand" => format!("at least {value} of that"),
        Some((name, value)) if name == "at_most_of_by_hand" => {
            format!("at most {value} of that")
        }
        Some((name, value)) if name == "p99_at_most_above_by_hand" => {
            format!("p99 at most {value} above that")
        }
        Some((name, value)) if name == "at_least" => format!("at least {}", number(value)),
        Some((_, value)) => format!("p99 at most {}", number(value)),
        None => String::new(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// Large numbers in thousands, small ones with a digit or two.
fn number(value: &Value) -> String {
    match value.as_f64() {
        None => String::new(),
        Some(number) if number >= 10_000.0 => format!("{:.0} k", number / 1000.0),
        Some(number) if number >= 100.0 => format!("{number:.0}"),
        Some(number) => format!("{number:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_another_run_keep_their_time_and_command() {
        let (machine, row) =
            (json!({ "cores": 2 }), |name: &str, n| json!({ "name": name, "n": n }));
        let first = vec![row("one", 1), row("two", 1)];
        let all = merged(&Value::Null, first, &machine, &json!({ "measured": "monday" }));
        let again = merged(&all, vec![row("two", 2)], &machine, &json!({ "measured": "tuesday" }));
        assert_eq!(again["rows"][0], all["rows"][0]);
        let two = json!({ "name": "two", "n": 2, "measured": "tuesday" });
        assert_eq!(again["rows"][1], two);
        assert!(is_of(&all, &machine).is_ok());
        assert!(is_of(&all, &json!({ "cores": 64 })).is_err());
    }
}
