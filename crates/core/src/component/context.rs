//! What a component is told when it starts ([`Setup`]) and with each message ([`Context`]).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::Unsettled;
use crate::connector::ConnectorError;
use crate::delivery::{Delivery, Parts};
use crate::state::StateStore;
use crate::{Codec, Headers, Message, MessageId, Timestamp};

/// What a component can find out about the message it handles and about where it runs.
pub struct Context {
    /// The delivery, lent to the component by the runtime.
    delivery: Delivery,
    stage: Arc<StageContext>,
}

impl Context {
    /// A context for a message that comes from no queue, for driving a component alone.
    pub fn new(stage: Arc<StageContext>, message: Message) -> Self {
        Self::lend(stage, Parts { message, ..Parts::default() }.into())
    }

    /// Lends a delivery to a component.
    pub fn lend(stage: Arc<StageContext>, delivery: Delivery) -> Self {
        Self { delivery, stage }
    }

    /// Lends the next delivery, and takes the previous one back.
    pub fn exchange(&mut self, delivery: Delivery) -> Delivery {
        std::mem::replace(&mut self.delivery, delivery)
    }

    /// Takes the delivery back.
    pub fn into_delivery(self) -> Delivery {
        self.delivery
    }

    /// The encoding of the message's payload.
    pub fn codec(&self) -> Codec {
        self.delivery.codec
    }

    /// The message itself.
    pub fn message(&self) -> &Message {
        &self.delivery.message
    }

    /// The message's id.
    pub fn id(&self) -> MessageId {
        self.delivery.message.id
    }

    /// The message's key.
    pub fn key(&self) -> Option<&Bytes> {
        self.delivery.message.key.as_ref()
    }

    /// The message's headers.
    pub fn headers(&self) -> &Headers {
        &self.delivery.message.headers
    }

    /// The message's event time.
    pub fn event_time(&self) -> Option<Timestamp> {
        self.delivery.message.event_time
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.delivery.attempts.saturating_add(1)
    }

    /// How often the message was handed out before without an outcome (crashes).
    pub fn redeliveries(&self) -> u32 {
        self.delivery.redeliveries
    }

    /// The queue it came from; over a direct edge, the queue that its root message came from.
    pub fn queue(&self) -> &str {
        self.stage.queues.get(usize::from(self.delivery.input)).map_or("", |name| name)
    }

    /// Its position in that queue, in readable form.
    pub fn position(&self) -> String {
        self.delivery.locate()
    }

    /// The stage.
    pub fn stage(&self) -> &str {
        &self.stage.stage
    }

    /// The pipeline.
    pub fn pipeline(&self) -> &str {
        &self.stage.pipeline
    }

    /// A value of the stage's `env`.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.stage.env.get(name).map(String::as_str)
    }

    /// A counter of the component's own, labelled `pipeline` and `stage`.
    pub fn counter(&self, name: &'static str) -> metrics::Counter {
        metrics::counter!(name, self.labels())
    }

    /// A gauge of the component's own, labelled `pipeline` and `stage`.
    pub fn gauge(&self, name: &'static str) -> metrics::Gauge {
        metrics::gauge!(name, self.labels())
    }

    /// A histogram of the component's own, labelled `pipeline` and `stage`.
    pub fn histogram(&self, name: &'static str) -> metrics::Histogram {
        metrics::histogram!(name, self.labels())
    }

    /// A span for work on this message; disabled unless the log level is `debug`.
    pub fn span(&self) -> tracing::Span {
        tracing::debug_span!(
            "message",
            pipeline = %self.stage.pipeline,
            stage = %self.stage.stage,
            id = %self.id(),
            attempt = self.attempt()
        )
    }

    /// Returns a value that the stage stored with [`Emit::put_state`](super::Emit::put_state).
    /// Values written by earlier messages in this process are visible as soon as those messages
    /// were handled; with `order: key`, messages with the same key therefore see each other's
    /// writes, in order.
    ///
    /// # Errors
    /// The state could not be read.
    pub async fn load_state(&self, key: &str) -> Result<Option<Bytes>, ConnectorError> {
        if let Some(value) = self.stage.unsettled.get(key) {
            return Ok(value);
        }
        match &self.stage.state {
            Some(state) => state.load(&self.stage.state_space, key).await,
            None => Ok(None),
        }
    }

    fn labels(&self) -> Vec<metrics::Label> {
        vec![
            metrics::Label::new("pipeline", self.stage.pipeline.to_string()),
            metrics::Label::new("stage", self.stage.stage.to_string()),
        ]
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("stage", &self.stage.stage)
            .field("id", &self.id())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

/// What is the same for all messages of a stage.
#[derive(Clone)]
pub struct StageContext {
    /// The pipeline.
    pub pipeline: Arc<str>,
    /// The stage.
    pub stage: Arc<str>,
    /// The names of the pipeline's queues, indexed by queue number.
    pub queues: Arc<[Arc<str>]>,
    /// The stage's `env`.
    pub env: BTreeMap<String, String>,
    /// The key space of the stage's own values in the state.
    pub state_space: Arc<str>,
    /// The state, if there is one.
    pub state: Option<Arc<dyn StateStore>>,
    /// What has been written but is not in the state yet.
    pub unsettled: Unsettled,
}

impl StageContext {
    /// A stage without state or `env`, for driving a component alone.
    pub fn new(pipeline: &str, stage: &str) -> Self {
        Self {
            pipeline: pipeline.into(),
            stage: stage.into(),
            queues: Arc::default(),
            env: BTreeMap::new(),
            state_space: format!("component/{pipeline}/{stage}").into(),
            state: None,
            unsettled: Unsettled::default(),
        }
    }
}

impl fmt::Debug for StageContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StageContext")
            .field("pipeline", &self.pipeline)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

/// What a component is given when it starts.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The stage it is placed in.
    pub stage: Arc<StageContext>,
    /// The lane, from 0.
    pub lane: usize,
    /// How many workers the stage has on this lane.
    pub workers: usize,
}
