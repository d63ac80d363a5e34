//! The keys of embedded queues, and the options of stores.

use std::path::PathBuf;
use std::time::Duration;

use brigade_core::Period;
use brigade_core::connector::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The keys of an embedded queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// The directory of a store other than the pipeline's state.
    pub(crate) path: Option<PathBuf>,
    /// When a write counts as done, for the store at `path`. Default: `full`.
    pub(crate) sync: Option<Sync>,
    /// Stores a message only once if it is put again with the same id. Default: every time.
    pub(crate) dedup: Option<Dedup>,
    /// Messages that could have been taken for this long, but were not, are removed: all of them
    /// before a stage that begins to read the queue gets any, and at most 1000 with each write.
    /// Default: never.
    pub(crate) retention: Option<Period>,
}

impl Settings {
    /// What is wrong beyond the schema.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.path.is_none() && self.sync.is_some() {
            let problem = Problem::at("sync", "`sync` is a matter of the whole store");
            problems.push(problem.help("give the queue a `path` of its own"));
        }
        let is_nothing = |period: Option<Period>| period.is_some_and(|period| period.0.is_zero());
        if is_nothing(self.retention) {
            let message = "`retention` must be more than 0s: nothing would stay to be taken";
            let help = "leave it out to keep messages until they are taken";
            problems.push(Problem::at("retention", message).help(help));
        }
        if is_nothing(self.dedup.map(|dedup| dedup.period)) {
            let message = "`for` must be more than 0s: nothing would be remembered";
            let help = "leave out `for` for 1h, or `dedup` to store every message";
            let path = ["dedup", "for"].map(str::to_owned).to_vec();
            problems.push(Problem { path, ..Problem::whole(message).help(help) });
        }
        problems
    }
}

/// Which ids a queue remembers: those within both limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dedup {
    /// How long. Default: 1h.
    #[serde(rename = "for", default = "an_hour")]
    pub(crate) period: Period,
    /// How many, keeping the youngest. Default: 1,000,000.
    #[serde(default = "a_million")]
    #[schemars(range(min = 1))]
    pub(crate) max: u64,
}

fn an_hour() -> Period {
    Period(Duration::from_secs(3600))
}

fn a_million() -> u64 {
    1_000_000
}

/// When a write counts as done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sync {
    /// When the disk has it: survives a power failure.
    #[default]
    Full,
    /// When the operating system has it: survives the death of the process; a power failure may
    /// cost the last moments, but not the file.
    Normal,
}

impl Sync {
    /// The value in a pipeline file.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Normal => "normal",
        }
    }
}

/// How a store is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// When a write counts as done.
    pub sync: Sync,
    /// A process that gave no sign of life for this long is taken for stopped, and its leases are
    /// freed even if it still lives. It gives one every 5 s; the wall clock does not matter, and
    /// time in which the store could not be written does not count. Default: 60 s.
    pub lease: Duration,
    /// How often a message may be alone in flight while its process dies before it is given up on.
    /// Default: 5.
    pub crash_limit: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { sync: Sync::Full, lease: Duration::from_secs(60), crash_limit: 5 }
    }
}
