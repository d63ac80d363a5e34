//! How a running pipeline is: states and counts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::PoisonError;
use std::time::Duration;

use brigade_core::connector::Lag;
use serde::Serialize;

use crate::plan::StagePlan;

/// The state of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageState {
    /// Connections and `init` are under way, or will be tried again.
    Starting,
    /// Messages flow.
    Running,
    /// Nothing is pulled; what is in flight goes on.
    Paused,
    /// Nothing is pulled any more; what is in flight is being resolved.
    Draining,
    /// It has ended.
    Stopped,
    /// It has given up: its queue keeps the rest.
    Failed,
}

impl fmt::Display for StageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        })
    }
}

/// A pipeline at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct PipelineStatus {
    /// Its name.
    pub pipeline: String,
    /// Its stages, in the file's order.
    pub stages: Vec<StageStatus>,
    /// What the books say has vanished or came from nowhere: nothing, unless Brigade has a defect.
    pub unaccounted: Vec<Unaccounted>,
}

/// How much waits for a stage in one of its queues.
#[derive(Debug, Clone)]
pub struct QueueDepth {
    /// The pipeline.
    pub pipeline: String,
    /// The queue.
    pub queue: String,
    /// The stage that reads it.
    pub stage: String,
    /// How much.
    pub lag: Lag,
}

/// Messages that the books cannot account for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unaccounted {
    /// The stage.
    pub stage: String,
    /// Where in it: a consumer, an edge, a worker.
    pub place: String,
    /// How many have vanished, or, below zero, went without having come.
    pub messages: i64,
}

impl PipelineStatus {
    /// Whether every stage is running.
    pub fn is_ready(&self) -> bool {
        self.stages.iter().all(|stage| stage.state == StageState::Running)
    }

    /// The stage of this name.
    pub fn stage(&self, name: &str) -> Option<&StageStatus> {
        self.stages.iter().find(|stage| stage.stage == name)
    }
}

/// A stage at one moment. Counts are since the start of this process.
#[derive(Debug, Clone, Serialize)]
pub struct StageStatus {
    /// Its name.
    pub stage: String,
    /// Its state.
    pub state: StageState,
    /// Why, if it has failed or is not yet started.
    pub error: Option<String>,
    /// Its workers.
    pub workers: usize,
    /// Messages handed to it.
    pub received: u64,
    /// Messages done, their outputs confirmed.
    pub acked: u64,
    /// Messages done that became nothing, on purpose.
    pub filtered: u64,
    /// Messages put back on their queue after a failed attempt.
    pub requeued: u64,
    /// Messages kept as dead letters.
    pub dead_lettered: u64,
    /// Dead letters by the kind of their cause.
    pub causes: BTreeMap<&'static str, u64>,
    /// Messages given up on and not kept.
    pub discarded: u64,
    /// Messages given back undecided.
    pub released: u64,
    /// Messages delivered and unresolved, descendants over direct edges counted.
    pub in_flight: u64,
    /// Outputs to queues.
    pub emitted: u64,
    /// Calls of the component.
    pub calls: u64,
    /// The time that its components took, all workers together.
    pub busy: Duration,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Attempts that panicked.
    pub panics: u64,
    /// Attempts that took too long.
    pub timeouts: u64,
    /// Actors started again, and starts tried again.
    pub restarts: u64,
    /// Threads of blocking calls that were given up on and still run.
    pub stuck_threads: u64,
    /// Whether outputs wait for a queue that does not take them.
    pub blocked: bool,
}

impl StageStatus {
    pub(crate) fn of(
        stage: &StagePlan,
        workers: usize,
        state: StageState,
        error: Option<String>,
        in_flight: usize,
    ) -> Self {
        let stats = &stage.stats;
        Self {
            stage: stage.name.to_string(),
            state,
            error,
            workers,
            received: stats.received.get(),
            acked: stats.acked.get(),
            filtered: stats.filtered.get(),
            requeued: stats.requeued.get(),
            dead_lettered: stats.dead_lettered.get(),
            causes: stats.causes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            discarded: stats.discarded.get(),
            released: stats.released.get(),
            in_flight: in_flight as u64,
            emitted: stats.emitted.get(),
            calls: stats.calls.get(),
            busy: Duration::from_nanos(stats.busy_ns.get()),
            failed_attempts: stats.failed_attempts.get(),
            panics: stats.panics.get(),
            timeouts: stats.timeouts.get(),
            restarts: stats.restarts.get(),
            stuck_threads: stats.stuck.get(),
            blocked: stats.blocked.load(std::sync::atomic::Ordering::Relaxed),
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// How it was at the end.
    pub status: PipelineStatus,
    /// Stages that failed, with the reason.
    pub failed: Vec<(String, String)>,
    /// Dead letters written.
    pub dead_letters: u64,
    /// Messages that were not resolved in time and were given back.
    pub given_back: u64,
    /// How long the stop took.
    pub took: Duration,
}
