//! The rules of the tree that no compiler checks.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// The longest file.
const LINES_MAX: usize = 600;
/// The longest function, and the longest for tests and benchmarks, which tell a story.
const FUNCTION_MAX: usize = 60;
const STORY_MAX: usize = 80;
/// Which of the project's crates a crate may depend on; the root, `brigade`, may depend on all, and
/// those not listed, such as connectors, only on the core.
const ARROWS: [(&str, &[&str]); 7] = [
    ("brigade-core", &[]),
    ("brigade-macros", &[]),
    ("xtask", &[]),
    ("brigade-runtime", &["brigade-core", "brigade-pipeline"]),
    ("brigade-testkit", &["brigade-core", "brigade-memory", "brigade-runtime"]),
    ("brigade-watch", &["brigade-pipeline", "brigade-runtime"]),
    (
        "brigade-cli",
        &[
            "brigade-core",
            "brigade-pipeline",
            "brigade-runtime",
            "brigade-testkit",
            "brigade-watch",
        ],
    ),
];

/// Checks the tree against its rules; reports everything that is wrong.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for path in rust_files()? {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        check(&path, &text, &mut wrong);
        functions(&path, &text, &mut wrong);
    }
    let packages = packages()?;
    arrows(&packages, &mut wrong);
    servers(&packages, &mut wrong)?;
    ensure!(wrong.is_empty(), "the tree breaks its rules:\n{}", wrong.join("\n"));
    Ok(())
}

fn rust_files() -> anyhow::Result<Vec<PathBuf>> {
    let listed = Command::new("git").args(["ls-files", "*.rs"]).output();
    let listed = listed.context("git cannot be run")?;
    let names = String::from_utf8(listed.stdout).context("a file's name is not UTF-8")?;
    Ok(names.lines().map(PathBuf::from).filter(|path| path.exists()).collect())
}

/// The project's own packages.
fn packages() -> anyhow::Result<Vec<Value>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut metadata = Command::new(cargo);
    let asked = metadata.args(["metadata", "--no-deps", "--format-version", "1"]).output();
    let metadata: Value = serde_json::from_slice(&asked.context("cargo cannot be run")?.stdout)?;
    Ok(list(&metadata["packages"]))
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn name(value: &Value) -> String {
    value["name"].as_str().unwrap_or_default().to_owned()
}

/// Tests that need a server must not run unless asked for.
fn servers(packages: &[Value], wrong: &mut Vec<String>) -> anyhow::Result<()> {
    for target in packages.iter().flat_map(|package| list(&package["targets"])) {
        let path = target["src_path"].as_str().unwrap_or_default();
        if target["kind"][0] == "test"
            && list(&target["required-features"]).is_empty()
            && std::fs::read_to_string(path)?.contains("servers::")
        {
            wrong.push(format!("{path}: a server is started without a feature that asks for it"));
        }
    }
    Ok(())
}

/// Which crate depends on which.
fn arrows(packages: &[Value], wrong: &mut Vec<String>) {
    for package in packages.iter().filter(|package| name(package) != "brigade") {
        let package_name = name(package);
        let allowed = ARROWS.iter().find(|(of, _)| *of == package_name);
        let allowed = allowed.map_or(&["brigade-core"][..], |(_, allowed)| *allowed);
        for dependency in list(&package["dependencies"]) {
            let on = name(&dependency);
            let own = on == "brigade" || on.starts_with("brigade-");
            if own && dependency["kind"].is_null() && !allowed.contains(&on.as_str()) {
                wrong.push(format!("{package_name} depends on {on}, which it may not know"));
            }
        }
    }
}

/// The length of functions, by the indentation that rustfmt gives them.
fn functions(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    let story = path
        .components()
        .any(|part| ["tests", "benches"].contains(&&*part.as_os_str().to_string_lossy()));
    let tests = lines.iter().position(|line| *line == "#[cfg(test)]").unwrap_or(lines.len());
    for (first, line) in lines.iter().enumerate() {
        let indentation = line.len() - line.trim_start().len();
        let words = ["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe "];
        let mut rest = line.trim_start();
        while let Some(after) = words.iter().find_map(|word| rest.strip_prefix(word)) {
            rest = after;
        }
        if !rest.starts_with("fn ") || rest.ends_with('}') {
            continue;
        }
        let body =
            lines[first..].iter().position(|line| line.ends_with('{') || line.ends_with(';'));
        if body.is_none_or(|body| lines[first + body].ends_with(';')) {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indentation));
        let length = lines[first..].iter().position(|line| *line == end).unwrap_or(0) + 1;
        let most = if story || first > tests { STORY_MAX } else { FUNCTION_MAX };
        if length > most {
            let place = format!("{}:{}", path.display(), first + 1);
            wrong.push(format!("{place}: a function of {length} lines, more than {most}"));
        }
    }
}

