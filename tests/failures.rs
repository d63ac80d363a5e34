//! What fails, and what becomes of it: nothing is lost, and nobody else is disturbed.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use brigade::component::{Component, Context, Emit, Setup};
use brigade::{BoxError, CauseKind, Event, Failure, Message, StageState};
use bytes::Bytes;
use common::{World, eventually};
use tokio::sync::Semaphore;

const TWO_STAGES: &str = "
queues: { in: { type: memory }, mid: { type: memory, limit: { messages: 1000000 } }, out: { type: memory, limit: { messages: 1000000 } } }
stages:
  first: { component: first, input: in, outputs: [mid], workers: 2, retry: { attempts: 3, min: 1ms, max: 5ms } }
  second: { component: pass, input: mid, outputs: [out] }
";

#[tokio::test]
async fn panics_and_errors_are_the_messages_failures_and_use_no_restart_budget() {
    const MESSAGES: u64 = 100_000;
    let world = World::new();
    // One in 200 always panics; one in 50 fails on its first attempt only.
    let first = |n: u64, cx: &Context| {
        assert!(n % 200 != 7, "one in two hundred");
        if n % 50 == 3 && cx.attempt() == 1 {
            return Err(Failure::retry("one in fifty"));
        }
        Ok(Emit::value(n))
    };
    let registry = world.registry().component("first", first);
    world.put("in", 0..MESSAGES);
    let running = world.start(TWO_STAGES, &registry).await;
    running.until_idle(None).await.unwrap();
    let status = running.status().await;
    let stage = status[0].stage("first").unwrap();
    assert_eq!(stage.received, MESSAGES);
    assert_eq!(stage.acked + stage.dead_lettered, MESSAGES);
    assert_eq!(stage.dead_lettered, MESSAGES / 200);
    assert_eq!(stage.restarts, 0);
    assert_eq!(stage.panics, 3 * MESSAGES / 200);
    assert!(status[0].is_ready());
    running.drain().await;
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert!(out.iter().copied().eq((0..MESSAGES).filter(|n| n % 200 != 7)));
    let dead = world.dead_letters("first");
    assert!(dead.iter().all(|letter| letter.cause.kind == CauseKind::Panic));
    assert_eq!(dead.len() as u64, MESSAGES / 200);
}

#[derive(Clone)]
struct NoDatabase(Arc<AtomicU64>);

impl Component for NoDatabase {
    type In = u64;
    type Out = ();

    async fn init(&mut self, _: &Setup) -> Result<(), BoxError> {
        self.0.fetch_add(1, SeqCst);
        Err("no database".into())
    }

    async fn handle(&mut self, _: u64, _: &Context) -> Result<(), Failure> {
        Ok(())
    }
}

#[tokio::test]
async fn an_init_that_fails_uses_up_the_budget_and_keeps_the_queue() {
    let world = World::new();
    let tries = Arc::new(AtomicU64::new(0));
    let registry = world.registry().component("first", NoDatabase(tries.clone()));
    world.put("in", 0..10);
    let yaml = "
restart: { max_restarts: 3, period: 60s, min: 5ms, max: 20ms }
queues: { in: { type: memory } }
stages: { first: { component: first, input: in } }
";
    let running = world.start(yaml, &registry).await;
    let failed = async || {
        let status = running.status().await;
        status[0].stages[0].state == StageState::Failed
    };
    eventually("the stage fails", failed).await;
    assert_eq!(tries.load(SeqCst), 4, "once, and three restarts");
    assert!(!running.is_ready().await);
    let status = running.status().await;
    assert!(status[0].stages[0].error.as_deref().unwrap().contains("no database"));
    let stopped = running.drain().await;
    assert_eq!(stopped[0].failed.len(), 1);
    assert_eq!(world.numbers("in").len(), 10, "the queue keeps what it holds");
}

