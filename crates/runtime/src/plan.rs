//! The plan: a checked topology with its code, connectors and compiled schemas. The actors read it
//! and never change it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::Codec;
use brigade_core::component::{AnyComponent, StageContext};
use brigade_core::connector::{Connector, ConnectorEnv, Features, Order, QueueSpec};
use brigade_core::credit::Credit;
use brigade_core::delivery::HandedOut;
use brigade_core::field::FieldPath;
use brigade_core::flight::Since;
use brigade_core::outcome::Outcome;
use brigade_core::restart::RestartPolicy;
use brigade_core::retry::RetryPolicy;
use brigade_core::throttle::TokenBucket;
use brigade_pipeline::{Exhausted, Expire};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::now;
use crate::stats::{Counter, StageStats, Timing};

/// One pipeline, ready to be started.
pub(crate) struct Plan {
    pub(crate) pipeline: Arc<str>,
    pub(crate) stages: Vec<Arc<StagePlan>>,
    pub(crate) queues: Vec<Arc<QueuePlan>>,
    pub(crate) lanes: usize,
    pub(crate) restart: RestartPolicy,
    pub(crate) stop_deadline: Duration,
    pub(crate) env: ConnectorEnv,
    /// All stages of the file, including those of other processes, each with the stages that write
    /// what it reads.
    pub(crate) all_stages: BTreeMap<Arc<str>, Vec<Arc<str>>>,
}

/// A queue that a stage of this process reads or writes.
pub(crate) struct QueuePlan {
    pub(crate) index: u16,
    pub(crate) spec: QueueSpec,
    pub(crate) keeper: QueueKeeper,
    pub(crate) features: Features,
    /// The encoding of its payloads.
    pub(crate) codec: Codec,
    pub(crate) schema: Option<jsonschema::Validator>,
    pub(crate) event_time: Option<FieldPath>,
    pub(crate) times: QueueTimings,
}

/// How long operations on a queue take.
pub(crate) struct QueueTimings {
    /// From requesting messages until some came.
    pub(crate) read: Timing,
    /// Putting a batch on it, confirmed.
    pub(crate) write: Timing,
    /// Acking a batch, with everything that is written along with it.
    pub(crate) ack: Timing,
    /// Messages that were put on it and confirmed; those that it did not take, counted at each try.
    pub(crate) written: Counter,
    pub(crate) failed: Counter,
}

impl QueueTimings {
    pub(crate) fn new(queue: &QueueSpec) -> Self {
        let of = |operation| Timing::new(&queue.pipeline, &queue.name, operation);
        let (written, failed) = (Counter::default(), Counter::default());
        Self { read: of("read"), write: of("write"), ack: of("ack"), written, failed }
    }
}

/// What keeps a queue.
pub(crate) enum QueueKeeper {
    /// A connector, as the pipeline file says.
    Connector(Arc<dyn Connector>),
    /// The state: dead letters and redrives for which the file names no queue.
    State,
}

impl QueueKeeper {
    /// The queue's `type:` in the pipeline file.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Connector(connector) => connector.type_name(),
            Self::State => "state",
        }
    }
}

impl QueuePlan {
    /// The group in which a stage reads it: the stage's own name only if there are several readers.
    pub(crate) fn group_of(&self, stage: &StagePlan) -> Arc<str> {
        let own = self.spec.groups.iter().find(|group| ***group == *stage.name);
        own.cloned().unwrap_or_else(|| "".into())
    }
}

