//! The checked graph.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use brigade_core::Codec;
use brigade_core::connector::{Features, Order, QueueSpec};
use brigade_core::field::FieldPath;
use brigade_core::restart::RestartPolicy;
use brigade_core::retry::RetryPolicy;
use indexmap::IndexMap;
use serde_json::Value;

use crate::diagnostic::{Diagnostic, Diagnostics, Severity, did_you_mean};
use crate::file::{Exhausted, Expiry, LogFormat, MetricNames};
use crate::node::Origin;

/// A pipeline that was checked: every name in it exists, and every requirement can be met.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Its name.
    pub pipeline: Arc<str>,
    /// The file's directory.
    pub directory: PathBuf,
    /// Where its state is kept, if the file says.
    pub state: Option<PathBuf>,
    /// Threads.
    pub lanes: usize,
    /// The restart budget of each stage.
    pub restart: RestartPolicy,
    /// How long a stop waits.
    pub stop_deadline: Duration,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_level: Option<String>,
    /// How often each stage logs its counts, if it does.
    pub log_stats: Option<Duration>,
    /// Where metrics and health are served.
    pub metrics: Option<SocketAddr>,
    /// Under which names.
    pub metric_names: MetricNames,
    /// The queues that the stages here use, in the file's order.
    pub queues: IndexMap<Arc<str>, Queue>,
    /// The stages that run here, in the file's order.
    pub stages: IndexMap<Arc<str>, Stage>,
    /// All stages of the file, each with those that write what it reads.
    pub upstream: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    /// What has to be remembered of the whole file to detect at the next start what has
    /// [changed](crate::changes).
    pub fingerprint: Value,
}

/// A checked queue.
#[derive(Debug, Clone)]
pub struct Queue {
    /// What its connector is given.
    pub spec: QueueSpec,
    /// Its type.
    pub type_name: String,
    /// The encoding of payloads.
    pub codec: Codec,
    /// The schema that payloads must conform to.
    pub schema: Option<Arc<Value>>,
    /// Path of a message's event time in its payload.
    pub event_time: Option<FieldPath>,
    /// What it can do.
    pub features: Features,
    /// Which store it is in: [`Connector::store_name`](brigade_core::connector::Connector::store_name).
    pub store: String,
}

/// A checked stage.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Its name.
    pub name: Arc<str>,
    /// Its component.
    pub component: ComponentChoice,
    /// What it reads.
    pub inputs: Inputs,
    /// The queues it writes.
    pub outputs: Vec<Arc<str>>,
    /// The stages it feeds directly.
    pub direct: Vec<Arc<str>>,
    /// Whether a value that names no output goes to all.
    pub copy: bool,
    /// Workers.
    pub workers: usize,
    /// How many messages and bytes may be in flight.
    pub max_in_flight: MaxInFlight,
    /// In which order messages are handled.
    pub order: Order,
    /// Batches.
    pub batch: Option<Batch>,
    /// Retry.
    pub retry: RetryPolicy,
    /// How long one attempt may take.
    pub timeout: Option<Duration>,
    /// How many messages may pass in a given time.
    pub throttle: Option<Throttle>,
    /// How old a message may be.
    pub expire: Option<Expire>,
    /// The queue of its dead letters; `None` if the state keeps them.
    pub dead_letter: Option<Arc<str>>,
    /// What happens when attempts are used up.
    pub on_exhausted: Exhausted,
    /// Whether the component blocks.
    pub blocking: bool,
    /// How many threads of blocking calls may be left behind.
    pub stuck_limit: usize,
    /// Values for the component.
    pub env: BTreeMap<String, String>,
}

/// A component and its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentChoice {
    /// Its name.
    pub name: String,
    /// Its settings; null if there are none.
    pub settings: Value,
}

/// What a stage reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inputs {
    /// Queues.
    Queues {
        /// Their names.
        names: Vec<Arc<str>>,
        /// Whether a queue is read only while those before it are empty.
        priority: bool,
    },
    /// Another stage, without a queue in between.
    Direct(Arc<str>),
}

/// How many messages and bytes may be in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxInFlight {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

