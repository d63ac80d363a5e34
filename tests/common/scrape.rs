//! A run of the real command whose metrics and health are asked for, and what its documentation says of them.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(180);

/// A run that is killed at the end of its test.
pub(crate) struct Run {
    pub(crate) child: Child,
    /// What it says on standard error after where its metrics are. They are read whether or not a test looks at them:
    /// it would wait for who reads none.
    pub(crate) lines: mpsc::Receiver<String>,
    address: String,
    _directory: tempfile::TempDir,
}

impl Run {
    pub(crate) fn start(yaml: &str) -> Self {
        Self::start_with(yaml, &[])
    }

    /// The same with these variables of the environment.
    pub(crate) fn start_with(yaml: &str, variables: &[(&str, String)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("p.yaml"), yaml).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(directory.path()).args(["run", "p.yaml"]).env_remove("RUST_LOG");
        command.envs(variables.iter().cloned());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = mpsc::channel();
        let said = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            said.map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let line = lines.iter().find(|line| line.contains("metrics at"));
        let line = line.expect("it says where its metrics are");
        let (_, address) = line.split_once("http://").unwrap();
        let address = address.trim_end_matches("/metrics").to_owned();
        Self { child, lines, address, _directory: directory }
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path)
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let code = text.split(' ').nth(1).unwrap().parse().unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        (code, body.to_owned())
    }

    /// Asks until the answer is as it should be.
    pub(crate) fn until(&self, path: &str, is_so: impl Fn(u16, &str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let (code, body) = self.get(path);
            if is_so(code, &body) {
                return body;
            }
            assert!(begun.elapsed() < PATIENCE, "{path} still answers {code} {body}");
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of a line of the exposition.
pub(crate) fn value(text: &str, line: &str) -> f64 {
    let found = text.lines().find_map(|have| have.strip_prefix(line));
    found.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// A metric: its name, its type and its labels.
pub(crate) type Metric = (String, String, BTreeSet<String>);

/// The metrics that a table of the documentation has. `common` are the labels of all that do not say otherwise.
pub(crate) fn documented(table: &str, common: &[&str]) -> BTreeSet<Metric> {
    let metric = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let name = cells.next()?.trim_end_matches('`').to_owned();
        let (kind, labels) = (cells.next()?.to_owned(), cells.next()?);
        let (more, none) = labels.split_once("; no ").unwrap_or((labels, ""));
        let words = |text: &str| -> BTreeSet<String> {
            text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let mut labels = words(more);
        labels.extend(common.iter().map(|label| (*label).to_owned()));
        Some((name, kind, &labels - &words(none)))
    };
    table.lines().filter_map(metric).collect()
}

/// The metrics that an exposition tells. One whose lines have different labels is there as often.
pub(crate) fn told(text: &str) -> BTreeSet<Metric> {
    let typed = |line: &str| {
        let mut words = line.strip_prefix("# TYPE ")?.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    let mut told = BTreeSet::new();
    for (name, kind) in text.lines().filter_map(typed) {
        let parts: &[&str] = match &*kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            "summary" => &["_sum", "_count"],
            _ => &[""],
        };
        let labels = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(&*name)?;
            let rest = parts.iter().find_map(|part| rest.strip_prefix(part));
            labels(rest?)
        });
        told.extend(labels.map(|labels| (name.clone(), kind.clone(), labels)));
    }
    told
}

/// The names of the labels behind a metric's name, but for the bound of a bucket.
fn labels(rest: &str) -> Option<BTreeSet<String>> {
    if rest.starts_with(' ') {
        return Some(BTreeSet::new());
    }
    let (labels, _) = rest.strip_prefix('{')?.split_once("\"}")?;
    let names = labels.split("\",").filter_map(|label| label.split_once("=\""));
    Some(names.map(|(name, _)| name.to_owned()).filter(|name| name != "le").collect())
}

/// What differs between the documentation and what is told; nothing, if all is well.
pub(crate) fn differences(documented: &BTreeSet<Metric>, told: &BTreeSet<Metric>) -> String {
    let missing = told.difference(documented).map(|metric| format!("not documented: {metric:?}\n"));
    let never = documented.difference(told).map(|metric| format!("never told: {metric:?}\n"));
    missing.chain(never).collect()
}

/// What the documentation says of Brigade's own names, and of Volley's.
pub(crate) fn tables() -> (BTreeSet<Metric>, BTreeSet<Metric>) {
    let page = include_str!("../../docs/src/metrics.md");
    let (own, volley) = page.split_once("## The names of Volley").unwrap();
    (documented(own, &["pipeline", "stage"]), documented(volley, &[]))
}
