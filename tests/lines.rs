//! Lines that are stopped, scaled and started again while their connections are slow or away.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use brigade::component::{Component, Context, Emit};
use brigade::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Incoming, Lag, Outgoing, Produced, Producer,
    QueueSpec, Reader, Receipt, Want,
};
use brigade::state::StateStore as _;
use brigade::{Failure, Memory, Pipeline, Registry, Running, StageState, StageStatus, Supervisor};
use brigade_testkit::{Like, LikeConnector, LikeConsumer, LikeProducer, paused};
use common::{World, eventually};
use serde_json::Value;
use tokio::sync::Semaphore;

/// Memory queues whose connections are as a test wants them.
#[derive(Clone, Default)]
struct Wilful {
    memory: Memory,
    will: Arc<Will>,
}

struct Will {
    /// So many consumers cannot be opened yet.
    away: AtomicUsize,
    /// How long a consumer's messages are its own; the extension never answers.
    lease: Option<Duration>,
    extensions: AtomicUsize,
    /// Consumers that were opened, and those that were closed.
    opened: AtomicU64,
    closed: AtomicU64,
    /// Who has it keeps consumers from being opened.
    opening: Semaphore,
    /// How often consumers were asked how much there is.
    asked: AtomicU64,
    producers: Mutex<Vec<Arc<dyn Producer>>>,
    /// Batches that the queue `slow` is taking, and those that it may have taken.
    taking: AtomicUsize,
    taken: Semaphore,
    /// How often it was asked how much there is on it, and how often it may say what it found then.
    looked: AtomicUsize,
    told: Semaphore,
    /// It gives nothing before this is closed.
    giving: Semaphore,
    /// How often consumers were told to put back what they have not handed out.
    put_back: AtomicU64,
}

impl Default for Will {
    fn default() -> Self {
        Self {
            away: AtomicUsize::new(0),
            lease: None,
            extensions: AtomicUsize::new(0),
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            opening: Semaphore::new(1),
            asked: AtomicU64::new(0),
            producers: Mutex::default(),
            taking: AtomicUsize::new(0),
            taken: Semaphore::new(0),
            looked: AtomicUsize::new(0),
            told: Semaphore::new(0),
            giving: Semaphore::new(0),
            put_back: AtomicU64::new(0),
        }
    }
}

impl Wilful {
    fn registry(&self) -> Registry {
        brigade::registry().connector(Arc::new(Like(self.clone())))
    }

    fn put(&self, queue: &str, numbers: std::ops::Range<u64>) {
        let message = |n: u64| brigade::Message::new(n.to_string()).with_key(n.to_string());
        self.memory.put("test", queue, numbers.map(message));
    }

    fn count(&self, queue: &str) -> usize {
        self.memory.messages("test", queue).len()
    }
}

#[async_trait]
impl LikeConnector for Wilful {
    fn inner(&self) -> &dyn Connector {
        &self.memory
    }

    fn type_name(&self) -> &'static str {
        "wilful"
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        if self.will.away.fetch_update(SeqCst, SeqCst, |away| away.checked_sub(1)).is_ok() {
            return Err(ConnectorError::transient("the queue is away"));
        }
        drop(self.will.opening.acquire().await);
        self.will.opened.fetch_add(1, SeqCst);
        let inner = self.memory.consumer(queue, reader, env).await?;
        let (will, closed) = (Arc::clone(&self.will), AtomicU64::new(1));
        let (queue, put_back) = (queue.name.to_string(), AtomicU64::new(0));
        Ok(Arc::new(Like(WilfulConsumer { inner, will, closed, queue, put_back })))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        let inner = self.memory.producer(queue, env).await?;
        let (will, queue) = (Arc::clone(&self.will), queue.name.to_string());
        let producer: Arc<dyn Producer> = Arc::new(Like(WilfulProducer { inner, will, queue }));
        self.will.producers.lock().unwrap().push(Arc::clone(&producer));
        Ok(producer)
    }
}

struct WilfulConsumer {
    inner: Arc<dyn Consumer>,
    will: Arc<Will>,
    /// One until it is closed.
    closed: AtomicU64,
    queue: String,
    put_back: AtomicU64,
}

