//! Components that do what nobody would do on purpose: each harms its own messages and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::fmt;
use std::time::Duration;

use brigade::component::{Context, Emit, IntoComponent};
use brigade::prelude::*;
use brigade::{CauseKind, StageState, StageStatus};
use common::{World, eventually};

/// Runs a stage of this component over the numbers from 0 to 9 until nothing is left to do.
async fn run<M>(
    world: &World,
    more: &str,
    component: impl IntoComponent<M>,
) -> (brigade::Running, StageStatus) {
    let registry = world.registry().component("it", component);
    let yaml = format!(
        "
queues: {{ in: {{ type: memory }}, out: {{ type: memory }} }}
stages:
  it:
    component: it
    input: in
    outputs: [out]
    retry: {{ attempts: 2, min: 1ms, max: 1ms }}
{more}"
    );
    world.put("in", 0..10);
    let running = world.start(&yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    let stage = running.status().await[0].stages[0].clone();
    (running, stage)
}

fn assert_unharmed(stage: &StageStatus) {
    assert_eq!((stage.state, stage.restarts), (StageState::Running, 0), "{stage:?}");
}

#[tokio::test]
async fn a_delay_of_any_length_is_one() {
    let world = World::new();
    let wait = |n: u64, cx: &Context| match n {
        3 if cx.attempt() == 1 => Err(Failure::retry_after(Duration::MAX, "later")),
        5 => Ok(Emit::value(n).delay(Duration::MAX)),
        _ => Ok(Emit::value(n)),
    };
    let registry = world.registry().component("it", wait);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  it: { component: it, input: in, outputs: [out] }
";
    world.put("in", 0..10);
    let running = world.start(yaml, &registry).await;
    let stage = async || running.status().await[0].stages[0].clone();
    eventually("nine are done", async || stage().await.acked == 9).await;
    assert_unharmed(&stage().await);
    // A queue that does not answer in time is left out.
    eventually("it is told that the failed one waits", async || {
        let depths = running.watcher().depths().await;
        depths.first().is_some_and(|depth| depth.lag.delayed == Some(1))
    })
    .await;
    running.drain().await;
}

#[tokio::test]
async fn a_blocking_component_may_have_a_runtime_of_its_own() {
    let world = World::new();
    let own = |n: u64| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // That of its thread is there as well.
        tokio::runtime::Handle::try_current()?;
        Ok::<_, Failure>(Emit::value(runtime.block_on(async { n })))
    };
    let (running, stage) = run(&world, "    blocking: true", own).await;
    assert_unharmed(&stage);
    running.drain().await;
    assert_eq!(world.numbers("out").len(), 10);
}

#[tokio::test]
async fn a_batch_that_has_another_number_of_answers_than_messages_fails_as_a_whole() {
    for off in [-1_isize, 1] {
        let world = World::new();
        let other = async move |numbers: Vec<u64>| {
            let n = numbers.len().checked_add_signed(off).unwrap();
            let answers = numbers.into_iter().cycle().take(n);
            answers.map(|n| Ok::<_, Failure>(Emit::value(n))).collect::<Vec<_>>()
        };
        let (running, stage) = run(&world, "    batch: { size: 10, age: 5s }", other).await;
        assert_unharmed(&stage);
        running.drain().await;
        assert_eq!(world.numbers("out"), [0; 0], "nobody knows whose answers they are");
        let letters = world.dead_letters("it");
        assert_eq!(letters.len(), 10);
        let text = format!("the batch component gave {} answers for 10 messages", 10 + off);
        assert_eq!(letters[0].cause.message, text);
    }
}

/// Tells the key of each message beside its number.
#[derive(Clone)]
struct Keys;

impl BatchComponent for Keys {
    type In = u64;
    type Out = Emit;

    async fn handle(&mut self, numbers: Vec<u64>, cx: &[&Context]) -> Vec<Result<Emit, Failure>> {
        assert_eq!(numbers.len(), cx.len());
        let told = numbers.iter().zip(cx).map(|(n, cx)| {
            assert_eq!(cx.key().unwrap(), &format!("k{}", n % 10), "its own context");
            Ok(Emit::value(n))
        });
        told.collect()
    }
}

#[tokio::test]
async fn a_batch_has_the_contexts_of_the_messages_that_decode() {
    let world = World::new();
    world.memory.put("test", "in", [Message::new("no number").with_key("other")]);
    let (running, stage) = run(&world, "    batch: { size: 11, age: 5s }", Keys).await;
    assert_unharmed(&stage);
    running.drain().await;
    assert_eq!(world.numbers("out").len(), 10);
    assert_eq!(world.dead_letters("it")[0].cause.kind, CauseKind::Decode);
}

/// Panics when it is told, and when it is dropped.
#[derive(Debug)]
struct Bomb;

impl fmt::Display for Bomb {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("it cannot be told");
    }
}

impl std::error::Error for Bomb {}

struct Dropped;

impl Drop for Dropped {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("it cannot be dropped");
        }
    }
}

#[tokio::test]
async fn an_error_that_panics_when_it_is_told_harms_its_message_alone() {
    let world = World::new();
    let fail = |n: u64| match n {
        3 => Err(Failure::from(Bomb)),
        5 => Err(Failure::reject(Bomb)),
        _ => Ok(Emit::value(n)),
    };
    let (running, stage) = run(&world, "", fail).await;
    assert_unharmed(&stage);
    running.drain().await;
    assert_eq!((world.numbers("out").len(), world.dead_letters("it").len()), (8, 2));
}

#[tokio::test]
async fn a_panic_that_panics_when_it_is_dropped_harms_its_message_alone() {
    let world = World::new();
    let fail = |n: u64| {
        if n == 3 {
            std::panic::panic_any(Dropped);
        }
        Ok::<_, Failure>(Emit::value(n))
    };
    let (running, stage) = run(&world, "", fail).await;
    assert_unharmed(&stage);
    running.drain().await;
    assert_eq!((world.numbers("out").len(), world.dead_letters("it").len()), (9, 1));
}

#[tokio::test]
async fn a_call_that_panics_when_it_is_cut_short_harms_its_message_alone() {
    let world = World::new();
    let fail = async |n: u64| {
        if n == 3 {
            let _dropped = Dropped;
            std::future::pending::<()>().await;
        }
        Ok::<_, Failure>(Emit::value(n))
    };
    let (running, stage) = run(&world, "    timeout: 10ms", fail).await;
    assert_unharmed(&stage);
    running.drain().await;
    assert_eq!((world.numbers("out").len(), world.dead_letters("it").len()), (9, 1));
}
