//! In which order a line comes to its end: the consumer takes no more; what it took resolves; outputs are
//! confirmed and acked; then queues are flushed and closed, and the state last.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use brigade::component::Raw;
use brigade::connector::{
    Acked, Connector, ConnectorEnv, ConnectorError, Consumer, Failed, Incoming, Lag, Outgoing,
    Produced, Producer, QueueSpec, Reader, Receipt, Want,
};
use brigade::prelude::*;
use brigade::state::{StateStore, StoreOp};
use brigade::{Memory, MemoryState, Message, Pipeline, StageState, Supervisor};
use brigade_testkit::{Like, LikeConnector, LikeConsumer, LikeProducer, LikeStore, paused};
use common::{World, eventually};
use tokio::sync::Semaphore;

/// How long what has to come may take.
const PATIENCE: Duration = Duration::from_secs(180);

/// What happened, one word each.
type Log = Arc<Mutex<Vec<&'static str>>>;

/// A part of the pipeline that notes what is asked of it.
#[derive(Clone)]
struct Noted<T> {
    inner: T,
    log: Log,
}

impl<T> Noted<T> {
    fn note(&self, what: &'static str) {
        self.log.lock().unwrap().push(what);
    }

    fn with<U>(&self, inner: U) -> Noted<U> {
        Noted { inner, log: Arc::clone(&self.log) }
    }
}

#[async_trait]
impl LikeConnector for Noted<Memory> {
    fn inner(&self) -> &dyn Connector {
        &self.inner
    }

    fn type_name(&self) -> &'static str {
        "noted"
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(Like(self.with(self.inner.consumer(queue, reader, env).await?))))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(Like(self.with(self.inner.producer(queue, env).await?))))
    }
}

#[async_trait]
impl LikeConsumer for Noted<Arc<dyn Consumer>> {
    fn inner(&self) -> &dyn Consumer {
        &*self.inner
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        let taken = self.inner.consume(want).await;
        self.note("took");
        taken
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        let acked = self.inner.ack(receipts, ops).await;
        self.note("acked");
        acked
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        self.note("gave back");
        self.inner.on_fail(failed).await
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.note("closed the input");
        self.inner.shutdown().await
    }
}

#[async_trait]
impl LikeProducer for Noted<Arc<dyn Producer>> {
    fn inner(&self) -> &dyn Producer {
        &*self.inner
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let produced = self.inner.produce(batch).await;
        self.note("confirmed");
        produced
    }

    async fn flush(&self) -> Result<(), ConnectorError> {
        self.note("flushed");
        self.inner.flush().await
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.note("closed the output");
        self.inner.shutdown().await
    }
}

#[async_trait]
impl LikeStore for Noted<Arc<MemoryState>> {
    fn inner(&self) -> &dyn StateStore {
        &*self.inner
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.note("closed the state");
        self.inner.shutdown().await
    }
}

const TEXT: &str = "
queues:
  in: { type: noted }
  out: { type: noted }
stages:
  work: { component: work, input: in, outputs: [out], max_in_flight: { messages: 8 } }
";

