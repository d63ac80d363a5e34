//! What cannot be settled for good: the stage fails and says why, and nothing is acked.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use async_trait::async_trait;
use brigade::component::{Emit, Emitted};
use brigade::connector::{
    Acked, Connector, ConnectorEnv, ConnectorError, Consumer, Failed, Outgoing, Produced, Producer,
    QueueSpec, Reader, Receipt,
};
use brigade::state::StoreOp;
use brigade::{DeadLetter, Failure, Memory, Message, Running, Timestamp};
use brigade_testkit::{Like, LikeConnector, LikeConsumer, LikeProducer};
use common::{World, eventually};
use tokio::sync::Notify;

/// Waits until the stage has failed; answers with why.
async fn failed(running: &Running) -> String {
    let mut error = None;
    eventually("the stage fails", async || {
        error = running.status().await[0].stages[0].error.clone();
        error.is_some()
    })
    .await;
    error.unwrap()
}

/// Memory queues whose producers answer for another number of messages than they were given.
struct Miscounting {
    memory: Memory,
    too_many: bool,
}

struct MiscountingProducer {
    inner: Arc<dyn Producer>,
    too_many: bool,
}

#[async_trait]
impl LikeConnector for Miscounting {
    fn inner(&self) -> &dyn Connector {
        &self.memory
    }

    fn type_name(&self) -> &'static str {
        "miscounting"
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        let inner = self.memory.producer(queue, env).await?;
        Ok(Arc::new(Like(MiscountingProducer { inner, too_many: self.too_many })))
    }
}

#[async_trait]
impl LikeProducer for MiscountingProducer {
    fn inner(&self) -> &dyn Producer {
        &*self.inner
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        if self.too_many {
            let mut produced = self.inner.produce(batch).await?;
            produced.push(Produced::Confirmed);
            return Ok(produced);
        }
        self.inner.produce(&batch[1..]).await
    }
}

#[tokio::test]
async fn a_producer_that_does_not_answer_for_each_message_fails_its_stage_and_loses_nothing() {
    for (too_many, answers) in [(false, 0), (true, 2)] {
        let world = World::new();
        let connector = Like(Miscounting { memory: world.memory.clone(), too_many });
        let registry = world.registry().connector(Arc::new(connector));
        let yaml = "
queues: { in: { type: memory }, out: { type: miscounting } }
stages: { first: { component: pass, input: in, outputs: [out] } }
";
        world.put("in", [7]);
        let running = world.start(yaml, &registry).await;
        let error = failed(&running).await;
        let expected = format!(
            "the producer of queue `out` (type miscounting) answered for {answers} of 1 messages"
        );
        assert!(error.contains(&expected), "{error}");
        running.drain().await;
        assert_eq!(world.numbers("in"), [7], "it is not acked");
    }
}

/// Memory queues whose producers tell of the first message what stays, and of the others that they
/// come after it.
struct Ended(Memory);

struct EndedProducer(Arc<dyn Producer>);

#[async_trait]
impl LikeConnector for Ended {
    fn inner(&self) -> &dyn Connector {
        &self.0
    }

    fn type_name(&self) -> &'static str {
        "ended"
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(Like(EndedProducer(self.0.producer(queue, env).await?))))
    }
}

#[async_trait]
impl LikeProducer for EndedProducer {
    fn inner(&self) -> &dyn Producer {
        &*self.0
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let failed = |at: usize| match at {
            0 => Produced::Failed(ConnectorError::permanent("the disk is read-only")),
            _ => Produced::Failed(ConnectorError::transient("it comes after another")),
        };
        Ok((0..batch.len()).map(failed).collect())
    }
}

#[tokio::test]
async fn what_stays_wrong_with_one_message_of_a_batch_fails_the_stage() {
    let world = World::new();
    let registry = world.registry().connector(Arc::new(Like(Ended(world.memory.clone()))));
    let two = |n: u64| {
        let output = || Emitted::json(n.to_string());
        Ok::<_, Failure>(Emit::none().with(output()).with(output()))
    };
    let registry = registry.component("two", two);
    let yaml = "
queues: { in: { type: memory }, out: { type: ended } }
stages: { first: { component: two, input: in, outputs: [out] } }
";
    world.put("in", [7]);
    let running = world.start(yaml, &registry).await;
    let error = failed(&running).await;
    assert!(error.contains("the disk is read-only"), "{error}");
    running.drain().await;
    assert_eq!(world.numbers("in"), [7], "it is not acked");
}

/// A dead letter that its queue refuses has nowhere to go.
#[tokio::test]
async fn a_dead_letter_that_is_refused_fails_the_stage_and_loses_nothing() {
    let world = World::new();
    let registry = world.registry().component("no", |_: u64| Err::<(), _>(Failure::reject("no")));
    let yaml = "
queues:
  in: { type: memory }
  dead: { type: memory, limit: { messages: 1, when_full: refuse } }
stages: { first: { component: no, input: in, dead_letter: dead, max_in_flight: { messages: 1 } } }
";
    world.put("in", [7, 8, 9]);
    let running = world.start(yaml, &registry).await;
    let error = failed(&running).await;
    let expected = "a dead letter was refused by queue `dead`: queue `dead` is full";
    assert!(error.contains(expected), "{error}");
    running.drain().await;
    assert_eq!(world.memory.messages("test", "dead").len(), 1);
    assert_eq!(world.numbers("in"), [8, 9], "they are not acked");
}