#[tokio::test]
async fn a_poison_message_becomes_a_dead_letter_that_says_everything() {
    let world = World::new();
    let poison = |_: u64| Err::<(), _>(std::io::Error::other("bad luck"));
    let registry = world.registry().component("first", poison);
    world.put("in", [7]);
    let running = world.start(TWO_STAGES, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let dead = world.dead_letters("first");
    let letter = &dead[0];
    assert_eq!(letter.message.payload.as_deref(), Some(&b"7"[..]));
    assert_eq!(letter.message.key.as_deref(), Some(&b"k7"[..]));
    assert_eq!(letter.message.id, brigade::MessageId(8));
    assert_eq!((letter.cause.kind, letter.cause.message.as_str()), (CauseKind::Error, "bad luck"));
    assert_eq!((letter.stage.as_str(), letter.queue.as_str()), ("first", "in"));
    assert_eq!((letter.pipeline.as_str(), letter.position.as_str()), ("test", "in#0"));
    assert_eq!(letter.attempts, 3);
    assert!(letter.first_at <= letter.last_at);
}

#[tokio::test]
async fn actors_that_are_killed_come_back_and_nothing_is_lost() {
    const MESSAGES: u64 = 5_000;
    let world = World::new();
    let registry = world.registry().component("first", async |n: u64| {
        tokio::task::yield_now().await;
        Ok::<_, Failure>(Emit::value(n))
    });
    let yaml = format!("restart: {{ max_restarts: 100, min: 1ms, max: 5ms }}\n{TWO_STAGES}");
    let running = world.start(&yaml, &registry).await;
    for (round, actor) in ["worker", "consumer", "producer", "worker"].into_iter().enumerate() {
        let round = round as u64;
        world.put("in", round * MESSAGES..(round + 1) * MESSAGES);
        let restarts = |status: &brigade::PipelineStatus| status.stages[0].restarts;
        eventually("the actor can be killed", async || running.crash("first", actor).await.is_ok())
            .await;
        eventually("the supervisor starts it again", async || {
            restarts(&running.status().await[0]) > round
        })
        .await;
        running.until_idle(None).await.unwrap();
    }
    running.drain().await;
    let mut out = world.numbers("out");
    out.sort_unstable();
    out.dedup();
    assert!(out.into_iter().eq(0..4 * MESSAGES), "each is there at least once");
}

/// One worker that takes ten at once, and waits for them as long as it may.
const TENS: &str = "
restart: { min: 1ms, max: 1ms }
queues: { in: { type: memory }, out: { type: memory } }
stages:
  first: { component: tens, input: in, outputs: [out], workers: 1, batch: { size: 10, age: 24h } }
";

/// Runs [`TENS`] with so many messages, and kills its worker when it has this many batches and nothing more to
/// take; then more come. Returns the sizes of all its batches. None of them ends before the worker is back.
async fn killed_with(first: u64, begun: usize, more: u64) -> Vec<usize> {
    let world = World::new();
    let (sizes, open) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(0)));
    let (batches, opens) = (Arc::clone(&sizes), Arc::clone(&open));
    let registry = world.registry().component("tens", async move |numbers: Vec<u64>| {
        batches.lock().unwrap().push(numbers.len());
        drop(opens.acquire().await);
        let each = numbers.into_iter().map(|n| Ok::<_, Failure>(Emit::value(n)));
        each.collect::<Vec<_>>()
    });
    let running = world.start(TENS, &registry).await;
    let stage = async || running.status().await[0].stage("first").unwrap().clone();
    world.put("in", 0..first);
    eventually("it has them", async || {
        // It has waited for something to do, and there is something.
        let status = stage().await;
        let has_all = status.in_flight == first && status.idle > Duration::ZERO;
        has_all && sizes.lock().unwrap().len() == begun
    })
    .await;
    running.crash("first", "worker").await.unwrap();
    eventually("it is back", async || stage().await.restarts == 1).await;
    open.close();
    world.put("in", first..first + more);
    running.until_idle(None).await.unwrap();
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert!(out.iter().copied().eq(0..first + more), "each comes once: {out:?}");
    let status = stage().await;
    assert_eq!((status.acked, status.failed_attempts), (first + more, 0), "{status:?}");
    assert_eq!(running.status().await[0].unaccounted, []);
    running.drain().await;
    sizes.lock().unwrap().clone()
}

#[tokio::test]
async fn what_a_killed_worker_had_collected_for_a_batch_is_in_the_next_one() {
    assert_eq!(killed_with(5, 0, 5).await, [10]);
}

#[tokio::test]
async fn a_batch_that_a_killed_worker_was_handling_is_handled_again_as_one() {
    assert_eq!(killed_with(10, 1, 10).await, [10, 10, 10]);
}

