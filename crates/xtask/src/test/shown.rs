//! Which test covers which of Volley's weaknesses and behaviours, and whether it passed in this
//! run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// The page with the table, within the tree.
pub(super) const PAGE: &str = "docs/src/from-volley.md";
const WEAKNESSES: u32 = 23;
const BEHAVIOURS: u32 = 62;

/// How tests ended, by their names without modules.
#[derive(Debug, Default)]
pub(super) struct Outcomes(BTreeMap<String, Outcome>);

/// If several tests have the same name, a failure outranks a pass, and a pass outranks "not run".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Ignored,
    Passed,
    Failed,
}

impl Outcomes {
    /// Parses a line of `cargo test`'s output, if it is about a test.
    pub(super) fn read(&mut self, line: &str) {
        let Some((before, how)) = line.trim_end().rsplit_once(" ... ") else { return };
        // A process started by a test may have begun the line.
        let Some(at) = before.rfind("test ") else { return };
        let outcome = match how.split([',', ' ']).next() {
            Some("ok") => Outcome::Passed,
            Some("ignored") => Outcome::Ignored,
            Some("FAILED") => Outcome::Failed,
            _ => return,
        };
        let path = before[at..].split(' ').nth(1).unwrap_or_default();
        let name = path.rsplit("::").next().unwrap_or(path).to_owned();
        let known = self.0.entry(name).or_insert(outcome);
        *known = outcome.max(*known);
    }
}

/// A row of the table: its subject, and the tests that show it, or what is said instead.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    number: String,
    tests: Vec<String>,
    told: String,
}

impl Row {
    fn of(line: &str) -> Option<Self> {
        let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').collect();
        let [number, _, told] = cells[..] else { return None };
        // Backquoted words that look like a test's name are one.
        let words = told.split('`').skip(1).step_by(2);
        let tests = words.filter(|word| word.matches('_').count() > 2).map(str::to_owned);
        let (number, told) = (number.trim().to_owned(), told.trim().to_owned());
        Some(Self { number, tests: tests.collect(), told })
    }
}

/// The line to print for each row, and what is wrong with it.
pub(super) fn table(
    page: &str,
    outcomes: &Outcomes,
    left_out: &BTreeSet<String>,
) -> (Vec<String>, Vec<String>) {
    let rows: Vec<Row> = page.lines().filter_map(Row::of).collect();
    let (mut lines, mut wrong) = (vec![line("number", "how", "shown by")], Vec::new());
    let weaknesses = (1..=WEAKNESSES).map(|number| format!("W{number}"));
    for number in weaknesses.chain((1..=BEHAVIOURS).map(|number| number.to_string())) {
        let mut of_number = rows.iter().filter(|row| row.number == number);
        let (row, another) = (of_number.next(), of_number.next());
        let Some(row) = row.filter(|row| another.is_none() && !row.told.is_empty()) else {
            let how = if another.is_some() { "twice" } else { "missing" };
            lines.push(line(&number, how, ""));
            wrong.push(format!("{number} is {how} in {PAGE}"));
            continue;
        };
        if row.tests.is_empty() {
            lines.push(line(&number, "told", &row.told));
        }
        for test in &row.tests {
            let how = match outcomes.0.get(test) {
                Some(Outcome::Passed) => "passed",
                Some(Outcome::Failed) => "FAILED",
                _ if left_out.contains(test) => "left out",
                _ => "NOT RUN",
            };
            lines.push(line(&number, how, test));
            if how == "FAILED" || how == "NOT RUN" {
                wrong.push(format!("{number}: the test `{test}`: {}", how.to_lowercase()));
            }
        }
    }
    (lines, wrong)
}

fn line(number: &str, how: &str, what: &str) -> String {
    format!("{number:<8} {how:<10} {what}").trim_end().to_owned()
}

/// The tests that are not built without some features, or that are in packages left out.
pub(super) fn left_out(
    off: &BTreeSet<String>,
    packages: &[&str],
) -> anyhow::Result<BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut metadata = Command::new(cargo);
    metadata.args(["metadata", "--no-deps", "--format-version", "1"]);
    let output = metadata.output().context("cargo cannot be run")?;
    ensure!(output.status.success(), "`cargo metadata` failed");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let mut names = BTreeSet::new();
    for file in files_left_out(&metadata, off, packages) {
        read_tests(&file, &mut names)?;
    }
    Ok(names)
}

fn files_left_out(metadata: &Value, off: &BTreeSet<String>, without: &[&str]) -> Vec<PathBuf> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut files = Vec::new();
    for package in list(&metadata["packages"]) {
        if without.contains(&&*text(&package["name"])) {
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            files.extend(manifest.parent().map(Path::to_owned));
        }
        let needs = |target: &Value| {
            let features = list(&target["required-features"]);
            features.iter().any(|feature| off.contains(&text(feature)))
        };
        let targets = list(&package["targets"]).into_iter().filter(needs);
        files.extend(targets.map(|target| PathBuf::from(text(&target["src_path"]))));
    }
    files
}

