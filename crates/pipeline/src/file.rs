//! The keys of a pipeline file. The comments here are their reference.

use std::collections::BTreeMap;

use brigade_core::connector::{Guarantee, Limit, Order, SchemaRegistry};
use brigade_core::{ByteSize, Codec, Period};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A pipeline file, parsed but not yet checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PipelineFile {
    /// The pipeline's name, a label in logs, metrics and the state.
    pub pipeline: String,
    /// The directory where the pipeline keeps what must survive: embedded queues, file positions,
    /// dead letters. A relative path starts at the working directory, like all paths of data.
    /// Default: the user's state directory.
    #[serde(default)]
    pub state: Option<String>,
    /// Threads that the pipeline runs on. Default: the number of cores.
    #[serde(default)]
    #[schemars(range(min = 1, max = 256))]
    pub lanes: Option<u16>,
    /// How often, and how soon, what died is restarted.
    #[serde(default)]
    pub restart: RestartKeys,
    /// How long a stop waits for what is in flight; what is not done by then is given back.
    #[serde(default = "defaults::stop_deadline")]
    pub stop_deadline: Period,
    /// Logging.
    #[serde(default)]
    pub log: LogKeys,
    /// The address at which metrics and health are served, as in `127.0.0.1:9090`. Default: none.
    #[serde(default)]
    pub metrics: Option<MetricsChoice>,
    /// The queues, by name.
    #[serde(default)]
    pub queues: BTreeMap<String, Value>,
    /// The stages, by name.
    #[serde(default)]
    pub stages: BTreeMap<String, StageKeys>,
}

/// The restart budget of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestartKeys {
    /// At most this many restarts in `period`; beyond it the stage is `failed`.
    pub max_restarts: u32,
    /// The time during which restarts count.
    pub period: Period,
    /// The back-off before the first restart.
    pub min: Period,
    /// The longest back-off.
    pub max: Period,
}

/// Logging.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogKeys {
    /// For people, or one JSON object per line.
    pub format: LogFormat,
    /// How often each stage logs its counts in a line. Default: 1m; 0s means never.
    pub stats: Option<Period>,
    /// What is logged: `info`, or directives as in `info,brigade=debug`. Default: `info`.
    pub level: Option<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Where metrics are served: an address, or a mapping with more keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("expected" = "an address as in `127.0.0.1:9090`, or a mapping with `address`"))]
pub enum MetricsChoice {
    /// An IP address and a port.
    Address(String),
    /// An address and more keys.
    Keys(MetricsKeys),
}

/// Where metrics are served, and under which names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricsKeys {
    /// An IP address and a port, as in `127.0.0.1:9090`.
    pub address: String,
    /// The names of the metrics.
    #[serde(default)]
    pub names: MetricNames,
}

impl MetricsChoice {
    pub(crate) fn address(&self) -> &str {
        match self {
            Self::Address(address) | Self::Keys(MetricsKeys { address, .. }) => address,
        }
    }

    pub(crate) fn names(&self) -> MetricNames {
        match self {
            Self::Address(_) => MetricNames::default(),
            Self::Keys(keys) => keys.names,
        }
    }
}

/// The names of metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MetricNames {
    /// Brigade's own.
    #[default]
    Brigade,
    /// Those of Volley 1.x, for existing dashboards.
    Volley,
}