#[async_trait]
impl LikeConsumer for WilfulConsumer {
    fn inner(&self) -> &dyn Consumer {
        &*self.inner
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        match self.queue.as_str() {
            "gone" => Err(ConnectorError::transient("it gives nothing")),
            "slow" => {
                self.will.giving.acquire().await.unwrap_err();
                self.inner.consume(want).await
            }
            _ => self.inner.consume(want).await,
        }
    }

    /// Each time it works when it is tried again.
    async fn put_back(&self) -> Result<(), ConnectorError> {
        self.will.put_back.fetch_add(1, SeqCst);
        match self.put_back.fetch_add(1, SeqCst) % 2 {
            0 => Err(ConnectorError::transient("it puts nothing back")),
            _ => self.inner.put_back().await,
        }
    }

    fn lease(&self) -> Option<Duration> {
        self.will.lease
    }

    async fn extend(&self, _: &[Receipt]) -> Result<(), ConnectorError> {
        self.will.extensions.fetch_add(1, SeqCst);
        std::future::pending().await
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        self.will.asked.fetch_add(1, SeqCst);
        let lag = self.inner.lag().await;
        if self.queue == "slow" {
            self.will.looked.fetch_add(1, SeqCst);
            if let Ok(once) = self.will.told.acquire().await {
                once.forget();
            }
        }
        lag
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.will.closed.fetch_add(self.closed.swap(0, SeqCst), SeqCst);
        self.inner.shutdown().await
    }
}

struct WilfulProducer {
    inner: Arc<dyn Producer>,
    will: Arc<Will>,
    queue: String,
}

#[async_trait]
impl LikeProducer for WilfulProducer {
    fn inner(&self) -> &dyn Producer {
        &*self.inner
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        match self.queue.as_str() {
            "stuck" => Err(ConnectorError::transient("it takes nothing")),
            "slow" => {
                self.will.taking.fetch_add(1, SeqCst);
                self.will.taken.acquire().await.unwrap().forget();
                self.inner.produce(batch).await
            }
            _ => self.inner.produce(batch).await,
        }
    }
}

const YAML: &str = "
queues: { in: { type: wilful }, out: { type: wilful } }
stages:
  pass: { component: pass, input: in, outputs: [out], workers: 6 }
";

async fn stage(running: &Running) -> StageStatus {
    running.status().await[0].stage("pass").unwrap().clone()
}

async fn ready(running: &Running) {
    eventually("it runs", async || running.is_ready().await).await;
}

#[tokio::test]
async fn a_stage_that_is_stopped_leaves_no_producer_behind() {
    let wilful = Wilful::default();
    let running = World::new().start(YAML, &wilful.registry()).await;
    ready(&running).await;
    let held =
        || -> usize { wilful.will.producers.lock().unwrap().iter().map(Arc::strong_count).sum() };
    let first = held();
    for _ in 0..5 {
        running.stop_stage("pass", None).await.unwrap();
        running.resume("pass").await.unwrap();
        ready(&running).await;
    }
    eventually("those of the stopped lines end", async || held() == first).await;
    let stage = stage(&running).await;
    assert_eq!((stage.state, stage.restarts), (StageState::Running, 0));
    running.drain().await;
}

/// They would be in flight at a consumer that nobody asks for them, for as long as the pause lasts.
#[tokio::test]
async fn a_stage_that_is_paused_puts_back_what_it_has_not_handed_out() {
    let wilful = Wilful::default();
    let running = World::new().start(YAML, &wilful.registry()).await;
    ready(&running).await;
    for times in 1..=3 {
        running.pause("pass").await.unwrap();
        let told = wilful.will.opened.load(SeqCst) * 2 * times;
        eventually("all are told, until they have done it", async || {
            wilful.will.put_back.load(SeqCst) == told
        })
        .await;
        running.resume("pass").await.unwrap();
        wilful.put("in", times * 10..times * 10 + 10);
        let there = usize::try_from(times * 10).unwrap();
        eventually("it goes on", async || wilful.count("out") == there).await;
        assert_eq!(wilful.will.put_back.load(SeqCst), told);
    }
    running.drain().await;
}