#[tokio::test]
async fn a_queue_that_takes_nothing_stops_the_consumer_and_costs_no_attempt() {
    let world = World::new();
    let calls = Arc::new(AtomicU64::new(0));
    let count = calls.clone();
    let component = move |n: u64| {
        count.fetch_add(1, SeqCst);
        Ok::<_, Failure>(Emit::value(n))
    };
    let registry = world.registry().component("first", component);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory, limit: { messages: 100 } } }
stages:
  first: { component: first, input: in, outputs: [out], max_in_flight: { messages: 200 } }
";
    world.put("in", 0..10_000);
    let running = world.start(yaml, &registry).await;
    eventually("the stage is blocked", async || running.status().await[0].stages[0].blocked).await;
    let status = running.status().await;
    assert!(status[0].stages[0].received <= 300, "{}", status[0].stages[0].received);
    let mut arrived = Vec::new();
    while arrived.len() < 10_000 {
        let taken = world.memory.drain("test", "out");
        arrived.extend(taken.iter().map(|message| message.id));
        tokio::task::yield_now().await;
    }
    running.until_idle(None).await.unwrap();
    let status = running.status().await;
    assert_eq!(status[0].stages[0].failed_attempts, 0);
    running.drain().await;
    assert_eq!(calls.load(SeqCst), 10_000, "no call is repeated");
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!(arrived.len(), 10_000);
}

#[tokio::test]
async fn a_blocking_call_that_takes_too_long_is_fenced_off() {
    let world = World::new();
    let release = Arc::new(AtomicBool::new(false));
    let held = release.clone();
    let stuck = move |n: u64| {
        while n == 3 && !held.load(SeqCst) {
            std::thread::yield_now();
        }
        Ok::<_, Failure>(Emit::value(n))
    };
    let registry = world.registry().component("first", stuck);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  first:
    { component: first, input: in, outputs: [out], blocking: true, timeout: 50ms, retry: { attempts: 1 } }
";
    world.put("in", 0..10);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    let status = running.status().await;
    let stage = &status[0].stages[0];
    let (timeouts, acked) = (stage.timeouts, stage.acked);
    // Where its thread got no core for so long another one is fenced off as well.
    assert!(timeouts >= 1 && stage.stuck_threads >= 1, "{stage:?}");
    assert_eq!(timeouts + acked, 10, "{stage:?}");
    release.store(true, SeqCst);
    eventually("the thread ends", async || running.status().await[0].stages[0].stuck_threads == 0)
        .await;
    running.drain().await;
    let out = world.numbers("out");
    assert!(
        out.len() as u64 == acked && !out.contains(&3),
        "late answers are thrown away: {out:?}"
    );
    let dead = world.dead_letters("first");
    assert_eq!(dead.len() as u64, timeouts);
    assert!(dead.iter().all(|letter| letter.cause.kind == CauseKind::Timeout), "{dead:?}");
    assert!(dead.iter().any(|letter| letter.message.payload.as_deref() == Some(b"3")), "{dead:?}");
}

/// It holds up its whole lane: its consumer cannot even give back. The supervisor does.
#[tokio::test]
async fn a_stop_does_not_wait_for_a_stuck_call_for_ever_and_its_books_close() {
    let world = World::new();
    let release = Arc::new(AtomicBool::new(false));
    let held = release.clone();
    let stuck = move |n: u64| {
        while !held.load(SeqCst) {
            std::thread::yield_now();
        }
        Ok::<_, Failure>(Emit::value(n))
    };
    let registry = world.registry().component("first", stuck);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages: { first: { component: first, input: in, outputs: [out] } }
";
    world.put("in", 0..10);
    let running = world.start(yaml, &registry).await;
    eventually("it is stuck", async || running.status().await[0].stages[0].received > 0).await;
    let stopped = running.stop(Some(Duration::from_millis(10))).await;
    let stage = &stopped[0].status.stages[0];
    assert!(stage.received > 0);
    assert_eq!((stage.released, stage.in_flight), (stage.received, 0));
    // The call still lasts.
    let registry = world.registry().component("first", |n: u64| Ok::<_, Failure>(Emit::value(n)));
    let running = world.start(yaml, &registry).await;
    eventually("others get what it held", async || world.numbers("out").len() == 10).await;
    running.drain().await;
    release.store(true, SeqCst);
}

