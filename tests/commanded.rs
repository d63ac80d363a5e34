//! Commands to stages and pipelines while something else happens to them.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use brigade::prelude::*;
use brigade::{
    Event, Message, Pipeline, PipelineStatus, Registry, Running, StageState, StageStatus,
    Supervisor,
};
use brigade_testkit::paused;
use common::{World, eventually};
use tokio::sync::Semaphore;

const YAML: &str = "
queues: { in: { type: memory }, out: { type: memory }, other: { type: memory } }
stages:
  first: { component: first, input: in, outputs: [out] }
  second: { component: pass, input: other, outputs: [out] }
";

/// What waits longer than this waits for ever.
const LONG: Duration = Duration::from_secs(60);

async fn status_of(running: &Running, stage: &str) -> Option<StageStatus> {
    let status = running.status().await;
    status.first().map(|status: &PipelineStatus| status.stage(stage).unwrap().clone())
}

async fn is(running: &Running, state: StageState) -> bool {
    status_of(running, "first").await.is_some_and(|stage| stage.state == state)
}

/// Starts a pipeline on this thread, whose time is stopped, with a message in flight in `first`.
async fn start_held(world: &World, yaml: &str, registry: &Registry) -> Running {
    let pipeline = Pipeline::new(world.load(yaml, registry), registry).unwrap();
    let pipeline = pipeline.state(world.state.clone());
    let running = Supervisor::new().add(pipeline).start_here().await.unwrap();
    world.put("in", 0..1);
    let held = async || status_of(&running, "first").await.unwrap().in_flight > 0;
    eventually("it is held", held).await;
    running
}

/// A component that cannot be copied while it is told so.
struct Fragile(Arc<AtomicBool>);

impl Clone for Fragile {
    fn clone(&self) -> Self {
        assert!(!self.0.load(SeqCst), "it cannot be copied");
        Self(Arc::clone(&self.0))
    }
}

impl Component for Fragile {
    type In = u64;
    type Out = Emit;

    async fn handle(&mut self, n: u64, _: &Context) -> Result<Emit, Failure> {
        Ok(Emit::value(n))
    }
}

#[tokio::test]
async fn a_component_that_cannot_be_copied_fails_its_stage_and_not_the_others() {
    let world = World::new();
    let fragile = Arc::new(AtomicBool::new(false));
    let registry = world.registry().component("first", Fragile(Arc::clone(&fragile)));
    let running = world.start(&format!("restart: {{ max_restarts: 0 }}{YAML}"), &registry).await;
    eventually("it runs", async || running.is_ready().await).await;
    running.stop_stage("first", None).await.unwrap();
    fragile.store(true, SeqCst);
    running.resume("first").await.unwrap();
    eventually("it fails", async || is(&running, StageState::Failed).await).await;
    world.put("other", 0..10);
    eventually("the other goes on", async || world.numbers("out").len() == 10).await;
    let stopped = running.drain().await;
    let [(stage, error)] = &stopped[0].failed[..] else { panic!("{:?}", stopped[0].failed) };
    assert_eq!(stage, "first");
    assert!(error.contains("cannot be copied"), "{error}");
}

#[test]
fn a_component_that_cannot_be_copied_at_the_start_is_named() {
    let world = World::new();
    let fragile = Arc::new(AtomicBool::new(false));
    let registry = world.registry().component("first", Fragile(Arc::clone(&fragile)));
    let topology = world.load(YAML, &registry);
    fragile.store(true, SeqCst);
    let error = Pipeline::new(topology, &registry).unwrap_err().to_string();
    assert!(error.contains("stage `first`") && error.contains("cannot be copied"), "{error}");
}