#[tokio::test]
async fn a_line_ends_from_its_input_to_its_state() {
    let (log, gate) = (Log::default(), Arc::new(Semaphore::new(0)));
    let (memory, called) = (Memory::new(), Arc::new(AtomicUsize::new(0)));
    memory.put("test", "in", (0..100).map(|n: u64| Message::new(n.to_string())));
    let noted = Noted { inner: memory.clone(), log: Arc::clone(&log) };
    let (count, wait) = (Arc::clone(&called), Arc::clone(&gate));
    let work = async move |raw: Raw| {
        count.fetch_add(1, SeqCst);
        drop(wait.acquire().await);
        Ok::<_, Failure>(raw)
    };
    let registry = brigade::registry().connector(Arc::new(Like(noted))).component("work", work);
    let topology = World::new().load(TEXT, &registry);
    let state = Arc::new(Like(Noted { inner: MemoryState::new(), log: Arc::clone(&log) }));
    let pipeline = Pipeline::new(topology, &registry).unwrap().state(state);
    let running = Supervisor::new().add(pipeline).start().await.unwrap();
    eventually("messages are in flight", async || called.load(SeqCst) > 0).await;
    let watcher = running.watcher();
    let draining = tokio::spawn(running.drain());
    // From here on none of its consumers asks for more, whenever its lane hears of that.
    eventually("it is drained", async || {
        watcher.status().await[0].stages[0].state == StageState::Draining
    })
    .await;
    // As long as nothing is done nothing is closed.
    tokio::time::timeout(Duration::from_millis(300), std::future::pending::<()>())
        .await
        .unwrap_err();
    let before = log.lock().unwrap().clone();
    assert!(!before.iter().any(|what| what.contains("closed") || *what == "flushed"), "{before:?}");
    gate.close();
    draining.await.unwrap();
    let log = log.lock().unwrap().clone();
    let first = |what: &str| log.iter().position(|noted| *noted == what).unwrap();
    let last = |what: &str| log.iter().rposition(|noted| *noted == what).unwrap();
    let in_order = ["confirmed", "acked", "closed the input"];
    assert!(in_order.windows(2).all(|two| last(two[0]) < last(two[1])), "{log:?}");
    assert!(last("acked") < first("flushed"), "{log:?}");
    assert!(last("flushed") < last("closed the output"), "{log:?}");
    assert_eq!(log.last(), Some(&"closed the state"), "{log:?}");
    assert!(!log[before.len()..].contains(&"took"), "{log:?}");
    assert!(!log.contains(&"gave back"), "{log:?}");
    // What it took is out; the rest is where it was.
    let (out, rest) = (memory.messages("test", "out").len(), memory.messages("test", "in").len());
    assert_eq!((out, out + rest), (called.load(SeqCst), 100));
}

/// It stood at the throttle when the stage was stopped: its message is back in its queue.
#[tokio::test]
async fn a_blocking_component_behind_a_throttle_is_not_called_after_the_stop() {
    let one = |calls: &Arc<AtomicUsize>| {
        let calls = Arc::clone(calls);
        move |n: u64| {
            calls.fetch_add(1, SeqCst);
            Ok::<_, Failure>(Emit::value(n))
        }
    };
    let batch = |calls: &Arc<AtomicUsize>| {
        let calls = Arc::clone(calls);
        async move |batch: Vec<u64>| {
            calls.fetch_add(1, SeqCst);
            batch.into_iter().map(|n| Ok::<_, Failure>(Emit::value(n))).collect::<Vec<_>>()
        }
    };
    for batches in [false, true] {
        let world = World::new();
        let calls = Arc::new(AtomicUsize::new(0));
        let registry = match batches {
            false => world.registry().component("work", one(&calls)),
            true => world.registry().component("work", batch(&calls)),
        };
        let yaml = format!(
            "
queues: {{ in: {{ type: memory }}, out: {{ type: memory }} }}
stages:
  work:
    {{ component: work, input: in, outputs: [out], blocking: true, {}
      throttle: {{ rate: 1, per: 1h, burst: 1 }} }}
",
            if batches { "batch: { size: 1, age: 1ms }," } else { "" }
        );
        world.put("in", 0..3);
        let running = world.start(&yaml, &registry).await;
        drop(registry);
        eventually("the first is done", async || world.numbers("out").len() == 1).await;
        let taken = async || running.status().await[0].stages[0].in_flight > 0;
        eventually("the next waits", taken).await;
        running.stop(Some(Duration::ZERO)).await;
        assert_eq!(world.numbers("in").len(), 2);
        let threads = async || Arc::strong_count(&calls) == 1;
        eventually("its thread ends", threads).await;
        assert_eq!(calls.load(SeqCst), 1);
    }
}

/// Memory queues whose producers never end a flush, as those of a server that is away.
struct Hanging<T>(T);

#[async_trait]
impl LikeConnector for Hanging<Memory> {
    fn inner(&self) -> &dyn Connector {
        &self.0
    }

