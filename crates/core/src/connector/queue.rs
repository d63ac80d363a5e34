//! Queues and the technologies that provide them: [`Connector`], [`QueueSpec`], [`QueueAdmin`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::connector::{
    ConnectorError, Consumer, ErrorKind, Features, Lag, Outgoing, Produced, Producer, Rejected,
    SchemaRegistry,
};
use crate::field::FieldPath;
use crate::state::StateStore;
use crate::{ByteSize, CauseKind, Message};

/// A technology that provides queues.
#[async_trait]
pub trait Connector: Send + Sync {
    /// The `type:` of its queues in a pipeline file.
    fn type_name(&self) -> &'static str;

    /// What a queue with these settings can do.
    fn features(&self, settings: &Value) -> Features;

    /// The name of the store that a queue with these settings is in, for
    /// [`Features::settle_together`]: queues with the same name can share transactions. Empty, the
    /// default, is the pipeline's state.
    fn store_name(&self, settings: &Value) -> String {
        let _ = settings;
        String::new()
    }

    /// Where a queue is and what it is called there, for documents. Contains no secrets and
    /// contacts no server. By default it is on no server, under its own name.
    fn place(&self, queue: &QueueSpec) -> QueuePlace {
        QueuePlace { names: vec![queue.name.to_string()], ..QueuePlace::default() }
    }

    /// The JSON Schema of its queues' keys in addition to the common ones, made with schemars from
    /// the type that [`check`](Connector::check) parses them into. An object schema.
    fn schema(&self) -> Value;

    /// What is wrong with a queue's settings beyond what the schema checks. Contacts no server; may
    /// read files that the settings name.
    fn check(&self, queue: &QueueSpec) -> Vec<Problem>;

    /// Why these two queues cannot be used together in one pipeline (for example, two names for one
    /// file); `None` if they can. A queue that is both read and written is also compared with
    /// itself. Does no IO.
    fn conflict(&self, one: Used<'_>, other: Used<'_>) -> Option<Problem> {
        let _ = (one, other);
        None
    }

    /// Opens a consumer.
    ///
    /// # Errors
    /// The queue cannot be opened; transient errors are retried with back-off.
    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError>;

    /// Opens a producer.
    ///
    /// # Errors
    /// The queue cannot be opened; transient errors are retried with back-off.
    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError>;

    /// Whether the queue can be reached in its present state. Takes no message and creates no
    /// queue.
    ///
    /// The default implementation asks [`admin`](Connector::admin) for its status; a queue that
    /// cannot be inspected counts as reachable.
    ///
    /// # Errors
    /// The queue cannot be reached; the error says why.
    async fn reach(&self, queue: &QueueSpec, env: &ConnectorEnv) -> Result<(), ConnectorError> {
        match self.admin(queue, env).await {
            Ok(admin) => admin.status().await.map(drop),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens the queue for administration: inspecting and emptying it.
    ///
    /// # Errors
    /// The default implementation returns "unsupported".
    async fn admin(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        let _ = env;
        let kind = self.type_name();
        Err(ConnectorError::unsupported(format!(
            "queue `{}` of type {kind} cannot be looked into",
            queue.name
        )))
    }
}

/// Where a queue is, and what it is called there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueuePlace {
    /// The protocol of its servers, in AsyncAPI's terms: `kafka`, `kafka-secure`, `redis`,
    /// `rediss`.
    pub protocol: &'static str,
    /// Its servers, each a host with an optional port, without users and passwords. Empty: it is on
    /// none.
    pub hosts: Vec<String>,
    /// Its names there: a topic, a stream, a path. Several if it reads several.
    pub names: Vec<String>,
    /// Patterns that match names: regular expressions and the like.
    pub patterns: Vec<String>,
}

/// A queue's settings, and how a pipeline's stages use the queue.
#[derive(Debug, Clone, Copy)]
pub struct Used<'u> {
    /// The queue, with the groups that read it.
    pub queue: &'u QueueSpec,
    /// The keys specific to its type.
    pub settings: &'u Value,
    /// Whether a stage reads it.
    pub read: bool,
    /// Whether a stage writes it.
    pub written: bool,
}

/// A queue as the pipeline file declares it, checked.
#[derive(Debug, Clone)]
pub struct QueueSpec {
    /// Its name in the file.
    pub name: Arc<str>,
    /// The pipeline it belongs to, which separates two pipelines on one state path.
    pub pipeline: Arc<str>,
    /// The groups that read it. Empty: no stage in this file. One stage: the group with the empty
    /// name, so that renaming the stage loses nothing. Several: the stages' names.
    pub groups: Vec<Arc<str>>,
    /// Where to find a message's key in its payload; it takes precedence over a key that the
    /// message already has.
    pub key: Option<FieldPath>,
    /// How much it may hold, if that is limited.
    pub limit: Limit,
    /// The guarantee required of it.
    pub guarantee: Guarantee,
    /// The registry with the schemas of its payloads, if they have one.
    pub registry: Option<SchemaRegistry>,
    /// The keys specific to its type, as in the file, without defaults.
    pub settings: Value,
}

impl QueueSpec {
    /// A queue without limits or settings, read by one stage.
    pub fn new(pipeline: &str, name: &str, settings: Value) -> Self {
        Self {
            name: name.into(),
            pipeline: pipeline.into(),
            groups: vec!["".into()],
            key: None,
            limit: Limit::default(),
            guarantee: Guarantee::default(),
            registry: None,
            settings,
        }
    }

    /// Parses the settings into the connector's own type.
    ///
    /// # Errors
    /// They do not parse; the message names the queue.
    pub fn settings<T: serde::de::DeserializeOwned>(&self) -> Result<T, ConnectorError> {
        serde_json::from_value(self.settings.clone())
            .map_err(|error| ConnectorError::permanent(format!("queue `{}`: {error}", self.name)))
    }
}