#[tokio::test]
async fn a_supervisor_that_dies_is_told_and_its_stages_count_as_failed() {
    let world = World::new();
    let running = world.start(&YAML.replace(": first,", ": pass,"), &world.registry()).await;
    eventually("it runs", async || running.is_ready().await).await;
    running.crash("first", "supervisor").await.unwrap_err();
    running.until_dead().await;
    assert!(running.until_idle(None).await.is_err());
    assert!(!running.is_ready().await);
    let stopped = running.drain().await;
    let failed: Vec<&str> = stopped[0].failed.iter().map(|(stage, _)| stage.as_str()).collect();
    assert_eq!(failed, ["first", "second"]);
    assert!(stopped[0].failed[0].1.contains("its supervisor"), "{:?}", stopped[0].failed);
}

#[test]
fn a_drain_of_a_stage_that_another_call_resumes_is_refused() {
    paused(async {
        let (world, gate) = (World::new(), Arc::new(Semaphore::new(0)));
        let waits = Arc::clone(&gate);
        let first = move |n: u64| {
            let gate = Arc::clone(&waits);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok::<_, Failure>(Emit::value(n))
            }
        };
        let registry = world.registry().component("first", first);
        let running = start_held(&world, YAML, &registry).await;
        let resume = async {
            eventually("it is paused", async || is(&running, StageState::Paused).await).await;
            running.resume("first").await.unwrap();
        };
        let drain = tokio::time::timeout(LONG, running.drain_stage("first"));
        let (drained, ()) = tokio::join!(drain, resume);
        let error = drained.expect("it answers").unwrap_err().to_string();
        assert_eq!(error, "stage `first` is running; for this it has to be paused");
        gate.add_permits(1);
        running.drain_stage("first").await.unwrap();
        assert_eq!(world.numbers("out"), [0]);
    });
}

#[test]
fn a_drain_of_a_stage_that_fails_meanwhile_is_refused() {
    paused(async {
        let (world, gate) = (World::new(), Arc::new(Semaphore::new(0)));
        let waits = Arc::clone(&gate);
        let first = move |_: u64| {
            let gate = Arc::clone(&waits);
            async move {
                gate.acquire().await.unwrap().forget();
                Err::<Emit, _>(Failure::retry("never"))
            }
        };
        let registry = world.registry().component("first", first);
        let halts = "outputs: [out], on_exhausted: halt, retry: { attempts: 1 } }\n  second";
        let yaml = YAML.replacen("outputs: [out] }\n  second", halts, 1);
        let running = start_held(&world, &yaml, &registry).await;
        let release = async {
            eventually("it is paused", async || is(&running, StageState::Paused).await).await;
            gate.add_permits(1);
        };
        let (drained, ()) = tokio::join!(running.drain_stage("first"), release);
        let error = drained.unwrap_err().to_string();
        assert_eq!(error, "stage `first` is failed; for this it has to be paused");
    });
}

/// Its `init` says that it has begun, and never ends.
#[derive(Clone)]
struct Endless(Arc<AtomicBool>);

impl Component for Endless {
    type In = u64;
    type Out = Emit;

    async fn init(&mut self, _: &Setup) -> Result<(), BoxError> {
        self.0.store(true, SeqCst);
        std::future::pending().await
    }

    async fn handle(&mut self, n: u64, _: &Context) -> Result<Emit, Failure> {
        Ok(Emit::value(n))
    }
}

#[tokio::test]
async fn a_stop_while_a_stage_starts_tells_of_no_failure() {
    let world = World::new();
    let begun = Arc::new(AtomicBool::new(false));
    let registry = world.registry().component("first", Endless(Arc::clone(&begun)));
    for budget in [0, 5] {
        let yaml = format!("restart: {{ max_restarts: {budget} }}{YAML}");
        let running = world.start(&yaml, &registry).await;
        let mut events = running.events();
        eventually("it starts", async || begun.swap(false, SeqCst)).await;
        let stopped = running.drain().await;
        assert_eq!(stopped[0].failed, []);
        while let Some(event) = events.next().await {
            if let Event::State { stage, state, error: Some(error), .. } = event {
                panic!("{stage} is {state}: {error}");
            }
        }
    }
}