/// A batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// At most this many messages.
    pub size: usize,
    /// How long it waits to fill.
    pub age: Duration,
}

/// A throttle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Throttle {
    /// This many messages in `per`.
    pub rate: u32,
    /// The period.
    pub per: Duration,
    /// At most this many at once.
    pub burst: u32,
}

/// An age and what happens to older messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expire {
    /// The age.
    pub after: Duration,
    /// What happens to older messages.
    pub then: Expiry,
}

impl Stage {
    /// The queues it reads; none if it is fed directly.
    pub fn input_queues(&self) -> &[Arc<str>] {
        match &self.inputs {
            Inputs::Queues { names, .. } => names,
            Inputs::Direct(_) => &[],
        }
    }

    /// Whether its outputs or dead letters go to a queue.
    pub(crate) fn writes(&self, queue: &str) -> bool {
        self.outputs.iter().chain(&self.dead_letter).any(|name| **name == *queue)
    }
}

impl Topology {
    /// Restricts the topology to these stages and the queues they use; the others run in other
    /// processes. Queues keep the groups of the whole file.
    ///
    /// # Errors
    /// There is no such stage, or a direct edge or a queue that is not durable would be cut.
    pub fn split(self, names: &[String]) -> Result<Self, Diagnostics> {
        let mut wrong = Vec::new();
        let mut refuse = |message: String, help: Option<String>| {
            let (origin, severity, path) = (Origin::Stages, Severity::Error, String::new());
            wrong.push(Diagnostic { severity, code: "split", message, origin, path, help });
        };
        let here = |name: &str| names.iter().any(|chosen| chosen == name);
        for name in names {
            if !self.stages.contains_key(name.as_str()) {
                let help = did_you_mean(name, self.stages.keys().map(AsRef::as_ref));
                refuse(format!("no stage `{name}`"), help);
            }
        }
        for stage in self.stages.values() {
            if let Inputs::Direct(up) = &stage.inputs
                && here(up) != here(&stage.name)
            {
                let down = &stage.name;
                let help = "name a queue between them, or run both here".to_owned();
                let message =
                    format!("stage `{down}` is fed directly by `{up}`, which would be elsewhere");
                refuse(message, Some(help));
            }
        }
        for [queue, kind, reader, writer] in self.cut_in_memory(&here) {
            let message = format!(
                "queue `{queue}` of type {kind} ends with its process, but stage `{writer}` writes it \
                 and stage `{reader}`, which would be in another, reads it"
            );
            let help =
                "use a durable queue there, as of type `embedded`, or run both here".to_owned();
            refuse(message, Some(help));
        }
        if !wrong.is_empty() {
            return Err(Diagnostics(wrong));
        }
        let mut split = self;
        split.stages.retain(|name, _| here(name));
        let used: Vec<Arc<str>> = split.stages.values().flat_map(used_queues).collect();
        split.queues.retain(|name, _| used.contains(name));
        Ok(split)
    }

    /// The queues that are not durable and have a reader and a writer only one of which is here:
    /// each with its type and the names of one such pair.
    fn cut_in_memory(&self, here: &dyn Fn(&str) -> bool) -> Vec<[&str; 4]> {
        let mut cut = Vec::new();
        for (name, queue) in self.queues.iter().filter(|(_, queue)| !queue.features.durable) {
            let readers = self.stages.values().filter(|stage| stage.input_queues().contains(name));
            let mut pairs = readers.flat_map(|reader| {
                let writers = self.stages.values().filter(|stage| stage.writes(name));
                writers.map(move |writer| (reader, writer))
            });
            let split =
                |(reader, writer): &(&Stage, &Stage)| here(&reader.name) != here(&writer.name);
            if let Some((reader, writer)) = pairs.find(split) {
                cut.push([&**name, &queue.type_name, &*reader.name, &*writer.name]);
            }
        }
        cut
    }
}

fn used_queues(stage: &Stage) -> Vec<Arc<str>> {
    let inputs = stage.input_queues().iter();
    inputs.chain(&stage.outputs).chain(&stage.dead_letter).cloned().collect()
}
