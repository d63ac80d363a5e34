//! The line that shows, on a terminal, the progress of a run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use brigade_runtime::{PipelineStatus, QueueDepth, Watcher};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

/// How often the line is redrawn.
const EVERY: Duration = Duration::from_millis(500);
/// How many of those intervals the rate is computed over.
const RATES: usize = 6;

/// A line at the bottom of the terminal; nothing if standard error is not one.
#[derive(Clone)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{spinner} {wide_msg}");
        let bar = ProgressBar::new_spinner();
        Self(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())))
    }

    /// Writes something else while the line is hidden.
    pub(crate) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }

    /// Shows the progress of the pipelines periodically, until it is dropped.
    pub(crate) async fn tell(self, watcher: Watcher, finite: bool) {
        if self.0.is_hidden() {
            return;
        }
        let mut seen: Vec<(Instant, u64)> = Vec::new();
        loop {
            tokio::time::sleep(EVERY).await;
            let (pipelines, depths) = (watcher.status().await, watcher.depths().await);
            let done = done(&pipelines);
            seen.push((Instant::now(), done));
            if seen.len() > RATES {
                seen.remove(0);
            }
            let left = finite.then(|| left(&depths)).flatten();
            self.0.set_message(line(&pipelines, rate(&seen), left));
            self.0.tick();
        }
    }

    /// Removes the line.
    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// Messages from queues that have come to an outcome, summed over all stages that read them.
fn done(pipelines: &[PipelineStatus]) -> u64 {
    let stages = pipelines.iter().flat_map(|pipeline| &pipeline.stages);
    stages.map(|stage| stage.from_queues.done).sum()
}

/// Outcomes per second.
fn rate(seen: &[(Instant, u64)]) -> f64 {
    match (seen.first(), seen.last()) {
        (Some((from, before)), Some((to, now))) if to > from => {
            now.saturating_sub(*before) as f64 / to.duration_since(*from).as_secs_f64()
        }
        _ => 0.0,
    }
}

/// How many messages still wait, if every queue knows.
fn left(depths: &[QueueDepth]) -> Option<u64> {
    let waiting = |depth: &QueueDepth| {
        Some(depth.lag.ready? + depth.lag.delayed.unwrap_or(0) + depth.lag.in_flight.unwrap_or(0))
    };
    let all: Option<BTreeMap<_, _>> =
        depths.iter().map(|depth| Some(((&depth.queue, &depth.stage), waiting(depth)?))).collect();
    Some(all?.into_values().sum())
}

fn line(pipelines: &[PipelineStatus], rate: f64, left: Option<u64>) -> String {
    let stages = || pipelines.iter().flat_map(|pipeline| &pipeline.stages);
    let sum = |of: fn(&brigade_runtime::StageStatus) -> u64| stages().map(of).sum::<u64>();
    let mut line = format!("{} done, {}/s", HumanCount(done(pipelines)), HumanCount(rate as u64));
    let mut add = |count: u64, what: &str| {
        if count > 0 {
            // Writing to a string cannot fail.
            let _ = write!(line, ", {} {what}", HumanCount(count));
        }
    };
    add(sum(|stage| stage.in_flight), "in flight");
    add(sum(|stage| stage.causes.values().sum()), "dead letters");
    add(sum(|stage| stage.failed_attempts), "failed attempts");
    if let Some(left) = left {
        let _ = write!(line, ", {} left", HumanCount(left));
        if rate >= 1.0 {
            let time = Duration::from_secs_f64(left as f64 / rate);
            let _ = write!(line, ": {}", HumanDuration(time));
        }
    }
    let waiting: Vec<&str> =
        stages().filter(|stage| stage.blocked).map(|stage| stage.stage.as_str()).collect();
    if !waiting.is_empty() {
        let _ = write!(line, "; waiting for a queue to take outputs: {}", waiting.join(", "));
    }
    line
}

#[cfg(test)]
mod tests {
    use brigade_core::connector::Lag;

    use super::*;

    fn depth(ready: Option<u64>, delayed: Option<u64>) -> QueueDepth {
        let lag = Lag { ready, delayed, ..Lag::default() };
        QueueDepth { pipeline: "p".into(), queue: "q".into(), stage: "s".into(), lag }
    }

    #[test]
    fn what_is_left_is_known_if_every_queue_knows() {
        assert_eq!(left(&[depth(Some(3), Some(2))]), Some(5));
        let mut other = depth(None, Some(2));
        other.stage = "t".into();
        assert_eq!(left(&[depth(Some(3), None), other]), None);
    }

    #[test]
    fn an_endless_run_tells_its_rate_and_a_finite_one_what_is_left_too() {
        assert_eq!(line(&[], 1234.5, None), "0 done, 1,234/s");
        assert_eq!(line(&[], 2.0, Some(20)), "0 done, 2/s, 20 left: 10 seconds");
        assert_eq!(line(&[], 0.0, Some(20)), "0 done, 0/s, 20 left");
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let from = Instant::now();
        assert_eq!(rate(&[(from, 10)]), 0.0);
        assert_eq!(rate(&[(from, 10), (from + Duration::from_secs(2), 30)]), 10.0);
    }
}