/// Its consumers are told to end, and not to wait instead.
#[tokio::test]
async fn a_drain_after_a_failure_ends_though_a_lane_has_not_heard_of_the_failure() {
    let world = World::new();
    let (calls, release) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, held) = (calls.clone(), release.clone());
    let one_is_stuck = move |n: u64| {
        if count.fetch_add(1, SeqCst) > 0 {
            return Err(Failure::retry("the other lane is stuck"));
        }
        while !held.load(SeqCst) {
            std::thread::yield_now();
        }
        Ok(Emit::value(n))
    };
    let registry = world.registry().component("first", one_is_stuck);
    let yaml = "
queues: { in: { type: memory }, rest: { type: memory }, out: { type: memory } }
stages:
  first:
    { component: first, input: in, outputs: [out], workers: 2, on_exhausted: halt,
      retry: { attempts: 1 } }
  second: { component: pass, input: rest, outputs: [out] }
";
    world.put("in", 0..50);
    let running = world.start(yaml, &registry).await;
    let mut events = running.events();
    eventually("the stage fails", async || {
        running.status().await[0].stage("first").unwrap().state == StageState::Failed
    })
    .await;
    let drained = tokio::spawn(running.drain());
    let draining = |event: &Event| match event {
        Event::State { stage, state, .. } => stage == "second" && *state == StageState::Draining,
        _ => false,
    };
    while !draining(&events.next().await.unwrap()) {}
    release.store(true, SeqCst);
    let drained = tokio::time::timeout(Duration::from_secs(180), drained).await;
    drained.expect("it ends").unwrap();
    assert_eq!(world.numbers("in").len() + world.numbers("out").len(), 50);
}

/// What comes after the message that failed is not handled before it.
#[tokio::test]
async fn what_halts_a_stage_is_not_overtaken_by_the_next_of_its_key() {
    for (order, blocking) in [("key", false), ("key", true), ("queue", false), ("none", false)] {
        let world = World::new();
        let first = |n: u64| match n {
            0 => Err(Failure::retry("it cannot be done")),
            _ => Ok(Emit::value(n)),
        };
        let registry = world.registry().component("first", first);
        let yaml = format!(
            "
queues: {{ in: {{ type: memory }}, out: {{ type: memory }} }}
stages:
  pass: {{ component: pass, input: in, order: {order} }}
  first:
    {{ component: first, input: pass, outputs: [out], order: {order}, blocking: {blocking},
      on_exhausted: halt, retry: {{ attempts: 1 }} }}
"
        );
        let message = |n: u64| Message::new(n.to_string()).with_key("one");
        world.memory.put("test", "in", (0..50).map(message));
        let running = world.start(&yaml, &registry).await;
        eventually("the stage fails", async || {
            running.status().await[0].stage("first").unwrap().state == StageState::Failed
        })
        .await;
        running.drain().await;
        assert!(world.numbers("out").is_empty(), "order: {order}, blocking: {blocking}");
        assert_eq!(world.numbers("in").len(), 50);
    }
}