#[tokio::test]
async fn after_a_pause_an_input_that_is_at_its_end_holds_up_no_later_one() {
    let wilful = Wilful::default();
    let yaml = "
queues: { first: { type: wilful }, then: { type: wilful }, out: { type: wilful } }
stages:
  pass: { component: pass, input: { queues: [first, then], priority: true }, outputs: [out] }
";
    wilful.put("first", 0..10);
    wilful.memory.close("test", "first");
    let running = World::new().start(yaml, &wilful.registry()).await;
    ready(&running).await;
    eventually("the first is at its end", async || wilful.count("out") == 10).await;
    running.until_idle(None).await.unwrap();
    running.pause("pass").await.unwrap();
    running.resume("pass").await.unwrap();
    wilful.put("then", 10..20);
    eventually("the later one is read", async || wilful.count("out") == 20).await;
    running.drain().await;
}

/// A consumer that died, and will not be opened again before something else is done about its stage.
async fn with_a_dead_consumer(wilful: &Wilful) -> Running {
    let yaml = format!("restart: {{ min: 1h, max: 1h }}\n{YAML}");
    let running = World::new().start(&yaml, &wilful.registry()).await;
    ready(&running).await;
    wilful.put("in", 0..10);
    eventually("it works", async || wilful.count("out") == 10).await;
    // One of them may not be up yet.
    eventually("it is hit", async || running.crash("pass", "consumer").await.is_ok()).await;
    eventually("it died", async || stage(&running).await.restarts == 1).await;
    running
}

#[tokio::test]
async fn the_connection_of_a_consumer_that_died_is_closed_when_its_stage_is_stopped() {
    let wilful = Wilful::default();
    let running = with_a_dead_consumer(&wilful).await;
    running.stop_stage("pass", None).await.unwrap();
    assert_eq!(wilful.will.closed.load(SeqCst), wilful.will.opened.load(SeqCst));
    running.drain().await;
}

#[tokio::test]
async fn the_connection_of_a_consumer_that_died_is_closed_when_its_stage_is_scaled() {
    let wilful = Wilful::default();
    let running = with_a_dead_consumer(&wilful).await;
    let before = wilful.will.opened.load(SeqCst);
    running.scale("pass", 3).await.unwrap();
    assert_eq!(wilful.will.closed.load(SeqCst), before);
    wilful.put("in", 10..20);
    eventually("it works again", async || wilful.count("out") == 20).await;
    running.drain().await;
}

#[tokio::test]
async fn a_queue_that_is_away_while_its_stage_is_scaled_is_waited_for() {
    let wilful = Wilful::default();
    let running = World::new().start(YAML, &wilful.registry()).await;
    ready(&running).await;
    wilful.will.away.store(2, SeqCst);
    running.scale("pass", 3).await.unwrap();
    let stage = stage(&running).await;
    assert_eq!((stage.state, stage.workers, stage.error), (StageState::Running, 3, None));
    wilful.put("in", 0..10);
    eventually("it works", async || wilful.count("out") == 10).await;
    let stopped = running.drain().await;
    assert_eq!(stopped[0].failed, []);
}

#[tokio::test]
async fn while_messages_are_extended_others_come_and_go() {
    let mut wilful = Wilful::default();
    let will = Will { lease: Some(Duration::from_millis(3)), ..Will::default() };
    wilful.will = Arc::new(will);
    let running = World::new().start(YAML, &wilful.registry()).await;
    let extended = async || wilful.will.extensions.load(SeqCst) > 0;
    eventually("they are extended", extended).await;
    wilful.put("in", 0..100);
    eventually("all are through", async || wilful.count("out") == 100).await;
    running.drain().await;
}

