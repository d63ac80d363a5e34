//! What happens in a running pipeline, for programs that embed it.

use brigade_core::delivery::GivenUp;
use brigade_core::{CauseKind, MessageId};
use tokio::sync::broadcast;

use crate::plan::StagePlan;
use crate::status::StageState;

/// How many events are kept for a slow reader; older ones are skipped, and counted.
const EVENTS_MAX: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A stage has changed its state.
    State {
        /// The pipeline.
        pipeline: String,
        /// The stage.
        stage: String,
        /// Its new state.
        state: StageState,
        /// Why, if it has failed.
        error: Option<String>,
    },
    /// A message was given up on and is about to be kept as a dead letter.
    DeadLetter {
        /// The pipeline.
        pipeline: String,
        /// The stage that gave it up.
        stage: String,
        /// The message.
        id: MessageId,
        /// The kind of cause.
        kind: CauseKind,
        /// The error's own words.
        message: String,
    },
    /// An actor died and is being restarted.
    Restart {
        /// The pipeline.
        pipeline: String,
        /// The stage it works for.
        stage: String,
        /// What died: a worker, a consumer, a producer.
        actor: String,
    },
}

/// Events as they happen.
#[derive(Debug)]
pub struct Events(broadcast::Receiver<Event>);

impl Events {
    /// Waits for the next event; `None` once the pipelines have stopped. A reader that falls more
    /// than 1,024 events behind misses the oldest.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Where the actors report what happens. Listeners are optional.
#[derive(Debug, Clone)]
pub(crate) struct EventSender(broadcast::Sender<Event>);

impl EventSender {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(EVENTS_MAX))
    }

    pub(crate) fn subscribe(&self) -> Events {
        Events(self.0.subscribe())
    }

    pub(crate) fn send(&self, event: Event) {
        // An error only means that nobody listens.
        let _ = self.0.send(event);
    }

    pub(crate) fn dead_letter(&self, stage: &StagePlan, given_up: &GivenUp) {
        if self.0.receiver_count() == 0 {
            return;
        }
        self.send(Event::DeadLetter {
            pipeline: stage.context.pipeline.to_string(),
            stage: stage.name.to_string(),
            id: given_up.delivery.message.id,
            kind: given_up.cause.kind,
            message: given_up.cause.message.clone(),
        });
    }
}
