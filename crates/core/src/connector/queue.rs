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

/// A technology that has queues.
#[async_trait]
pub trait Connector: Send + Sync {
    /// The `type:` of its queues in a pipeline file.
    fn type_name(&self) -> &'static str;

    /// What a queue with these settings can do.
    fn features(&self, settings: &Value) -> Features;

    /// Which store a queue with these settings is in, for [`Features::settle_together`]: queues with
    /// the same name can share transactions. Empty, the default: the pipeline's state.
    fn store_name(&self, settings: &Value) -> String {
        let _ = settings;
        String::new()
    }

    /// Where a queue is and what it is called there, for documents. Nothing secret; asks no server. By
    /// default it is on no server, under its own name.
    fn place(&self, queue: &QueueSpec) -> QueuePlace {
        QueuePlace { names: vec![queue.name.to_string()], ..QueuePlace::default() }
    }

    /// The JSON Schema of the keys that its queues have beside the common ones: made with schemars
    /// from the type that [`check`](Connector::check) reads them into. An object schema.
    fn schema(&self) -> Value;

    /// What is wrong with a queue's settings beyond what the schema says. Asks no server; files that the
    /// settings name may be read.
    fn check(&self, queue: &QueueSpec) -> Vec<Problem>;

    /// Why two queues of one pipeline cannot be used so beside each other, if they cannot: two names
    /// of one file. A queue that is read and written is held against itself. Does no IO.
    fn conflict(&self, one: Used<'_>, other: Used<'_>) -> Option<Problem> {
        let _ = (one, other);
        None
    }

    /// Opens a consumer.
    ///
    /// # Errors
    /// The queue cannot be opened; transient errors are tried again with back-off.
    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError>;

    /// Opens a producer.
    ///
    /// # Errors
    /// The queue cannot be opened; transient errors are tried again with back-off.
    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError>;

    /// Whether the queue can be reached as it stands. Takes no message and makes no queue.
    ///
    /// By default what [`admin`](Connector::admin) says of it; a queue that cannot be looked into
    /// counts as reached.
    ///
    /// # Errors
    /// It cannot, and why.
    async fn reach(&self, queue: &QueueSpec, env: &ConnectorEnv) -> Result<(), ConnectorError> {
        match self.admin(queue, env).await {
            Ok(admin) => admin.status().await.map(drop),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Opens the queue for people: to look into it and to empty it.
    ///
    /// # Errors
    /// By default: unsupported.
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
    /// How its servers are spoken to, in AsyncAPI's words: `kafka`, `kafka-secure`, `redis`, `rediss`.
    pub protocol: &'static str,
    /// Its servers, each a host and perhaps a port, without users and passwords. Empty: it is on none.
    pub hosts: Vec<String>,
    /// Its names there: a topic, a stream, a path. Several where it reads several.
    pub names: Vec<String>,
    /// Names that stand for others: regular expressions and the like.
    pub patterns: Vec<String>,
}

/// A queue's settings, and what a pipeline's stages do with the queue.
#[derive(Debug, Clone, Copy)]
pub struct Used<'u> {
    /// The queue, with the groups that read it.
    pub queue: &'u QueueSpec,
    /// The keys of its type.
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
    /// The pipeline it belongs to; two pipelines on one state path are kept apart by it.
    pub pipeline: Arc<str>,
    /// The groups that read it. Empty: nobody in this file. One stage: the group with the empty
    /// name, so that renaming the stage loses nothing. Several: the stages' names.
    pub groups: Vec<Arc<str>>,
    /// Where a message's key stands in its payload; it goes before the key that the message has already.
    pub key: Option<FieldPath>,
    /// How much it may hold, if that is limited.
    pub limit: Limit,
    /// What is asked of it.
    pub guarantee: Guarantee,
    /// Where the schemas of its payloads are, if they are in a registry.
    pub registry: Option<SchemaRegistry>,
    /// The keys of its type, as in the file, defaults not filled in.
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

    /// Reads the settings into the connector's own type.
    ///
    /// # Errors
    /// They do not fit; the message names the queue.
    pub fn settings<T: serde::de::DeserializeOwned>(&self) -> Result<T, ConnectorError> {
        serde_json::from_value(self.settings.clone())
            .map_err(|error| ConnectorError::permanent(format!("queue `{}`: {error}", self.name)))
    }
}

/// Who consumes.
#[derive(Debug, Clone)]
pub struct Reader {
    /// The stage, for logs and locks.
    pub stage: Arc<str>,
    /// The group, one of the queue's [`groups`](QueueSpec::groups).
    pub group: Arc<str>,
    /// The order asked for.
    pub order: Order,
}

/// What a connector is given to work with.
#[derive(Clone)]
pub struct ConnectorEnv {
    /// Where it keeps what must survive: positions, lengths.
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
    /// In any.
    #[default]
    None,
    /// One message of a key at a time, in order, also across retries and processes.
    Key,
    /// One message at a time, in the queue's order; a retry blocks the queue.
    Queue,
}

/// What is asked of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// Nothing is lost; after a crash a message may come twice. Where input and output live in one
    /// embedded store it is once all the same.
    #[default]
    AtLeastOnce,
    /// Outputs and acks are one transaction; refused where they do not live in one store.
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
    /// At most this many bytes, of which each message counts 64 beside what is in it. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<ByteSize>,
    /// What a producer does when the queue is full.
    #[serde(default)]
    pub when_full: WhenFull,
}