/// The names of the tests in a file, or in all files below a directory.
fn read_tests(path: &Path, names: &mut BTreeSet<String>) -> anyhow::Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            read_tests(&entry?.path(), names)?;
        }
    } else if path.extension().is_some_and(|end| end == "rs") {
        let text = std::fs::read_to_string(path)?;
        names.extend(tests_in(&text));
    }
    Ok(())
}

fn tests_in(text: &str) -> Vec<String> {
    let name = |test: &str| {
        let (_, function) = test.split_once("fn ")?;
        let end = function.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        Some(function[..end].to_owned())
    };
    let plain = text.split("#[test]").skip(1);
    plain.chain(text.split("#[tokio::test").skip(1)).filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A page whose rows are all shown by one test, except for these.
    fn page(but: &[(&str, &str)]) -> String {
        let weaknesses = (1..=WEAKNESSES).map(|number| format!("W{number}"));
        let all = weaknesses.chain((1..=BEHAVIOURS).map(|number| number.to_string()));
        let row = |number: String| {
            let other = but.iter().find(|(of, _)| *of == number).map(|(_, shown)| *shown);
            format!("| {number} | what | {} |\n", other.unwrap_or("`a_test_of_it_all`"))
        };
        format!("| | | shown by |\n|---|---|---|\n{}", all.map(row).collect::<String>())
    }

    fn outcomes(text: &str) -> Outcomes {
        let mut outcomes = Outcomes::default();
        text.lines().for_each(|line| outcomes.read(line));
        outcomes
    }

    const RAN: &str = "test a_test_of_it_all ... ok\n\
        noise of a processtest some::module::one_that_broke_down ... FAILED\n\
        test one_that_is_slow_today ... ignored, takes an hour\n\
        test shared_by_two_connectors_here ... ok\n\
        test shared_by_two_connectors_here ... ignored\n\
        test nothing at all\nfine ... ok";

    #[test]
    fn each_number_is_told_with_its_tests_and_whether_they_passed() {
        let two = "`a_test_of_it_all`, and `shared_by_two_connectors_here`";
        let page = page(&[("W2", "Python's alone"), ("7", two)]);
        let (lines, wrong) = table(&page, &outcomes(RAN), &BTreeSet::new());
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!(lines.len(), 1 + 23 + 62 + 1);
        assert_eq!(lines[1], "W1       passed     a_test_of_it_all");
        assert_eq!(lines[2], "W2       told       Python's alone");
        assert_eq!(lines[31], "7        passed     shared_by_two_connectors_here");
    }

    #[test]
    fn what_is_missing_failed_or_did_not_run_is_wrong() {
        let page = page(&[
            ("W3", "`one_that_broke_down`"),
            ("W4", "`one_that_is_slow_today`"),
            ("5", "`no_test_but_a_function`"),
            ("6", "`only_with_a_real_server`"),
            ("8", ""),
        ]);
        let page = page.replace("| 9 | what", "| 8.5 | what").replace("| 11 |", "| 10 |");
        let left_out = ["only_with_a_real_server".to_owned()].into();
        let (lines, wrong) = table(&page, &outcomes(RAN), &left_out);
        assert_eq!(
            wrong,
            [
                "W3: the test `one_that_broke_down`: failed",
                "W4: the test `one_that_is_slow_today`: not run",
                "5: the test `no_test_but_a_function`: not run",
                "8 is missing in docs/src/from-volley.md",
                "9 is missing in docs/src/from-volley.md",
                "10 is twice in docs/src/from-volley.md",
                "11 is missing in docs/src/from-volley.md",
            ]
        );
        assert!(lines.contains(&line("6", "left out", "only_with_a_real_server")));
    }

    #[test]
    fn what_is_left_out_is_found_by_features_and_packages() {
        let metadata = json!({ "packages": [
            { "name": "one", "manifest_path": "/a/Cargo.toml", "targets": [
                { "src_path": "/a/tests/x.rs", "required-features": ["real-kafka"] },
                { "src_path": "/a/tests/y.rs", "required-features": ["real-redis"] },
                { "src_path": "/a/src/lib.rs" },
            ] },
            { "name": "two", "manifest_path": "/b/Cargo.toml", "targets": [] },
        ] });
        let off = ["real-kafka".to_owned()].into();
        let files = files_left_out(&metadata, &off, &["two"]);
        assert_eq!(files, [Path::new("/a/tests/x.rs"), Path::new("/b")]);
        let text = "#[test]\n#[expect(x)]\nfn one() {}\nfn no() {}\n#[tokio::test(flavor)]\nasync fn two(a: u8)";
        assert_eq!(tests_in(text), ["one", "two"]);
    }
}
