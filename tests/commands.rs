//! What a program tells a running pipeline, again and again and all at once.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use brigade::connector::Produced;
use brigade::{
    CommandError, Failure, Message, Pipeline, Running, StageState, StageStatus, Supervisor,
};
use common::{SUPERVISORS_PANICKED, World, eventually};

const YAML: &str = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  pass: { component: pass, input: in, outputs: [out], order: key, workers: 2 }
";

async fn pass(n: u64) -> Result<serde_json::Value, Failure> {
    tokio::task::yield_now().await;
    Ok(serde_json::json!(n))
}

async fn stage(running: &Running) -> StageStatus {
    running.status().await[0].stage("pass").unwrap().clone()
}

async fn ready(running: &Running) {
    eventually("it runs", async || running.is_ready().await).await;
}

/// Every number once, those of a key in order.
fn assert_once_in_order(out: &[u64], messages: u64) {
    let mut last = HashMap::new();
    for n in out {
        let before = last.insert(n % 10, *n);
        assert!(before.is_none_or(|before| before < *n), "{n} left after {before:?}");
    }
    assert_eq!(out.len() as u64, messages);
}

#[tokio::test]
async fn a_stage_that_is_stopped_and_resumed_again_and_again_has_not_died() {
    const MESSAGES: u64 = 3_000;
    let world = World::new();
    let registry = world.registry().component("pass", pass);
    world.put("in", 0..MESSAGES);
    let running = world.start(YAML, &registry).await;
    for _ in 0..12 {
        ready(&running).await;
        running.stop_stage("pass", None).await.unwrap();
        running.resume("pass").await.unwrap();
    }
    ready(&running).await;
    running.until_idle(None).await.unwrap();
    let stage = stage(&running).await;
    assert_eq!((stage.state, stage.restarts), (StageState::Running, 0), "{:?}", stage.error);
    running.drain().await;
    assert_once_in_order(&world.numbers("out"), MESSAGES);
}

#[tokio::test]
async fn a_stage_that_was_scaled_has_as_many_workers_when_it_is_resumed() {
    let world = World::new();
    let (now, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (within, seen) = (Arc::clone(&now), Arc::clone(&most));
    let wait = move |_: u64| {
        let (now, most) = (Arc::clone(&within), Arc::clone(&seen));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            std::future::pending::<()>().await;
            Ok::<(), Failure>(())
        }
    };
    let registry = world.registry().component("pass", wait);
    let running = world.start(&YAML.replace("order: key, ", ""), &registry).await;
    ready(&running).await;
    running.scale("pass", 5).await.unwrap();
    running.stop_stage("pass", None).await.unwrap();
    running.resume("pass").await.unwrap();
    ready(&running).await;
    assert_eq!(stage(&running).await.workers, 5);
    world.put("in", 0..100);
    eventually("five work", async || most.load(Ordering::Relaxed) >= 5).await;
    running.stop(Some(Duration::ZERO)).await;
    assert_eq!(most.load(Ordering::Relaxed), 5);
}

/// What may be refused: the stage is in another state by then.
fn refused(answer: &Result<(), CommandError>) -> bool {
    answer.as_ref().is_err_and(|error| error.to_string().contains("stage `pass` is "))
}

#[tokio::test]
async fn commands_at_once_lose_and_repeat_nothing_and_kill_nobody() {
    const MESSAGES: u64 = 10_000;
    let world = World::new();
    let registry = world.registry().component("pass", pass);
    let running = world.start(YAML, &registry).await;
    ready(&running).await;
    for round in 0..50 {
        let part = MESSAGES / 50;
        world.put("in", round * part..(round + 1) * part);
        let workers = |n: u64| usize::try_from((round * 7 + n) % 8 + 1).unwrap();
        let answers = tokio::join!(
            running.scale("pass", workers(0)),
            running.pause("pass"),
            running.resume("pass"),
            running.scale("pass", workers(3)),
            running.stop_stage("pass", (round % 2 == 0).then_some(Duration::from_secs(5))),
            running.resume("pass"),
            running.scale("pass", workers(5)),
            running.drain_stage("pass"),
        );
        let (a, b, c, d, e, f, g, h) = answers;
        for answer in [a, b, c, d, e, f, g, h] {
            assert!(answer.is_ok() || refused(&answer), "{answer:?}");
        }
        if stage(&running).await.state != StageState::Starting {
            running.resume("pass").await.unwrap();
        }
        ready(&running).await;
        running.scale("pass", workers(1)).await.unwrap();
        assert_eq!(stage(&running).await.workers, workers(1));
    }
    running.until_idle(None).await.unwrap();
    let stage = stage(&running).await;
    assert_eq!((stage.restarts, stage.received), (0, MESSAGES + stage.released));
    running.drain().await;
    assert_once_in_order(&world.numbers("out"), MESSAGES);
}

