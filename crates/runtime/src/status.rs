//! The status of a running pipeline: states and counts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use brigade_core::Timestamp;
use brigade_core::connector::Lag;
use brigade_core::outcome::{Ledger, Outcome};
use serde::Serialize;

use crate::clock::now;
use crate::plan::{Plan, QueueKeeper, QueuePlan, StagePlan};

/// The state of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageState {
    /// Connections are being opened or `init` is running, or both will be retried.
    Starting,
    /// Messages flow.
    Running,
    /// Nothing is pulled; what is in flight goes on.
    Paused,
    /// Nothing more is pulled; what is in flight is being resolved.
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
    /// How long operations on its queues take.
    pub queues: Vec<QueueTimes>,
    /// What has vanished or appeared from nowhere according to the books: empty, unless Brigade has
    /// a defect.
    pub unaccounted: Vec<Unaccounted>,
}

/// How many messages wait for a stage in one of its queues.
#[derive(Debug, Clone)]
pub struct QueueDepth {
    /// The pipeline.
    pub pipeline: String,
    /// The queue.
    pub queue: String,
    /// The stage that reads it.
    pub stage: String,
    /// How many.
    pub lag: Lag,
}

/// How often something was done, and how long it took in total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// How often.
    pub count: u64,
    /// The total time.
    pub time: Duration,
}

impl From<(u64, Duration)> for Times {
    fn from((count, time): (u64, Duration)) -> Self {
        Self { count, time }
    }
}

/// How long operations on a queue take.
#[derive(Debug, Clone, Serialize)]
pub struct QueueTimes {
    /// The queue.
    pub queue: String,
    /// Its type; empty for one that the state keeps for a stage.
    pub kind: &'static str,
    /// Results that contained messages; the time includes waiting for them.
    pub reads: Times,
    /// Batches put on it and confirmed.
    pub writes: Times,
    /// Messages that were put on it and confirmed.
    pub written: u64,
    /// Messages that it did not take, each time they were tried.
    pub failed: u64,
    /// Acked batches, with everything that is written along with the ack.
    pub acks: Times,
}

impl QueueTimes {
    pub(crate) fn of(queue: &QueuePlan) -> Self {
        let times = &queue.times;
        Self {
            queue: queue.spec.name.to_string(),
            kind: match &queue.keeper {
                QueueKeeper::Connector(connector) => connector.type_name(),
                QueueKeeper::State => "",
            },
            reads: times.read.get().into(),
            writes: times.write.get().into(),
            written: times.written.get(),
            failed: times.failed.get(),
            acks: times.ack.get().into(),
        }
    }
}

/// Outputs of a stage on their way from one queue to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outputs {
    /// The queue that the message came from; over direct edges, the one its root came from.
    pub input: String,
    /// The queue that it went to.
    pub output: String,
    /// How many.
    pub messages: u64,
}

/// Messages that the books cannot account for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unaccounted {
    /// The stage.
    pub stage: String,
    /// What keeps the page that does not add up.
    pub kind: PlaceKind,
    /// Where in the stage, in words: which consumer, edge or worker.
    pub place: String,
    /// How many have vanished, or, if negative, left without having come.
    pub messages: i64,
}

/// What holds messages in a stage, and keeps a page of the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaceKind {
    /// A consumer, which also settles: what came from its queue, and the outputs of that.
    Consumer,
    /// The way to a worker.
    Edge,
    /// A worker: what is on its desk.
    Worker,
}

impl PlaceKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Consumer, Self::Edge, Self::Worker];

    /// Its name, as in the metrics: one lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Consumer => "consumer",
            Self::Edge => "edge",
            Self::Worker => "worker",
        }
    }
}

impl PipelineStatus {
    /// Whether every stage is running.
    pub fn is_ready(&self) -> bool {
        self.stages.iter().all(|stage| stage.state == StageState::Running)
    }

    /// Whether the books close: nothing has vanished, nothing is in flight, and every message that
    /// came has an outcome. For a running pipeline this depends on the moment, and an actor that
    /// died may have counted a message twice.
    pub fn closes(&self) -> bool {
        let has_outcomes =
            |stage: &StageStatus| stage.in_flight == 0 && stage.without_outcome() == 0;
        self.unaccounted.is_empty() && self.stages.iter().all(has_outcomes)
    }

    /// The stage with this name.
    pub fn stage(&self, name: &str) -> Option<&StageStatus> {
        self.stages.iter().find(|stage| stage.stage == name)
    }
}

