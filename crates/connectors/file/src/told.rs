//! What cannot be read for now, told now and then.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a log says again that something cannot be read.
const AGAIN: Duration = Duration::from_secs(60);

/// When what was told of the files of a queue.
#[derive(Debug, Default)]
pub(crate) struct Told(HashMap<PathBuf, Instant>);

impl Told {
    /// Warns that a file, or a directory, cannot be read, unless that was told within the last minute.
    pub(crate) fn tell(&mut self, queue: &str, path: &Path, error: &std::io::Error) {
        if self.0.get(path).is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        tracing::warn!(queue, ?path, %error, "it cannot be read; it is tried again until it can");
        self.0.insert(path.to_owned(), Instant::now());
    }
}