/// The keys that every queue has, whatever its type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QueueKeys {
    /// The queue's type: the connector it belongs to.
    #[serde(rename = "type")]
    pub kind: String,
    /// The encoding of payloads. Components read and write values whatever it is; what they emit as
    /// bytes is taken to be in the codec of their input. Dead letters are JSON.
    #[serde(default)]
    pub codec: Codec,
    /// A schema registry (Confluent's HTTP API) that payloads are decoded and encoded with: Avro,
    /// Protobuf or JSON, as the schema says. In between they are JSON.
    #[serde(default)]
    pub registry: Option<SchemaRegistry>,
    /// What payloads must conform to: a JSON Schema, the path of a file with one (relative to the
    /// pipeline file), or the name of a registered Rust type.
    #[serde(default)]
    pub schema: Option<SchemaChoice>,
    /// Path of a message's key in its payload: `customer.id`. It takes precedence over the key that
    /// the message already has. A number is taken as a 64-bit integer or float and written as JSON:
    /// `1` and `1.0` are different keys. Default: the key that the message has.
    #[serde(default)]
    pub key: Option<String>,
    /// Path of a message's event time in its payload: milliseconds since 1970, or RFC 3339. It
    /// takes precedence over the event time that the message already has, which is kept if nothing
    /// at the path can be read as a time.
    #[serde(default)]
    pub event_time: Option<String>,
    /// The guarantee required of the queue.
    #[serde(default)]
    pub guarantee: Guarantee,
    /// How much it may hold.
    #[serde(default)]
    pub limit: Limit,
}

/// A JSON Schema, or the name of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("expected" = "a JSON Schema, a path of one, or the name of a registered type"))]
pub enum SchemaChoice {
    /// A path, or the name of a registered type.
    Name(String),
    /// A schema.
    Inline(serde_json::Map<String, Value>),
}

/// The keys of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageKeys {
    /// The component: its name, or its name with settings.
    pub component: ComponentKeys,
    /// What it reads: a queue, another stage (a direct edge), or several queues.
    pub input: InputKeys,
    /// The queues it writes. Stages that name this one as their input also count as outputs.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// Whether a value that names no output goes to all of them.
    #[serde(default)]
    pub copy: bool,
    /// Workers, each with its own clone of the component, over all lanes.
    #[serde(default = "defaults::workers")]
    #[schemars(range(min = 1, max = 1024))]
    pub workers: u16,
    /// How many messages and bytes may be delivered and unresolved at once, in one process. The
    /// stage's inputs share this, each over as many lanes as read it; each may always have at least
    /// one message. What stages on direct edges have counts for the stage that reads the queue.
    #[serde(default)]
    pub max_in_flight: InFlightKeys,
    /// In which order messages are handled.
    #[serde(default)]
    pub order: Order,
    /// For batch components: how many messages make a batch, and how long it waits to fill.
    #[serde(default)]
    pub batch: Option<BatchKeys>,
    /// How often and how soon a failed message is retried.
    #[serde(default)]
    pub retry: RetryKeys,
    /// How long one attempt may take. Default: no limit.
    #[serde(default)]
    pub timeout: Option<Period>,
    /// How many messages may pass in a given time. Default: no limit.
    #[serde(default)]
    pub throttle: Option<ThrottleKeys>,
    /// How old a message may be, by its event time or else by the time at which it was put on the
    /// queue, if the queue knows that: files, generators and memory queues do not. A message with
    /// neither time never expires. Default: any age.
    #[serde(default)]
    pub expire: Option<ExpireKeys>,
    /// The queue of its dead letters. Default: they are kept in the state.
    #[serde(default)]
    pub dead_letter: Option<String>,
    /// What happens to a message that has used up its attempts. A message that the component
    /// rejects always becomes a dead letter.
    #[serde(default)]
    pub on_exhausted: Exhausted,
    /// Whether the component blocks its thread: if so, it has threads of its own.
    #[serde(default)]
    pub blocking: bool,
    /// How many threads of blocking calls that took longer than `timeout` may be left behind before
    /// the stage fails.
    #[serde(default = "defaults::stuck_limit")]
    pub stuck_limit: u16,
    /// Values for the component.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// A component's name, with or without settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("expected" = "a component's name, or a mapping with its name and its settings"))]
pub enum ComponentKeys {
    /// A name.
    Name(String),
    /// A name and settings: exactly one entry.
    Settings(serde_json::Map<String, Value>),
}