/// A stage of this process.
pub(crate) struct StagePlan {
    pub(crate) index: u16,
    pub(crate) name: Arc<str>,
    /// What every lane's template is cloned from.
    component: Mutex<Box<dyn AnyComponent>>,
    pub(crate) context: Arc<StageContext>,
    /// The queues it reads, the redrive queue last; for a stage fed directly, only the redrive
    /// queue.
    pub(crate) inputs: Vec<u16>,
    /// Whether an earlier input has priority over a later one.
    pub(crate) priority: bool,
    /// The stage that feeds it directly.
    pub(crate) upstream: Option<u16>,
    pub(crate) outputs: Vec<(Arc<str>, Target)>,
    pub(crate) copy: bool,
    pub(crate) workers: usize,
    pub(crate) credit: Credit,
    /// Counts what its consumers hand out, for as long as the pipeline runs.
    pub(crate) handed_out: HandedOut,
    /// Notified when a settlement is done storing what the stages of the line that begins here
    /// wrote.
    pub(crate) stored: Notify,
    pub(crate) order: Order,
    pub(crate) batch: Option<(usize, Duration)>,
    pub(crate) retry: RetryPolicy,
    pub(crate) timeout: Option<Duration>,
    /// Shared by all workers of the stage in this process.
    pub(crate) throttle: Option<Mutex<TokenBucket>>,
    pub(crate) expire: Option<Expire>,
    /// The queue of its dead letters.
    pub(crate) dead_letters: u16,
    pub(crate) on_exhausted: Exhausted,
    pub(crate) blocking: bool,
    pub(crate) stuck_limit: usize,
    pub(crate) stats: StageStats,
    /// How long a message takes in the component, for a metrics recorder installed by the program.
    call_seconds: metrics::Histogram,
    /// From receiving a message until it is settled.
    settle_seconds: metrics::Histogram,
    /// From when a message was put on its queue until it is settled.
    age_seconds: metrics::Histogram,
    #[cfg(feature = "sabotage")]
    pub(crate) sabotage: crate::sabotage::Sabotage,
}

/// Where an output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// To a queue.
    Queue(u16),
    /// To a stage of the same process, over a direct edge.
    Direct(u16),
}

impl StagePlan {
    /// The stages that it feeds directly.
    pub(crate) fn feeds(&self) -> impl Iterator<Item = u16> {
        self.outputs.iter().filter_map(|(_, target)| match target {
            Target::Direct(stage) => Some(*stage),
            Target::Queue(_) => None,
        })
    }

    /// The queues of its outputs.
    fn writes(&self) -> impl Iterator<Item = u16> {
        self.outputs.iter().filter_map(|(_, target)| match target {
            Target::Queue(queue) => Some(*queue),
            Target::Direct(_) => None,
        })
    }

    /// Takes over everything that is the same in the file's stage; the caller resolves names.
    pub(crate) fn new(
        stage: &brigade_pipeline::Stage,
        component: Box<dyn AnyComponent>,
        edges: StageEdges,
        context: StageContext,
    ) -> Self {
        let throttle = stage.throttle.as_ref();
        let pipeline = context.pipeline.to_string();
        let histogram = |name| {
            metrics::histogram!(
                name, "pipeline" => pipeline.clone(), "stage" => stage.name.to_string()
            )
        };
        Self {
            index: edges.index,
            name: Arc::clone(&stage.name),
            component: Mutex::new(component),
            context: Arc::new(context),
            inputs: edges.inputs,
            priority: edges.priority,
            upstream: edges.upstream,
            outputs: edges.outputs,
            copy: stage.copy,
            workers: stage.workers,
            credit: Credit {
                messages: stage.max_in_flight.messages,
                bytes: stage.max_in_flight.bytes,
            },
            handed_out: HandedOut::default(),
            stored: Notify::new(),
            order: stage.order,
            batch: stage.batch.map(|batch| (batch.size, batch.age)),
            retry: stage.retry,
            timeout: stage.timeout,
            throttle: throttle.map(|t| Mutex::new(TokenBucket::new(t.rate, t.per, t.burst))),
            expire: stage.expire,
            dead_letters: edges.dead_letters,
            on_exhausted: stage.on_exhausted,
            blocking: stage.blocking,
            stuck_limit: stage.stuck_limit,
            stats: edges.stats,
            call_seconds: histogram("brigade_component_seconds"),
            settle_seconds: histogram("brigade_settle_seconds"),
            age_seconds: histogram("brigade_age_seconds"),
            #[cfg(feature = "sabotage")]
            sabotage: Default::default(),
        }
    }