impl Limit {
    /// Why a queue never takes a message, however empty it is: by itself it is longer than all that the
    /// queue may hold.
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
    /// Wait until there is room: the stage is blocked, and its consumer stops pulling.
    #[default]
    Wait,
    /// Refuse the message for good: it becomes a dead letter of the stage that sent it.
    Refuse,
}

/// Something wrong with a queue's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which key, from the queue downwards: `["path"]`. Empty: the queue as a whole.
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

    /// The same with advice.
    #[must_use]
    pub fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

/// A queue as people look at it.
#[async_trait]
pub trait QueueAdmin: Send + Sync {
    /// How much it holds, a row a group.
    ///
    /// # Errors
    /// The queue could not be asked.
    async fn status(&self) -> Result<Vec<QueueStatus>, ConnectorError>;

    /// Its first messages, `skip` passed over, without taking them.
    ///
    /// # Errors
    /// The queue could not be asked.
    async fn peek(&self, skip: u64, limit: u64) -> Result<Vec<Peeked>, ConnectorError>;

    /// The message at a position, if it is still there.
    ///
    /// # Errors
    /// The queue could not be asked.
    async fn get(&self, position: u64) -> Result<Option<Peeked>, ConnectorError>;

    /// Puts messages on it, as a producer would, and answers for each, in the same order. A queue that is
    /// not there is made.
    ///
    /// # Errors
    /// As for [`Producer::produce`].
    async fn put(&self, messages: Vec<Outgoing>) -> Result<Vec<Produced>, ConnectorError>;

    /// Deletes these messages, unless somebody works on them; says how many.
    ///
    /// # Errors
    /// The queue could not be asked.
    async fn delete(&self, positions: &[u64]) -> Result<u64, ConnectorError>;

    /// Lets parked messages be handed out again, with no attempt used: these, or all. Says how
    /// many.
    ///
    /// # Errors
    /// The queue could not be asked. By default: it cannot park.
    async fn release(&self, positions: Option<&[u64]>) -> Result<u64, ConnectorError> {
        let _ = positions;
        Err(ConnectorError::unsupported("queues of this type park no messages"))
    }

    /// Deletes every message that nobody works on; says how many.
    ///
    /// # Errors
    /// The queue could not be asked.
    async fn purge(&self) -> Result<u64, ConnectorError>;
}

/// What one group of a queue has before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStatus {
    /// The group; empty for the only one.
    pub group: String,
    /// How much waits.
    pub lag: Lag,
}

/// A message as people look at it.
#[derive(Debug, Clone)]
pub struct Peeked {
    /// Where it stands; what [`QueueAdmin::get`] takes.
    pub position: u64,
    /// The group it waits for.
    pub group: String,
    /// The message.
    pub message: Message,
    /// Failed attempts so far.
    pub attempts: u32,
    /// Redeliveries so far.
    pub redeliveries: u32,
    /// If it is parked: why.
    pub parked: Option<String>,
    /// What somebody who works on it holds it by, if anybody does.
    pub holder: Option<Bytes>,
}