#[tokio::test]
async fn a_queue_that_takes_nothing_holds_up_no_settlement_of_another_input() {
    let wilful = Wilful::default();
    let route = |n: u64| Ok::<_, Failure>(Emit::to(if n < 10 { "slow" } else { "stuck" }, n));
    let yaml = "
queues: { a: { type: wilful }, b: { type: wilful }, slow: { type: wilful }, stuck: { type: wilful } }
stages:
  pass: { component: route, input: [a, b], outputs: [slow, stuck] }
";
    let registry = wilful.registry().component("route", route);
    let running = World::new().start(yaml, &registry).await;
    wilful.put("a", 0..1);
    wilful.put("b", 10..11);
    let under_way = async || stage(&running).await.blocked && wilful.will.taking.load(SeqCst) == 1;
    eventually("both are on their way", under_way).await;
    let release = async {
        eventually("the other ends", async || wilful.will.closed.load(SeqCst) > 0).await;
        wilful.will.taken.add_permits(1);
    };
    let (stopped, ()) = tokio::join!(running.stop_stage("pass", Some(Duration::ZERO)), release);
    stopped.unwrap();
    assert_eq!((wilful.count("a"), wilful.count("slow")), (0, 1), "it is out and acked");
    assert_eq!((wilful.count("b"), wilful.count("stuck")), (1, 0));
    assert!(!stage(&running).await.blocked, "nothing waits any more");
    running.drain().await;
}

/// It cannot be copied once it has panicked, the first time.
struct Fragile(Arc<[AtomicBool; 2]>);

impl Clone for Fragile {
    fn clone(&self) -> Self {
        assert!(!self.0[1].swap(false, SeqCst), "it cannot be copied");
        Self(Arc::clone(&self.0))
    }
}

impl Component for Fragile {
    type In = u64;
    type Out = Value;

    async fn handle(&mut self, n: u64, _: &Context) -> Result<Value, Failure> {
        if n == 3 && !self.0[0].swap(true, SeqCst) {
            self.0[1].store(true, SeqCst);
            panic!("once");
        }
        Ok(n.into())
    }
}

#[tokio::test]
async fn a_blocking_worker_whose_thread_dies_is_started_again() {
    let wilful = Wilful::default();
    let registry = wilful.registry().component("fragile", Fragile(Arc::default()));
    let yaml = "
queues: { in: { type: wilful }, out: { type: wilful } }
stages:
  pass: { component: fragile, input: in, outputs: [out], blocking: true }
";
    wilful.put("in", 0..10);
    let running = World::new().start(yaml, &registry).await;
    eventually("all are through", async || wilful.count("out") == 10).await;
    running.until_idle(None).await.unwrap();
    assert_eq!(stage(&running).await.restarts, 1);
    running.drain().await;
}

/// Starts a pipeline on this thread, whose time is stopped.
async fn start_paused(yaml: &str, wilful: &Wilful) -> Running {
    let registry = wilful.registry();
    let pipeline = Pipeline::new(World::new().load(yaml, &registry), &registry).unwrap();
    let pipeline = pipeline.state(brigade::MemoryState::new());
    let running = Supervisor::new().add(pipeline).start_here().await.unwrap();
    ready(&running).await;
    running
}

/// Lets so much time go by.
async fn pass(period: Duration) {
    tokio::time::timeout(period, std::future::pending::<()>()).await.unwrap_err();
}

#[test]
fn an_actor_whose_restart_falls_into_a_scaling_is_started_again() {
    const MINUTE: Duration = Duration::from_secs(60);
    let yaml = "
restart: { min: 1m, max: 1m }
queues: { in: { type: wilful }, out: { type: wilful } }
stages:
  first: { component: pass, input: in, workers: 2 }
  then: { component: pass, input: first, outputs: [out], workers: 1 }
";
    let wilful = Wilful::default();
    paused(async {
        let running = start_paused(yaml, &wilful).await;
        running.crash("then", "worker").await.unwrap();
        let opening = wilful.will.opening.acquire().await.unwrap();
        let scaling = running.scale("first", 3);
        let meanwhile = async {
            pass(2 * MINUTE).await;
            drop(opening);
        };
        let (scaled, ()) = tokio::join!(scaling, meanwhile);
        scaled.unwrap();
        assert_eq!(running.status().await[0].stage("then").unwrap().restarts, 1);
        wilful.put("in", 0..10);
        let idle = tokio::time::timeout(10 * MINUTE, running.until_idle(None)).await;
        idle.expect("its worker is there again").unwrap();
        assert_eq!(wilful.count("out"), 10);
    });
}

