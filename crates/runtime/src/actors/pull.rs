//! One pull of a consumer, and what the inputs that come after it by priority see of it meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Consumer, Incoming, Want};
use brigade_core::retry::doubled;

use super::control::Control;
use crate::plan::QueuePlan;

/// How long a pull may take before its queue is asked whether it is empty, and asked again.
const ANSWER: Duration = Duration::from_millis(20);
/// How long a pull may take before its queue counts as empty, whatever it says: its messages may
/// wait for something else, such as others of their keys.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// Back-off after a consumer could not be queried.
pub(super) const BACK_OFF: (Duration, Duration) =
    (Duration::from_millis(100), Duration::from_secs(10));

pub(super) type Pulled = Result<Vec<Incoming>, ConnectorError>;

/// A request for messages.
pub(super) struct Pull {
    pub(super) consumer: Arc<dyn Consumer>,
    pub(super) control: Arc<Control>,
    pub(super) input: Arc<QueuePlan>,
    pub(super) want: Want,
    /// How long it is put off.
    pub(super) back_off: Duration,
    /// The pull before brought all that was asked for.
    pub(super) may_have_more: bool,
}

impl Pull {
    /// Waits for messages. Inputs that come after this one may pull as soon as its queue is known
    /// to be empty.
    pub(super) async fn run(self) -> Pulled {
        let hold_up = self.control.is_followed();
        // A consumer that is backing off holds nobody up either.
        self.control.set_waiting(!hold_up || !self.back_off.is_zero());
        if !self.back_off.is_zero() {
            tokio::time::sleep(self.back_off).await;
        }
        let begun = Instant::now();
        let pulled = if hold_up {
            self.hold_up_while_it_has_more().await
        } else {
            self.consumer.consume(self.want).await
        };
        self.input.times.read.done_since(begun);
        self.control.set_waiting(false);
        pulled
    }

    async fn hold_up_while_it_has_more(&self) -> Pulled {
        let mut consume = self.consumer.consume(self.want);
        let empty = tokio::time::timeout(ANSWER_MAX, async {
            // A queue that gave less than was asked for is probably empty.
            let mut first = if self.may_have_more { ANSWER } else { Duration::ZERO };
            loop {
                tokio::time::sleep(std::mem::replace(&mut first, ANSWER)).await;
                let lag = self.consumer.lag().await;
                if !lag.is_ok_and(|lag| lag.ready.is_some_and(|ready| ready > 0)) {
                    return;
                }
            }
        });
        tokio::select! {
            biased;
            pulled = &mut consume => return pulled,
            _ = empty => {}
        }
        self.control.set_waiting(true);
        consume.await
    }
}

/// Has a consumer put back what it has taken and not returned, and never ends: until it is dropped,
/// nothing is pulled.
pub(super) async fn put_back(consumer: Arc<dyn Consumer>, input: Arc<QueuePlan>) {
    let mut failures = 0;
    while let Err(error) = consumer.put_back().await {
        let queue = &input.spec.name;
        tracing::warn!(%queue, %error, failures, "what was not handed out is not put back yet");
        if !error.is_transient() {
            break;
        }
        failures += 1;
        tokio::time::sleep(doubled(BACK_OFF.0, BACK_OFF.1, failures)).await;
    }
    std::future::pending().await
}

/// Whether a queue gave all that was asked for, as far as can be seen: there may be more.
pub(super) fn is_in_full(messages: &[Incoming], asked: Want) -> bool {
    let size = || messages.iter().map(|incoming| incoming.message.size()).sum::<usize>();
    messages.len() >= asked.messages || size() >= asked.bytes / 2
}