    fn type_name(&self) -> &'static str {
        "hanging"
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(Like(Hanging(self.0.producer(queue, env).await?))))
    }
}

#[async_trait]
impl LikeProducer for Hanging<Arc<dyn Producer>> {
    fn inner(&self) -> &dyn Producer {
        &*self.0
    }

    async fn flush(&self) -> Result<(), ConnectorError> {
        std::future::pending().await
    }
}

/// Memory queues whose depth is asked on a thread of its own, until somebody lets it go.
struct Asked<T> {
    inner: T,
    asked: Arc<AtomicUsize>,
    answer: Arc<Mutex<std::sync::mpsc::Receiver<()>>>,
}

#[async_trait]
impl LikeConnector for Asked<Memory> {
    fn inner(&self) -> &dyn Connector {
        &self.inner
    }

    fn type_name(&self) -> &'static str {
        "asked"
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let inner = self.inner.consumer(queue, reader, env).await?;
        let (asked, answer) = (Arc::clone(&self.asked), Arc::clone(&self.answer));
        Ok(Arc::new(Like(Asked { inner, asked, answer })))
    }
}

#[async_trait]
impl LikeConsumer for Asked<Arc<dyn Consumer>> {
    fn inner(&self) -> &dyn Consumer {
        &*self.inner
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let (asked, answer) = (Arc::clone(&self.asked), Arc::clone(&self.answer));
        let blocks = tokio::task::spawn_blocking(move || {
            asked.fetch_add(1, SeqCst);
            answer.lock().unwrap().recv().unwrap_err();
        });
        blocks.await.unwrap();
        self.inner.lag().await
    }
}

/// As one to a server that is away.
#[tokio::test]
async fn a_question_that_is_not_answered_does_not_hold_up_the_end() {
    let (let_go, answer) = std::sync::mpsc::channel();
    let (world, asked) = (World::new(), Arc::new(AtomicUsize::new(0)));
    let answer = Arc::new(Mutex::new(answer));
    let connector = Asked { inner: world.memory.clone(), asked: Arc::clone(&asked), answer };
    let registry = world.registry().connector(Arc::new(Like(connector)));
    let yaml = "
queues: { in: { type: asked }, out: { type: memory } }
stages: { work: { component: pass, input: in, outputs: [out] } }
";
    let running = world.start(yaml, &registry).await;
    let watcher = running.watcher();
    // Nobody is asked before the input is open; then nobody answers.
    let asking = async {
        loop {
            watcher.depths().await;
        }
    };
    tokio::select! {
        () = asking => {}
        () = eventually("it is asked", async || asked.load(SeqCst) > 0) => {}
    }
    let stopped = tokio::time::timeout(PATIENCE, running.stop(Some(Duration::ZERO))).await;
    drop(let_go);
    stopped.expect("it ends");
}

/// Else a stop would take longer with each of them.
#[test]
fn outputs_that_do_not_close_are_waited_for_together() {
    let world = World::new();
    let connector = Like(Hanging(world.memory.clone()));
    let registry = world.registry().connector(Arc::new(connector));
    let yaml = "
queues: { in: { type: memory }, a: { type: hanging }, b: { type: hanging }, c: { type: hanging } }
stages: { first: { component: pass, input: in, outputs: [a, b, c], copy: true } }
";
    paused(async {
        let pipeline = Pipeline::new(world.load(yaml, &registry), &registry).unwrap();
        let pipeline = pipeline.state(world.state.clone());
        let running = Supervisor::new().add(pipeline).start_here().await.unwrap();
        world.put("in", 0..10);
        running.until_idle(None).await.unwrap();
        let begun = tokio::time::Instant::now();
        running.stop(Some(Duration::from_secs(1))).await;
        // The time that `docs/src/operating.md` gives all that does not answer.
        assert!(begun.elapsed() <= Duration::from_secs(1 + 20), "{:?}", begun.elapsed());
    });
    assert_eq!(world.numbers("c").len(), 10);
}
