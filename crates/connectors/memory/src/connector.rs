//! The connector of memory queues.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Limit, Problem, Producer,
    QueueSpec, Reader,
};
use brigade_core::{IncarnationId, Message, MessageId};
use parking_lot::{Mutex, MutexGuard};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Notify;

use crate::Group;
use crate::consumer::MemoryConsumer;
use crate::producer::MemoryProducer;

/// How many messages a queue without a `limit` holds.
const CAPACITY: u64 = 100_000;

/// What memory queues can do.
pub(crate) const FEATURES: Features = Features {
    consume: true,
    produce: true,
    order: true,
    key_order: true,
    groups: true,
    competing: true,
    delay: true,
    retry_delay: true,
    attempts: true,
    batch: true,
    limit: true,
    key: true,
    headers: true,
    event_time: true,
    message_id: true,
    null_payload: true,
    empty_payload: true,
    binary: true,
    ..Features::NONE
};

/// The connector of memory queues, type `memory`. Queues live as long as the value and its clones;
/// two separately created values share nothing. A queue without a `limit` holds 100,000 messages.
#[derive(Debug, Clone)]
pub struct Memory {
    number: u64,
    queues: Arc<Mutex<Queues>>,
}

/// Queues by pipeline and name.
type Queues = HashMap<(String, String), Arc<Queue>>;

/// A queue: its groups, and what wakes those that wait for it.
#[derive(Debug)]
pub(crate) struct Queue {
    groups: Mutex<HashMap<Arc<str>, Group>>,
    /// Random: the outputs of its messages may be on queues that last longer than this process.
    incarnation: IncarnationId,
    /// How many messages without an id were put.
    nameless: AtomicU64,
    /// Something can be handed out.
    pub(crate) filled: Notify,
    /// There is room.
    pub(crate) emptied: Notify,
}

/// The keys of a memory queue: none.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// A connector with no queues yet.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { number, queues: Arc::default() }
    }

    /// Puts messages on a queue that one stage reads, ignoring its limit. Each one without an id
    /// gets one of its own.
    pub fn put(&self, pipeline: &str, queue: &str, messages: impl IntoIterator<Item = Message>) {
        let queue = self.queue(pipeline, queue);
        let mut groups = queue.groups();
        let known: Vec<Arc<str>> = match groups.is_empty() {
            true => vec!["".into()],
            false => groups.keys().cloned().collect(),
        };
        for message in messages {
            let id = queue.id_of(&message);
            for group in &known {
                let message = Message { id, ..message.clone() };
                groups.entry(Arc::clone(group)).or_default().put(message, None);
            }
        }
        drop(groups);
        queue.filled.notify_waiters();
    }

    /// Copies of the messages that are on a queue and not handed out, for all groups.
    pub fn messages(&self, pipeline: &str, queue: &str) -> Vec<Message> {
        self.queue(pipeline, queue).groups().values().flat_map(Group::messages).collect()
    }

    /// Removes and returns all messages on a queue that are not handed out.
    pub fn drain(&self, pipeline: &str, queue: &str) -> Vec<Message> {
        let queue = self.queue(pipeline, queue);
        let drained = queue.groups().values_mut().flat_map(Group::drain).collect();
        queue.emptied.notify_waiters();
        drained
    }

    /// Declares that no more will be put on a queue: its consumers come to an end once it is empty.
    pub fn close(&self, pipeline: &str, queue: &str) {
        let queue = self.queue(pipeline, queue);
        let mut groups = queue.groups();
        groups.entry("".into()).or_default();
        groups.values_mut().for_each(|group| group.closed = true);
        drop(groups);
        queue.filled.notify_waiters();
    }

    pub(crate) fn queue(&self, pipeline: &str, queue: &str) -> Arc<Queue> {
        let mut queues = self.queues.lock();
        let key = (pipeline.to_owned(), queue.to_owned());
        Arc::clone(queues.entry(key).or_default())
    }

    /// The number that identifies this connector.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            groups: Mutex::default(),
            incarnation: IncarnationId(fastrand::u128(..)),
            nameless: AtomicU64::new(0),
            filled: Notify::new(),
            emptied: Notify::new(),
        }
    }
}

impl Queue {
    /// A message's id, or one of its own, the same for all groups, if it has none: those of its outputs
    /// are derived from it, and messages with the same id are one message.
    pub(crate) fn id_of(&self, message: &Message) -> MessageId {
        if message.id != MessageId::default() {
            return message.id;
        }
        let position = self.nameless.fetch_add(1, Ordering::Relaxed);
        MessageId::root(self.incarnation, position)
    }

    pub(crate) fn groups(&self) -> MutexGuard<'_, HashMap<Arc<str>, Group>> {
        self.groups.lock()
    }
}

/// The limit of a queue, with the default filled in.
pub(crate) fn limit(queue: &QueueSpec) -> Limit {
    let mut limit = queue.limit.clone();
    if limit.messages.is_none() && limit.bytes.is_none() {
        limit.messages = Some(CAPACITY);
    }
    limit
}

#[async_trait]
impl Connector for Memory {
    fn type_name(&self) -> &'static str {
        "memory"
    }

    fn features(&self, _: &Value) -> Features {
        FEATURES
    }

    fn schema(&self) -> Value {
        schemars::schema_for!(Settings).to_value()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        match queue.settings::<Settings>() {
            Ok(Settings {}) => Vec::new(),
            Err(error) => {
                vec![Problem::whole(error.to_string())]
            }
        }
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(MemoryConsumer::open(self, queue, reader)))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(MemoryProducer::open(self, queue)))
    }
}