    /// Records that `n` messages were handled in this time, one after the other.
    pub(crate) fn handled(&self, n: usize, took: Duration) {
        self.stats.busy_ns.add_time(took);
        self.call_seconds.record_many(took.as_secs_f64() / n.max(1) as f64, n.max(1));
    }

    /// Records that `n` messages came together.
    pub(crate) fn came(&self, n: usize) {
        self.stats.from_queues.receive(n as u64);
        self.stats.pulls.add(1);
        self.heard();
    }

    /// Records that messages come now.
    pub(crate) fn heard(&self) {
        self.stats.last_message.set(u64::try_from(now().0).unwrap_or(0));
    }

    /// Records that these messages are settled. Those that came together are counted together.
    pub(crate) fn settled(&self, since: &[Since]) {
        let (at, time) = (Instant::now(), now());
        self.stats.settled.add(since.len());
        for run in since.chunk_by(|one, next| one.received == next.received) {
            let took = at.duration_since(run[0].received);
            let all = took.saturating_mul(u32::try_from(run.len()).unwrap_or(u32::MAX));
            self.stats.settled_ns.add_time(all);
            self.settle_seconds.record_many(took, run.len());
        }
        for run in since.chunk_by(|one, next| one.enqueued_at == next.enqueued_at) {
            if let Some(enqueued_at) = run[0].enqueued_at {
                self.age_seconds.record_many(time.since(enqueued_at), run.len());
            }
        }
    }

    /// A copy of the component as registered, before any `init`.
    pub(crate) fn component(&self) -> Box<dyn AnyComponent> {
        self.component.lock().fresh()
    }
}

/// A stage's connections in the plan, with names resolved to numbers.
pub(crate) struct StageEdges {
    pub(crate) index: u16,
    pub(crate) inputs: Vec<u16>,
    pub(crate) priority: bool,
    pub(crate) upstream: Option<u16>,
    pub(crate) outputs: Vec<(Arc<str>, Target)>,
    pub(crate) dead_letters: u16,
    pub(crate) stats: StageStats,
}

impl Plan {
    /// A number that changes whenever a message moves.
    pub(crate) fn moved(&self) -> u64 {
        let moved = self.stages.iter().map(|stage| {
            let stats = &stage.stats;
            let went: u64 = Outcome::ALL.into_iter().map(|outcome| stats.count(outcome)).sum();
            stats.received() + stats.calls.get() + went
        });
        moved.sum()
    }

    /// How many messages have become dead letters. One that fails in a stage that is fed directly
    /// counts once, at the stage that read it.
    pub(crate) fn dead_letters(&self) -> u64 {
        let dead = |stage: &Arc<StagePlan>| stage.stats.from_queues.get(Outcome::DeadLettered);
        self.stages.iter().map(dead).sum()
    }

    /// The stages whose outputs a stage reads.
    pub(crate) fn upstream_of(&self, stage: &str) -> &[Arc<str>] {
        self.all_stages.get(stage).map_or(&[], Vec::as_slice)
    }

    /// The stages fed by this one over direct edges, in downstream order, itself first.
    pub(crate) fn line(&self, root: u16) -> Vec<u16> {
        let mut line = vec![root];
        let mut next = 0;
        while let Some(stage) = line.get(next).copied() {
            line.extend(self.stages[usize::from(stage)].feeds());
            next += 1;
        }
        line
    }

    /// The queues that the stages of a line may write, dead letters included, each once.
    pub(crate) fn written(&self, line: &[u16]) -> Vec<u16> {
        let stages = line.iter().map(|stage| &self.stages[usize::from(*stage)]);
        let mut queues: Vec<u16> =
            stages.flat_map(|stage| stage.writes().chain([stage.dead_letters])).collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }
}