/// What a stage reads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("expected" = "a queue, a stage, a list of queues, or `{queues: [..], priority: true}`"))]
pub enum InputKeys {
    /// A queue or a stage.
    One(String),
    /// Queues, served fairly.
    Several(Vec<String>),
    /// Queues, and how they are served.
    Served(ServedKeys),
}

/// Several inputs and how they are served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServedKeys {
    /// The queues.
    pub queues: Vec<String>,
    /// Whether a queue is read only while those before it are empty, as far as they tell within a
    /// second. Default: all are served equally.
    #[serde(default)]
    pub priority: bool,
}

/// How many messages and bytes may be in flight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InFlightKeys {
    /// Messages.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub messages: u32,
    /// Bytes; a larger message goes alone.
    pub bytes: ByteSize,
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchKeys {
    /// At most this many messages.
    #[schemars(range(min = 1, max = 100_000))]
    pub size: u32,
    /// How long a batch waits to fill.
    pub age: Period,
}

/// Retry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetryKeys {
    /// How often a message is tried in total.
    #[schemars(range(min = 1))]
    pub attempts: u32,
    /// The back-off after the first failed attempt; it doubles after each further one, with jitter.
    pub min: Period,
    /// The longest back-off.
    pub max: Period,
}

/// Throttle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThrottleKeys {
    /// This many messages in `per`, over all workers of this process.
    #[schemars(range(min = 1))]
    pub rate: u32,
    /// The period that `rate` applies to.
    #[serde(default = "defaults::second")]
    pub per: Period,
    /// At most this many at once, beyond which no stretch of time has more than `rate` allows.
    /// Default: what comes in 20ms, at least 1 and at most `rate`. With 1, a high rate is not reached: each message
    /// waits for a timer, which is late by up to some milliseconds.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub burst: Option<u32>,
}

/// An age, and what happens to messages that are older.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("expected" = "a length of time such as `1h`, or `{after: 1h, then: discard}`"))]
pub enum ExpireKeys {
    /// An age; older messages become dead letters.
    After(Period),
    /// An age and an action.
    Then(ExpireThen),
}

/// An age, and what happens to messages that are older.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpireThen {
    /// The age.
    pub after: Period,
    /// What happens to older messages.
    #[serde(default)]
    pub then: Expiry,
}

/// What happens to a message that is too old.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Expiry {
    /// It becomes a dead letter.
    #[default]
    DeadLetter,
    /// It is dropped.
    Discard,
}

/// What happens to a message that has used up its attempts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exhausted {
    /// It becomes a dead letter.
    #[default]
    DeadLetter,
    /// It stays in its queue, and later messages with its key wait behind it, until somebody
    /// releases it (`brigade queues release`); other keys go on. Needs `order: key` and a queue
    /// that can park. A redriven message becomes a dead letter.
    Park,
    /// It is dropped.
    Discard,
    /// The stage fails; the message goes back to its queue.
    Halt,
}

impl Default for RestartKeys {
    fn default() -> Self {
        use std::time::Duration;
        Self {
            max_restarts: 5,
            period: Period(Duration::from_secs(60)),
            min: Period(Duration::from_millis(100)),
            max: Period(Duration::from_secs(30)),
        }
    }
}

impl Default for InFlightKeys {
    fn default() -> Self {
        Self { messages: 4096, bytes: ByteSize(64 << 20) }
    }
}

impl Default for BatchKeys {
    fn default() -> Self {
        Self { size: 64, age: Period(std::time::Duration::from_millis(100)) }
    }
}

impl Default for RetryKeys {
    fn default() -> Self {
        use std::time::Duration;
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(30));
        Self { attempts: 5, min: Period(min), max: Period(max) }
    }
}

mod defaults {
    use brigade_core::Period;
    use std::time::Duration;

    pub(super) fn workers() -> u16 {
        1
    }

    pub(super) fn stuck_limit() -> u16 {
        8
    }

    pub(super) fn second() -> Period {
        Period(Duration::from_secs(1))
    }

    pub(super) fn stop_deadline() -> Period {
        Period(Duration::from_secs(30))
    }
}