#[tokio::test]
async fn an_output_that_is_not_declared_makes_a_dead_letter() {
    let world = World::new();
    let registry =
        world.registry().component("first", |n: u64| Ok::<_, Failure>(Emit::to("nowhere", n)));
    world.put("in", [1]);
    let running = world.start(TWO_STAGES, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let cause = &world.dead_letters("first")[0].cause;
    assert_eq!(cause.kind, CauseKind::Output);
    assert_eq!(cause.message, "no output `nowhere`; stage `first` declares `mid`");
}

#[tokio::test]
async fn a_value_that_cannot_be_written_makes_a_dead_letter_and_the_others_go_on() {
    let world = World::new();
    let calls = Arc::new(AtomicU64::new(0));
    let count = calls.clone();
    let first = move |n: u64| {
        count.fetch_add(1, SeqCst);
        // The keys of JSON's objects are texts.
        let no_json = BTreeMap::from([(vec![n], n)]);
        Ok::<_, Failure>(match n % 3 {
            0 => Emit::value(no_json),
            1 => Emit::to("mid", n).and("mid", no_json),
            _ => Emit::value(n),
        })
    };
    let registry = world.registry().component("first", first);
    world.put("in", 0..30);
    let running = world.start(TWO_STAGES, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    assert_eq!(calls.load(SeqCst), 30, "it would be no other at the next attempt");
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert!(out.into_iter().eq((0..30).filter(|n| n % 3 == 2)), "one output alone goes nowhere");
    let dead = world.dead_letters("first");
    let mut kept: Vec<_> = dead.iter().map(|letter| letter.message.payload.clone()).collect();
    let bad = (0..30).filter(|n| n % 3 != 2);
    let mut sent: Vec<_> = bad.map(|n| Some(Bytes::from(n.to_string()))).collect();
    kept.sort();
    sent.sort();
    assert_eq!(kept, sent);
    for letter in dead {
        let says = &letter.cause.message;
        let (of, why) = says.split_once(" does not encode as JSON: ").unwrap();
        assert!(["the value for the output", "the value for output `mid`"].contains(&of), "{says}");
        assert_eq!((letter.cause.kind, why), (CauseKind::Output, "key must be a string"));
    }
}

#[tokio::test]
async fn a_delay_where_nothing_can_delay_makes_a_dead_letter() {
    let later = |n: u64| Ok::<_, Failure>(Emit::value(n).delay(Duration::from_secs(300)));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    let says = [
        "stage `first` delays an output by 5m for stage `next`, which is fed directly",
        "stage `first` delays an output by 5m for queue `file` of type file, which cannot delay",
    ];
    let queues = format!(
        "queues: {{ in: {{ type: memory }}, out: {{ type: memory }}, file: {{ type: file, path: {path:?} }} }}"
    );
    let stages = [
        "first: { component: later, input: in }, next: { component: pass, input: first, outputs: [out] }",
        "first: { component: later, input: in, outputs: [file] }",
    ];
    for (stages, says) in stages.into_iter().zip(says) {
        let world = World::new();
        let registry = world.registry().component("later", later);
        let yaml = format!("{queues}\nstages: {{ {stages} }}");
        world.put("in", [1]);
        let running = world.start(&yaml, &registry).await;
        running.until_idle(None).await.unwrap();
        running.drain().await;
        assert!(world.numbers("out").is_empty());
        let cause = &world.dead_letters("first")[0].cause;
        assert_eq!(cause.kind, CauseKind::Output);
        assert!(cause.message.starts_with(says), "{}", cause.message);
    }
}

#[tokio::test]
async fn what_does_not_decode_never_reaches_the_component() {
    let world = World::new();
    let calls = Arc::new(AtomicU64::new(0));
    let count = calls.clone();
    let registry = world.registry().component("first", move |n: u64| {
        count.fetch_add(1, SeqCst);
        Ok::<_, Failure>(Emit::value(n))
    });
    let broken = [&b"{"[..], b"\xff\xfe", b"", b"\"text\"", b"-1", b"[[[[1"];
    world.memory.put("test", "in", broken.map(|bytes| Message::new(bytes.to_vec())));
    world.memory.put("test", "in", [Message::default()]);
    let running = world.start(TWO_STAGES, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    assert_eq!(calls.load(SeqCst), 0);
    let dead = world.dead_letters("first");
    assert_eq!(dead.len(), 7);
    assert!(dead.iter().all(|letter| letter.cause.kind == CauseKind::Decode));
    let mut kept: Vec<_> = dead.iter().map(|letter| letter.message.payload.clone()).collect();
    let mut sent: Vec<_> = broken.iter().map(|bytes| Some(Bytes::from_static(bytes))).collect();
    sent.push(None);
    kept.sort();
    sent.sort();
    assert_eq!(kept, sent, "kept byte for byte");
}

#[tokio::test]
async fn a_stop_gives_back_what_is_not_resolved_by_its_deadline() {
    let world = World::new();
    let registry = world.registry().component("first", async |n: u64| {
        std::future::pending::<()>().await;
        Ok::<_, Failure>(Emit::value(n))
    });
    world.put("in", 0..50);
    let running = world.start(TWO_STAGES, &registry).await;
    eventually("it is in flight", async || running.status().await[0].stages[0].in_flight > 0).await;
    let stopped = running.stop(Some(Duration::from_millis(50))).await;
    assert!(stopped[0].given_back > 0);
    assert_eq!(world.numbers("in").len(), 50);
}