#[tokio::test]
async fn a_stage_that_was_stopped_while_it_was_to_be_scaled_takes_nothing() {
    let world = World::new();
    let registry = world.registry().component("pass", pass);
    let running = world.start(YAML, &registry).await;
    for _ in 0..20 {
        ready(&running).await;
        let (scaled, stopped) =
            tokio::join!(running.scale("pass", 3), running.stop_stage("pass", None));
        assert!(scaled.is_ok() || refused(&scaled), "{scaled:?}");
        stopped.unwrap();
        assert_eq!(stage(&running).await.state, StageState::Stopped);
        assert_eq!(running.watcher().depths().await.len(), 0, "nobody reads the queue");
        running.resume("pass").await.unwrap();
    }
    running.drain().await;
}

#[tokio::test]
async fn a_drain_lets_a_stage_that_is_being_scaled_finish_what_it_has() {
    const MESSAGES: u64 = 2_000;
    for _ in 0..5 {
        let world = World::new();
        let registry = world.registry().component("pass", pass);
        world.put("in", 0..MESSAGES);
        let running = world.start(YAML, &registry).await;
        ready(&running).await;
        // It is asked, and not waited for.
        let _ = tokio::time::timeout(Duration::ZERO, running.scale("pass", 7)).await;
        let stopped = running.drain().await.remove(0);
        assert_eq!(stopped.given_back, 0);
        let left = world.numbers("in").len() + world.numbers("out").len();
        assert_eq!(left as u64, MESSAGES, "what is not out is in its queue");
    }
}

#[tokio::test]
async fn a_pipeline_that_ends_leaves_its_state_to_another_of_the_process() {
    let world = World::new();
    let registry = world.registry().component("pass", pass);
    let yaml = YAML.replace("memory", "embedded");
    let directory = tempfile::tempdir().unwrap();
    let start = async || {
        let pipeline = Pipeline::new(world.load(&yaml, &registry), &registry).unwrap();
        Supervisor::new().add(pipeline.state_path(directory.path())).start().await.unwrap()
    };
    let (first, second) = (start().await, start().await);
    ready(&first).await;
    ready(&second).await;
    first.drain().await;
    let queue = second.producer("in").await.unwrap();
    let put = queue.produce(&[Message::new("7").with_key("k").into()]).await.unwrap();
    assert!(matches!(put[..], [Produced::Confirmed]), "{put:?}");
    second.until_idle(None).await.unwrap();
    let stage = stage(&second).await;
    assert_eq!((stage.state, stage.acked), (StageState::Running, 1), "{:?}", stage.error);
    drop(queue);
    second.drain().await;
    // And the last one shuts it down.
    let third = start().await;
    ready(&third).await;
    third.drain().await;
}

#[tokio::test]
async fn a_start_that_is_given_up_ends_what_it_began_and_panics_nowhere() {
    let kept = Arc::new(());
    for _ in 0..20 {
        let world = World::new();
        let held = Arc::clone(&kept);
        let registry = world.registry().component("pass", move |n: u64| {
            let _held = &held;
            Ok::<_, Failure>(serde_json::json!(n))
        });
        let pipeline = Pipeline::new(world.load(YAML, &registry), &registry).unwrap();
        drop(registry);
        let start = Supervisor::new().add(pipeline.state(brigade::MemoryState::new())).start();
        // Where it was quicker than that, what has started is dropped.
        drop(tokio::time::timeout(Duration::ZERO, start).await);
    }
    eventually("all actors have gone", async || Arc::strong_count(&kept) == 1).await;
    assert_eq!(SUPERVISORS_PANICKED.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_supervisor_without_a_pipeline_says_what_it_misses() {
    let error = Supervisor::new().start().await.unwrap_err();
    assert_eq!(error.to_string(), "no pipeline to start: `add` one before `start`");
}

#[tokio::test]
async fn what_a_stage_cannot_do_now_is_refused_and_changes_nothing() {
    let world = World::new();
    let registry = world.registry().component("pass", pass);
    let running = world.start(YAML, &registry).await;
    ready(&running).await;
    let is_refused = |answer: Result<(), CommandError>, why: &str| {
        let told = answer.unwrap_err().to_string();
        assert!(told.contains(why), "{told}");
    };
    is_refused(running.pause("pas").await, "no stage `pas` here; there are: pass");
    is_refused(running.scale("pass", 0).await, "stage `pass` may have ");
    running.stop_stage("pass", None).await.unwrap();
    let stopped = "stage `pass` is stopped; for this it has to be running";
    is_refused(running.pause("pass").await, stopped);
    is_refused(running.drain_stage("pass").await, stopped);
    is_refused(running.scale("pass", 3).await, stopped);
    assert_eq!(stage(&running).await.state, StageState::Stopped);
    running.resume("pass").await.unwrap();
    ready(&running).await;
}