/// The stage and group for which a consumer is opened.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The stage, for logs and locks.
    pub stage: Arc<str>,
    /// The group, one of the queue's [`groups`](QueueSpec::groups).
    pub group: Arc<str>,
    /// The required order.
    pub order: Order,
}

/// What a connector is given to work with.
#[derive(Clone)]
pub struct ConnectorEnv {
    /// Stores what must survive: positions, lengths.
    pub state: Arc<dyn StateStore>,
}

impl std::fmt::Debug for ConnectorEnv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectorEnv").field("state", &self.state.store_id()).finish()
    }
}

/// In which order a stage gets a queue's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// In any order.
    #[default]
    None,
    /// One message of a key at a time, in order, also across retries and processes.
    Key,
    /// One message at a time, in the queue's order; a retry blocks the queue.
    Queue,
}

/// The guarantee required of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Nothing is lost; after a crash a message may come twice. If input and output are in one
    /// embedded store, it comes once nevertheless.
    #[default]
    AtLeastOnce,
    /// Outputs and acks are one transaction; refused if they are not in one store.
    ExactlyOnce,
}

/// How much a queue may hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// At most this many messages. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub messages: Option<u64>,
    /// At most this many bytes; each message counts 64 in addition to its contents. Default: no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ByteSize>,
    /// What a producer does when the queue is full.
    #[serde(default)]
    pub when_full: WhenFull,
}

impl Limit {
    /// Why a queue never takes a message, however empty it is: the message alone is larger than the
    /// queue's limit.
    pub fn never_takes(&self, queue: &str, message: &Message) -> Option<Rejected> {
        let (size, max) = (message.size() as u64, self.bytes?.0);
        (size > max).then(|| {
            let message = format!(
                "{size} bytes are more than queue `{queue}` ever holds: its limit is {max} bytes"
            );
            Rejected { kind: CauseKind::TooLarge, message }
        })
    }
}

/// What a producer does when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Wait until there is room: the stage blocks, and its consumer stops pulling.
    #[default]
    Wait,
    /// Refuse the message for good: it becomes a dead letter of the stage that sent it.
    Refuse,
}

/// Something wrong with a queue's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which key, relative to the queue: `["path"]`. Empty: the queue as a whole.
    pub path: Vec<String>,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do, if there is something to say.
    pub help: Option<String>,
}

impl Problem {
    /// Something wrong with the queue as a whole.
    pub fn whole(message: impl Into<String>) -> Self {
        Self { path: Vec::new(), message: message.into(), help: None }
    }

    /// Something wrong with the value of one key.
    pub fn at(key: &str, message: impl Into<String>) -> Self {
        Self { path: vec![key.to_owned()], message: message.into(), help: None }
    }

    /// Adds advice.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// Administration of a queue.
#[async_trait]
pub trait QueueAdmin: Send + Sync {
    /// How many messages it holds, one row per group.
    ///
    /// # Errors
    /// The queue could not be queried.
    async fn status(&self) -> Result<Vec<QueueStatus>, ConnectorError>;

    /// Its first messages after the first `skip`, without taking them.
    ///
    /// # Errors
    /// The queue could not be queried.
    async fn peek(&self, skip: u64, limit: u64) -> Result<Vec<Peeked>, ConnectorError>;

    /// The message at a position, if it is still there.
    ///
    /// # Errors
    /// The queue could not be queried.
    async fn get(&self, position: u64) -> Result<Option<Peeked>, ConnectorError>;

    /// Puts messages on it, as a producer would, and returns a result for each, in the same order.
    /// A queue that does not exist is created.
    ///
    /// # Errors
    /// See [`Producer::produce`].
    async fn put(&self, messages: Vec<Outgoing>) -> Result<Vec<Produced>, ConnectorError>;

    /// Whether messages can be deleted now. Asked before messages are sent elsewhere that are to be
    /// deleted here afterwards: if only that is refused, they are in both places.
    ///
    /// # Errors
    /// They cannot, or the queue could not be queried; the error says why. The default
    /// implementation returns none.
    async fn can_delete(&self) -> Result<(), ConnectorError> {
        Ok(())
    }

    /// Deletes these messages, unless they are being worked on; returns how many.
    ///
    /// # Errors
    /// The queue could not be queried.
    async fn delete(&self, positions: &[u64]) -> Result<u64, ConnectorError>;

    /// Lets parked messages be handed out again, with no attempts used: those at `positions`, or
    /// all. Returns how many.
    ///
    /// # Errors
    /// The queue could not be queried. The default implementation returns an error, for queues that
    /// cannot park.
    async fn release(&self, positions: Option<&[u64]>) -> Result<u64, ConnectorError> {
        let _ = positions;
        Err(ConnectorError::unsupported("queues of this type park no messages"))
    }

    /// Deletes every message that is not being worked on; returns how many.
    ///
    /// # Errors
    /// The queue could not be queried.
    async fn purge(&self) -> Result<u64, ConnectorError>;
}

/// What waits in a queue for one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStatus {
    /// The group; empty for the only one.
    pub group: String,
    /// How many messages wait.
    pub lag: Lag,
}

/// A message as administration shows it.
#[derive(Debug, Clone)]
pub struct Peeked {
    /// Its position, as [`QueueAdmin::get`] takes it.
    pub position: u64,
    /// The group it waits for.
    pub group: String,
    /// The message.
    pub message: Message,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Redeliveries so far.
    pub redeliveries: u32,
    /// Why it is parked, if it is.
    pub parked: Option<String>,
    /// What identifies the holder of its lease, if there is one.
    pub holder: Option<Bytes>,
}