/// What `core` leaves to others.
const NOT_IN_CORE: [&str; 9] = [
    "SystemTime::now",
    "Instant::now",
    "std::fs",
    "std::net",
    "std::io",
    "std::env",
    "thread::spawn",
    "tokio::",
    "fastrand::",
];

fn check(path: &Path, text: &str, wrong: &mut Vec<String>) {
    let place = path.display();
    let lines = text.lines().count();
    if lines > LINES_MAX {
        wrong.push(format!("{place}: {lines} lines, more than {LINES_MAX}"));
    }
    let within = |folder: &str| path.starts_with(folder);
    let tests = text.find("#[cfg(test)]\nmod ").map_or(lines, |at| text[..at].lines().count());
    for (number, line) in text.lines().enumerate() {
        let mut tell = |what: &str| wrong.push(format!("{place}:{}: {what}", number + 1));
        let (open, stub) = (["TO", "DO"].concat(), ["unimplemented", "!("].concat());
        if line.contains(&open) || line.contains(&stub) {
            tell("something was left open");
        }
        // The web framework is not the actor framework.
        if line.replace("actix_web", "").replace("actix-web", "").contains("actix")
            && within("crates")
            && !within("crates/runtime")
            && !within("crates/xtask")
        {
            tell("only the runtime names actix");
        }
        let pure = within("crates/core/src") && number < tests;
        if pure && NOT_IN_CORE.iter().any(|not| line.contains(not)) {
            tell("core reads no clock, does no IO, draws no numbers and spawns nothing");
        }
        if names_queues_otherwise(path, line) {
            tell("another word than the project's: consumer, producer, queue");
        }
        let is_test = number > tests || path.iter().any(|folder| folder == "tests");
        if is_test && is_fixed_wait(line) {
            tell("a test waits for what it wants to see, it does not sleep");
        }
    }
}

/// Queues have consumers and producers here. In code, an error's cause uses the other word, so that
/// word counts only in comments and in the names of types; and the other systems that are measured
/// have their own words.
fn names_queues_otherwise(path: &Path, line: &str) -> bool {
    let [output, input] = [["si", "nk"], ["sou", "rce"]].map(|parts| parts.concat());
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    let comment = line.find("// ").or(line.find("//!")).or(line.find("///"));
    let comment = comment.map_or("", |at| &line[at..]).to_lowercase();
    let mut words = comment.split(|letter: char| !letter.is_alphabetic());
    line.contains(&output)
        || line.contains(&capital(&output))
        || line.contains(&capital(&input)) && !path.starts_with("benches/peers")
        || words.any(|word| word.trim_end_matches('s') == input)
}

/// The longest wait between two checks of something, in milliseconds.
const LOOK_MAX: u32 = 50;

/// Whether a line waits for a time rather than for something. Parking for a moment is how external
/// programs are polled.
fn is_fixed_wait(line: &str) -> bool {
    let Some((_, time)) = line.split_once("park_timeout(") else { return line.contains("sleep(") };
    let moment =
        time.split_once("Duration::from_millis(").and_then(|(_, rest)| rest.split(')').next());
    moment.and_then(|moment| moment.parse().ok()).is_none_or(|moment: u32| moment > LOOK_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(path: &str, text: &str) -> usize {
        let mut wrong = Vec::new();
        check(Path::new(path), text, &mut wrong);
        wrong.len()
    }

    #[test]
    fn tests_wait_for_nothing_but_a_moment() {
        let sleep = ["    sle", "ep(LONG);"].concat();
        let park =
            |ms: u32| ["    park_", &format!("timeout(Duration::from_millis({ms}));")].concat();
        let [never, moment] = [["    park_", "timeout(LONG);"].concat(), park(LOOK_MAX)];
        for (line, wrong) in [(&sleep, 1), (&park(300), 1), (&never, 1), (&moment, 0)] {
            assert_eq!(told("tests/flow.rs", line), wrong, "{line}");
            assert_eq!(told("src/lib.rs", line), 0, "{line}");
            let module = format!("#[cfg(test)]\nmod tests {{\n{line}\n}}\n");
            assert_eq!(told("src/lib.rs", &module), wrong, "{line}");
        }
    }

    #[test]
    fn queues_are_called_queues() {
        let word = ["sou", "rce"].concat();
        assert_eq!(told("src/lib.rs", &format!("error.{word}()")), 0);
        assert_eq!(told("src/lib.rs", &format!("let n = 1; // of this {word}")), 1);
        assert_eq!(told("src/lib.rs", &format!("/// All {word}s.")), 1);
        assert_eq!(told("src/lib.rs", &["struct Kafka", "Sou", "rce;"].concat()), 1);
    }
}
