//! A pipeline that runs on a server with something wrong: what is told, and that it goes on by
//! itself when it is mended there.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(180);

/// A run whose output is the file `out.jsonl`. It is killed at the end of its test.
pub(crate) struct Watched {
    directory: tempfile::TempDir,
    child: Child,
}

impl Watched {
    pub(crate) fn start(yaml: &str, arguments: &[&str], variables: &[(&str, String)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("p.yaml"), yaml).unwrap();
        let told = fs::File::create(directory.path().join("told")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command.current_dir(directory.path()).args(["run", "p.yaml"]).args(arguments);
        command.env_remove("RUST_LOG").envs(variables.iter().cloned()).stdout(Stdio::null());
        Self { child: command.stderr(told).spawn().unwrap(), directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Appends to a file, as its writer does.
    pub(crate) fn append(&self, name: &str, text: &str) {
        let mut file = fs::OpenOptions::new();
        let mut file = file.create(true).append(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn told(&self) -> String {
        fs::read_to_string(self.path("told")).unwrap()
    }

    /// Waits until this is told three times more: it is told again while it lasts.
    pub(crate) fn wait_for(&self, text: &str) {
        let count = || self.told().matches(text).count();
        let before = count();
        self.wait_until(&format!("`{text}` is told"), || count() >= before + 3);
    }

    /// Waits until one line tells all of this.
    pub(crate) fn wait_for_line(&self, texts: &[&str]) {
        let tells = |line: &str| texts.iter().all(|text| line.contains(text));
        self.wait_until(&format!("{texts:?} is told"), || self.told().lines().any(tells));
    }

    /// Waits until so many different lines are put out.
    pub(crate) fn wait_for_output(&self, lines: usize) {
        self.wait_until(&format!("{lines} lines are put out"), || self.lines().len() >= lines);
    }

    fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < PATIENCE, "never came: {what}\n{}", self.told());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// The lines that it has put out: what was put when a connection was cut may be there twice.
    pub(crate) fn lines(&self) -> BTreeSet<String> {
        let out = fs::read_to_string(self.path("out.jsonl")).unwrap_or_default();
        // The last line may be on its way.
        let whole = out.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| line.trim_end().to_owned()).collect()
    }

    /// Asks it to end.
    pub(crate) fn stop(&self) {
        let process = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &process]).status().unwrap().success());
    }

    /// Waits for its end; says how, and how many different lines it has put out. Its log has not
    /// told the password.
    pub(crate) fn end(&mut self) -> (Option<i32>, usize) {
        let begun = Instant::now();
        let ended = loop {
            if let Some(ended) = self.child.try_wait().unwrap() {
                break ended;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end\n{}", self.told());
            std::thread::park_timeout(Duration::from_millis(20));
        };
        let told = self.told();
        assert!(told.contains("INFO") && !told.contains("secret"), "a secret is logged: {told}");
        (ended.code(), self.lines().len())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