/// A component that does not return before it is released, and so holds up its whole lane.
fn stuck(release: &Arc<AtomicBool>) -> impl Fn(u64) -> Result<Emit, Failure> + Clone + use<> {
    let release = Arc::clone(release);
    move |n| {
        while !release.load(SeqCst) {
            std::thread::yield_now();
        }
        Ok(Emit::value(n))
    }
}

/// Starts a stage whose call is stuck, and stops it.
async fn stopped_while_stuck(world: &World, release: &Arc<AtomicBool>) -> Running {
    let registry = world.registry().component("first", stuck(release));
    world.put("in", 0..10);
    let running = world.start(YAML, &registry).await;
    eventually("it is stuck", async || {
        status_of(&running, "first").await.is_some_and(|stage| stage.received > 0)
    })
    .await;
    let stop = running.stop_stage("first", Some(Duration::from_millis(10)));
    tokio::time::timeout(LONG, stop).await.expect("it ends").unwrap();
    running
}

#[tokio::test]
async fn the_books_close_though_a_call_of_a_stopped_stage_never_ended() {
    let (world, release) = (World::new(), Arc::new(AtomicBool::new(false)));
    let running = stopped_while_stuck(&world, &release).await;
    let stopped = running.drain().await;
    assert!(stopped[0].status.closes(), "{:?}", stopped[0].status);
    release.store(true, SeqCst);
}

#[tokio::test]
async fn a_stage_is_stopped_though_a_call_never_ends() {
    let (world, release) = (World::new(), Arc::new(AtomicBool::new(false)));
    let running = stopped_while_stuck(&world, &release).await;
    let first = async || status_of(&running, "first").await.unwrap();
    let stage = first().await;
    assert_eq!(stage.state, StageState::Stopped);
    assert_eq!((stage.acked, stage.in_flight as u64), (0, stage.received), "{stage:?}");
    assert_eq!(world.numbers("in").len(), 10, "others can have it");
    release.store(true, SeqCst);
    eventually("its call ends", async || first().await.in_flight == 0).await;
    running.resume("first").await.unwrap();
    eventually("all are done", async || first().await.acked == 10).await;
    let stopped = running.drain().await;
    let stage = stopped[0].status.stage("first").unwrap();
    assert_eq!(stage.without_outcome(), 0, "{stage:?}");
    assert_eq!(world.numbers("out").len(), 10);
}

/// A call that takes long, by a clock that is stopped.
async fn for_long() {
    let _ = tokio::time::timeout(LONG, std::future::pending::<()>()).await;
}

#[test]
fn pipelines_are_idle_when_all_of_them_are_at_the_same_time() {
    paused(async {
        let world = World::new();
        let memory = world.memory.clone();
        // The second pipeline gives the first one work.
        let feed = move |n: u64| {
            let memory = memory.clone();
            async move {
                for_long().await;
                memory.put("test", "in", [Message::new(n.to_string())]);
                Ok::<_, Failure>(Emit::none())
            }
        };
        let slow = async |n: u64| {
            for_long().await;
            Ok::<_, Failure>(Emit::value(n))
        };
        let registry = world.registry().component("first", slow).component("feed", feed);
        let fed = Pipeline::new(world.load(YAML, &registry), &registry).unwrap();
        let feeding = "
pipeline: feeding
queues: { in: { type: memory } }
stages: { feed: { component: feed, input: in } }
";
        let feeding = Pipeline::from_yaml(feeding, &registry).unwrap();
        let supervisor = Supervisor::new().add(fed.state(world.state.clone()));
        let supervisor = supervisor.add(feeding.state(brigade::MemoryState::new()));
        let running = supervisor.start_here().await.unwrap();
        world.memory.put("feeding", "in", (0..3).map(|n| Message::new(n.to_string())));
        running.until_idle(None).await.unwrap();
        assert_eq!(world.numbers("out").len(), 3);
        running.drain().await;
    });
}