/// How many messages came, and how many are done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Messages that came.
    pub received: u64,
    /// Messages that are done, one way or the other: acked, filtered, dead-lettered or discarded.
    pub done: u64,
}

impl Counts {
    fn of(ledger: &Ledger) -> Self {
        let done = Outcome::DONE.iter().map(|outcome| ledger.get(*outcome)).sum();
        Self { received: ledger.received(), done }
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
    /// The stage that feeds it directly, if one does. What came over the direct edge has an outcome
    /// here as soon as the component is done with it, whatever becomes of its outputs; what came from
    /// a queue, when everything that became of it is settled. The counts have both.
    pub fed_by: Option<String>,
    /// What of the counts is of messages that came from its queues.
    pub from_queues: Counts,
    /// Messages handed to it.
    pub received: u64,
    /// Messages done.
    pub acked: u64,
    /// Messages done without output, on purpose.
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
    /// Messages delivered and unresolved, including descendants over direct edges.
    pub in_flight: u64,
    /// Outputs to queues.
    pub outputs: Vec<Outputs>,
    /// Calls of the component.
    pub calls: u64,
    /// Total time spent in its components, summed over all workers.
    pub busy: Duration,
    /// Total time that its workers waited for something to do, summed over all workers.
    pub idle: Duration,
    /// The time that outputs waited for a queue that did not take them.
    pub blocked_for: Duration,
    /// Results of its queues that contained messages.
    pub pulls: u64,
    /// How long ago its last message came.
    pub last_message: Option<Duration>,
    /// Messages settled, and the total time from receiving to settling them.
    pub settled: Times,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Attempts that panicked.
    pub panics: u64,
    /// Attempts that took too long.
    pub timeouts: u64,
    /// Restarts of actors, and retries of starts.
    pub restarts: u64,
    /// Threads of blocking calls that were given up on and still run.
    pub stuck_threads: u64,
    /// Whether outputs wait for a queue that does not take them.
    pub blocked: bool,
}

impl StageStatus {
    /// How many received messages do not have an outcome; if negative, some have two.
    pub fn without_outcome(&self) -> i128 {
        let outcomes = [
            self.acked,
            self.filtered,
            self.dead_lettered,
            self.discarded,
            self.requeued,
            self.released,
        ];
        i128::from(self.received) - outcomes.into_iter().map(i128::from).sum::<i128>()
    }

    pub(crate) fn of(
        plan: &Plan,
        stage: &StagePlan,
        workers: usize,
        state: StageState,
        error: Option<String>,
        in_flight: usize,
    ) -> Self {
        let stats = &stage.stats;
        let count = |outcome| stats.count(outcome);
        let [acked, filtered, dead_lettered, discarded, requeued, released] =
            Outcome::ALL.map(count);
        let last = stats.last_message.get();
        let ago = |at: u64| Timestamp(i64::try_from(at).unwrap_or(i64::MAX));
        Self {
            stage: stage.name.to_string(),
            state,
            error,
            workers,
            fed_by: stage.upstream.map(|up| plan.stages[usize::from(up)].name.to_string()),
            from_queues: Counts::of(&stats.from_queues),
            // After the outcomes: what has one has been received.
            received: stats.received(),
            acked,
            filtered,
            requeued,
            dead_lettered,
            causes: stats.causes.lock().clone(),
            discarded,
            released,
            in_flight: in_flight as u64,
            outputs: outputs(stage, &plan.queues),
            calls: stats.calls.get(),
            busy: stats.busy_ns.time(),
            idle: stats.idle_ns.time(),
            blocked_for: stats.blocked.time(),
            pulls: stats.pulls.get(),
            last_message: (last > 0).then(|| now().since(ago(last))),
            settled: (stats.settled.get(), stats.settled_ns.time()).into(),
            failed_attempts: stats.failed_attempts.get(),
            panics: stats.panics.get(),
            timeouts: stats.timeouts.get(),
            restarts: stats.restarts.get(),
            stuck_threads: stats.stuck.get(),
            blocked: stats.blocked.is(),
        }
    }
}

fn outputs(stage: &StagePlan, queues: &[Arc<QueuePlan>]) -> Vec<Outputs> {
    let outputs = stage.stats.outputs.lock();
    let name = |queue: u16| queues[usize::from(queue)].spec.name.to_string();
    let told = outputs.iter().map(|((input, output), messages)| Outputs {
        input: name(*input),
        output: name(*output),
        messages: *messages,
    });
    told.collect()
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// The status at the end.
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