#[test]
fn an_until_idle_that_nobody_waits_for_ends() {
    const SECOND: Duration = Duration::from_secs(1);
    let wilful = Wilful::default();
    paused(async {
        let running = start_paused(YAML, &wilful).await;
        running.pause("pass").await.unwrap();
        wilful.put("in", 0..1);
        for _ in 0..50 {
            tokio::time::timeout(SECOND, running.until_idle(None)).await.unwrap_err();
        }
        pass(SECOND).await;
        let before = wilful.will.asked.load(SeqCst);
        assert!(before > 0, "it looked");
        pass(60 * SECOND).await;
        assert_eq!(wilful.will.asked.load(SeqCst), before, "it still looks");
        running.resume("pass").await.unwrap();
        running.until_idle(None).await.unwrap();
        assert_eq!(wilful.count("out"), 1);
    });
}

#[tokio::test]
async fn by_priority_an_earlier_input_that_is_away_holds_up_no_later_one() {
    let wilful = Wilful::default();
    let yaml = "
queues: { gone: { type: wilful }, in: { type: wilful }, out: { type: wilful } }
stages:
  pass: { component: pass, input: { queues: [gone, in], priority: true }, outputs: [out] }
";
    wilful.put("in", 0..100);
    let running = World::new().start(yaml, &wilful.registry()).await;
    eventually("all are through", async || wilful.count("out") == 100).await;
    running.drain().await;
}

#[tokio::test]
async fn a_dead_letter_that_comes_where_it_was_looked_already_is_not_left_behind() {
    let wilful = Wilful::default();
    let refuse = |_: u64| Err::<Emit, _>(Failure::reject("no"));
    let yaml = "
queues: { in: { type: wilful }, slow: { type: wilful }, out: { type: wilful } }
stages:
  letters: { component: pass, input: slow, outputs: [out], workers: 1 }
  work: { component: refuse, input: in, dead_letter: slow, workers: 1 }
";
    let registry = wilful.registry().component("refuse", refuse);
    let running = World::new().start(yaml, &registry).await;
    wilful.put("in", 0..1);
    let will = &wilful.will;
    eventually("its letter is on its way", async || will.taking.load(SeqCst) == 1).await;
    let meanwhile = async {
        eventually("it was looked for letters", async || will.looked.load(SeqCst) == 1).await;
        will.taken.add_permits(1);
        let work = async || running.status().await[0].stage("work").unwrap().clone();
        let through = async || (work().await.dead_lettered, work().await.in_flight) == (1, 0);
        eventually("the letter is there", through).await;
        will.told.add_permits(1);
        eventually("it is looked again", async || will.looked.load(SeqCst) == 2).await;
        will.giving.close();
        will.told.close();
    };
    let (idle, ()) = tokio::join!(running.until_idle(None), meanwhile);
    idle.unwrap();
    assert_eq!(wilful.count("out"), 1);
    running.drain().await;
}

#[tokio::test]
async fn no_stage_is_marked_as_finished_for_others_by_a_look_in_which_something_moved() {
    let (wilful, world) = (Wilful::default(), World::new());
    let take = |_: u64| Ok::<_, Failure>(Emit::none());
    let yaml = "
queues: { in: { type: wilful }, slow: { type: wilful } }
stages:
  first: { component: take, input: in, workers: 1 }
  then: { component: take, input: slow, workers: 1 }
";
    let running = world.start(yaml, &wilful.registry().component("take", take)).await;
    let will = &wilful.will;
    let marks = async || {
        let kept = world.state.scan("finished/test", "").await.unwrap();
        kept.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    let meanwhile = async {
        eventually("the first is seen", async || will.looked.load(SeqCst) == 1).await;
        wilful.put("in", 0..1);
        let filtered = async || running.status().await[0].stage("first").unwrap().filtered;
        eventually("it moved", async || filtered().await == 1).await;
        will.told.add_permits(1);
        eventually("it is looked again", async || will.looked.load(SeqCst) == 2).await;
        assert_eq!(marks().await, ["~run"]);
        will.giving.close();
        will.told.close();
    };
    let (idle, ()) = tokio::join!(running.until_idle(None), meanwhile);
    idle.unwrap();
    assert_eq!(marks().await, ["first", "then", "~run"]);
    running.drain().await;
}
