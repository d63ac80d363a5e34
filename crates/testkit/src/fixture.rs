//! A connector under test, [`Fixture`], and helpers that the properties of the suite share.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Failed, Features, Incoming, Order, Outgoing,
    Produced, Producer, QueueSpec, Reader, Receipt, Want,
};
use brigade_core::{Message, MessageId};

/// How long anything that has to come may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// How long nothing must come before the suite concludes that nothing will.
const QUIET: Duration = Duration::from_millis(300);

/// A connector, and a fresh, empty queue of it.
#[expect(missing_debug_implementations, reason = "connectors have none")]
pub struct Fixture {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) env: ConnectorEnv,
    pub(crate) queue: QueueSpec,
    pub(crate) disturb: Option<Disturb>,
    keep: Vec<Box<dyn std::any::Any + Send + Sync>>,
}

/// Breaks or restarts a connector's backend: cuts it off, fills it, locks it, kills its server. It
/// is called repeatedly while the queue is in use, on a thread of its own, and returns when the
/// backend has started to recover.
pub type Disturb = Arc<dyn Fn() + Send + Sync>;

impl Fixture {
    /// A connector, its environment, and a queue whose name and settings refer to something fresh.
    pub fn new(connector: Arc<dyn Connector>, env: ConnectorEnv, queue: QueueSpec) -> Self {
        Self { connector, env, queue, disturb: None, keep: Vec::new() }
    }

    /// Keeps something until the test is over: a directory, a server.
    #[must_use]
    pub fn keep(mut self, kept: impl std::any::Any + Send + Sync) -> Self {
        self.keep.push(Box::new(kept));
        self
    }

    /// Adds a way to disturb the backend.
    #[must_use]
    pub fn disturb(self, disturb: impl Fn() + Send + Sync + 'static) -> Self {
        Self { disturb: Some(Arc::new(disturb)), ..self }
    }

    /// The same connector with a changed queue.
    #[must_use]
    pub fn with(&self, change: impl FnOnce(&mut QueueSpec)) -> Self {
        let mut queue = self.queue.clone();
        change(&mut queue);
        Self::new(Arc::clone(&self.connector), self.env.clone(), queue)
    }

    pub(crate) fn features(&self) -> Features {
        self.connector.features(&self.queue.settings)
    }

    pub(crate) async fn consumer(&self, group: &str, order: Order) -> Arc<dyn Consumer> {
        let reader = Reader { stage: "suite".into(), group: group.into(), order };
        patiently(async || self.connector.consumer(&self.queue, &reader, &self.env).await).await
    }

    pub(crate) async fn producer(&self) -> Arc<dyn Producer> {
        patiently(async || self.connector.producer(&self.queue, &self.env).await).await
    }

    /// Puts messages on the queue; all must be confirmed.
    pub(crate) async fn put(&self, messages: Vec<Message>) {
        let producer = self.producer().await;
        let batch: Vec<Outgoing> = messages.into_iter().map(Outgoing::from).collect();
        for chunk in batch.chunks(500) {
            let outcomes = producer.produce(chunk).await.expect("the queue takes messages");
            assert_eq!(outcomes.len(), chunk.len(), "one outcome for each message");
            for outcome in outcomes {
                assert!(matches!(outcome, Produced::Confirmed), "{outcome:?}");
            }
        }
        producer.flush().await.expect("what is confirmed can be flushed");
    }
}

/// Calls a working queue; a backend that is away is waited for, as the runtime does.
pub(crate) async fn patiently<T>(ask: impl AsyncFn() -> Result<T, ConnectorError>) -> T {
    again(ask).await.0
}

/// The same; also returns how often it called.
pub(crate) async fn again<T>(ask: impl AsyncFn() -> Result<T, ConnectorError>) -> (T, u32) {
    let (begun, mut tries) = (Instant::now(), 1);
    loop {
        match ask().await {
            Ok(answer) => return (answer, tries),
            Err(error) if error.is_transient() && begun.elapsed() < PATIENCE => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("a good queue answers: {error}"),
        }
        tries += 1;
    }
}

/// Gives messages back.
pub(crate) async fn fail(consumer: &Arc<dyn Consumer>, failed: Vec<Failed>) {
    patiently(async || consumer.on_fail(failed.clone()).await).await;
}

/// Message number `n`: JSON of one line, so that any queue can hold it, with an id and a key.
pub(crate) fn numbered(n: u64) -> Message {
    let id = MessageId(u128::from(n) + 1);
    Message::new(format!("{{\"n\":{n}}}")).with_id(id).with_key(format!("k{}", n % 7))
}

/// The number of a message.
pub(crate) fn number(incoming: &Incoming) -> u64 {
    let payload = incoming.message.payload.as_deref().expect("it was put with a payload");
    let text = std::str::from_utf8(payload).expect("it was put as text");
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("it was put with a number")
}

/// Requests messages. If the connection breaks, it tries again, as the runtime does.
pub(crate) async fn consume(consumer: &Arc<dyn Consumer>, want: Want) -> Vec<Incoming> {
    loop {
        match consumer.consume(want).await {
            Ok(taken) => return taken,
            Err(error) => assert!(error.is_transient(), "the queue cannot be read: {error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// Takes at least one message, which must come.
pub(crate) async fn take(consumer: &Arc<dyn Consumer>, max: usize) -> VecDeque<Incoming> {
    take_wanted(consumer, Want { messages: max, bytes: usize::MAX }).await
}

/// The same, with a limit on bytes.
pub(crate) async fn take_wanted(consumer: &Arc<dyn Consumer>, want: Want) -> VecDeque<Incoming> {
    let taken = tokio::time::timeout(PATIENCE, consume(consumer, want)).await;
    let taken = taken.expect("a message comes");
    assert!(taken.len() <= want.messages, "not more than is wanted");
    let before_the_last = taken.iter().rev().skip(1).map(|incoming| incoming.message.size());
    assert!(before_the_last.sum::<usize>() <= want.bytes, "not more bytes than are wanted");
    taken.into()
}

/// Takes exactly `n` messages.
pub(crate) async fn take_all(consumer: &Arc<dyn Consumer>, n: usize) -> Vec<Incoming> {
    let mut all = Vec::new();
    while all.len() < n {
        let taken = take(consumer, n - all.len()).await;
        assert!(!taken.is_empty(), "the queue ended after {} of {n}", all.len());
        all.extend(taken);
    }
    all
}

/// Checks that no message comes; the end may.
pub(crate) async fn expect_nothing(consumer: &Arc<dyn Consumer>) {
    let want = Want { messages: 10, bytes: usize::MAX };
    if let Ok(taken) = tokio::time::timeout(QUIET, consume(consumer, want)).await {
        assert!(taken.is_empty(), "nothing is left, but there came {taken:?}");
    }
}

/// Acks messages; every receipt must be valid.
pub(crate) async fn ack(consumer: &Arc<dyn Consumer>, messages: &[Incoming]) {
    let receipts: Vec<Receipt> = messages.iter().map(|incoming| incoming.receipt).collect();
    let acked = patiently(async || consumer.ack(receipts.clone(), Vec::new()).await).await;
    assert_eq!(acked.fenced, [], "the leases stand");
}