/// Memory queues that take nothing back.
struct Stubborn(Memory);

struct StubbornConsumer(Arc<dyn Consumer>);

#[async_trait]
impl LikeConnector for Stubborn {
    fn inner(&self) -> &dyn Connector {
        &self.0
    }

    fn type_name(&self) -> &'static str {
        "stubborn"
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(Like(StubbornConsumer(self.0.consumer(queue, reader, env).await?))))
    }
}

#[async_trait]
impl LikeConsumer for StubbornConsumer {
    fn inner(&self) -> &dyn Consumer {
        &*self.0
    }

    async fn on_fail(&self, _: Vec<Failed>) -> Result<Acked, ConnectorError> {
        Err(ConnectorError::permanent("it takes nothing back"))
    }
}

#[tokio::test]
async fn what_cannot_be_given_back_fails_the_stage_and_loses_nothing() {
    let world = World::new();
    let connector = Stubborn(world.memory.clone());
    let registry = world.registry().connector(Arc::new(Like(connector)));
    let registry = registry.component("no", |_: u64| Err::<(), _>(Failure::retry("no")));
    let yaml = "
queues: { in: { type: stubborn } }
stages: { first: { component: no, input: in, retry: { attempts: 3, min: 1m, max: 1m } } }
";
    world.put("in", [7, 8]);
    let running = world.start(yaml, &registry).await;
    let error = failed(&running).await;
    let expected = "cannot settle messages of queue `in`: it takes nothing back";
    assert!(error.contains(expected), "{error}");
    running.drain().await;
    assert_eq!(world.numbers("in"), [7, 8], "they are not acked");
}

/// A broker may refuse what is of tomorrow, and soon delete what is of last week: the letter would not be kept.
#[tokio::test]
async fn a_dead_letter_does_not_have_the_event_time_of_its_message() {
    let world = World::new();
    let registry = world.registry().component("no", |_: u64| Err::<(), _>(Failure::reject("no")));
    let yaml = "
queues: { in: { type: memory }, dead: { type: memory } }
stages: { first: { component: no, input: in, dead_letter: dead } }
";
    let event_time = Some(Timestamp(4_000_000_000_000));
    world.memory.put("test", "in", [Message { event_time, ..Message::new("7") }]);
    let running = world.start(yaml, &registry).await;
    eventually("it is given up", async || world.memory.messages("test", "dead").len() == 1).await;
    running.drain().await;
    let letter = world.memory.messages("test", "dead").remove(0);
    assert_eq!(letter.event_time, None);
    let letter = DeadLetter::from_json(letter.payload.as_deref().unwrap()).unwrap();
    assert_eq!(letter.message.event_time, event_time, "it comes back with it");
}

/// Memory queues whose first consumer stands still as soon as an ack is asked of it.
struct Forgetful {
    memory: Memory,
    opened: AtomicUsize,
}

struct ForgetfulConsumer {
    inner: Arc<dyn Consumer>,
    is_first: bool,
    acked: Notify,
}

#[async_trait]
impl LikeConnector for Forgetful {
    fn inner(&self) -> &dyn Connector {
        &self.memory
    }

    fn type_name(&self) -> &'static str {
        "forgetful"
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let inner = self.memory.consumer(queue, reader, env).await?;
        let is_first = self.opened.fetch_add(1, Relaxed) == 0;
        Ok(Arc::new(Like(ForgetfulConsumer { inner, is_first, acked: Notify::new() })))
    }
}

#[async_trait]
impl LikeConsumer for ForgetfulConsumer {
    fn inner(&self) -> &dyn Consumer {
        &*self.inner
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        if !self.is_first {
            return self.inner.ack(receipts, ops).await;
        }
        self.acked.notify_one();
        std::future::pending().await
    }

    async fn broken(&self) -> ConnectorError {
        self.acked.notified().await;
        ConnectorError::stalled("it has forgotten its server")
    }
}

/// With order by queue nothing is asked for while a message is in flight, and that ack never ends.
#[tokio::test]
async fn a_consumer_that_stands_still_is_opened_again_though_nothing_is_asked_of_it() {
    let world = World::new();
    let connector =
        Arc::new(Like(Forgetful { memory: world.memory.clone(), opened: AtomicUsize::new(0) }));
    let registry = world.registry().connector(Arc::clone(&connector) as Arc<dyn Connector>);
    let yaml = "
queues: { in: { type: forgetful } }
stages: { first: { component: log, input: in, order: queue } }
";
    world.put("in", [7, 8, 9]);
    let running = world.start(yaml, &registry).await;
    eventually("all are acked", async || world.numbers("in").is_empty()).await;
    running.drain().await;
    assert_eq!(connector.0.opened.load(Relaxed), 2);
}
