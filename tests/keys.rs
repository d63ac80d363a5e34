//! What the keys of a stage and of a queue promise: timeout, throttle, limits, parking,
//! scaling, typed values over direct edges.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use brigade::component::{Context, Emit, Emitted};
use brigade::connector::ConnectorEnv;
use brigade::{CauseKind, Failure, Message, Output, Registry, Running, StageState};
use common::{World, eventually};
use serde::{Deserialize, Serialize};

#[tokio::test]
async fn an_async_call_that_takes_longer_than_the_timeout_is_dropped_and_tried_again() {
    let world = World::new();
    let slow = async |n: u64, cx: &Context| {
        if n == 3 || (n == 5 && cx.attempt() == 1) {
            std::future::pending::<()>().await;
        }
        Ok::<_, Failure>(serde_json::json!(n))
    };
    let registry = world.registry().component("slow", slow);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  slow:
    { component: slow, input: in, outputs: [out], timeout: 20ms,
      retry: { attempts: 2, min: 1ms, max: 1ms } }
";
    world.put("in", 0..10);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    let status = running.status().await;
    assert_eq!(status[0].stage("slow").unwrap().timeouts, 3);
    running.drain().await;
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert_eq!(out, [0, 1, 2, 4, 5, 6, 7, 8, 9]);
    let dead = world.dead_letters("slow");
    assert_eq!((dead[0].cause.kind, dead[0].attempts), (CauseKind::Timeout, 2));
}

#[tokio::test]
async fn a_throttled_stage_handles_no_more_than_its_rate() {
    let world = World::new();
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = times.clone();
    let note = move |n: u64| {
        seen.lock().unwrap().push(Instant::now());
        Ok::<_, Failure>(serde_json::json!(n))
    };
    let registry = world.registry().component("note", note);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  note:
    { component: note, input: in, outputs: [out], workers: 4, throttle: { rate: 100, per: 1s, burst: 10 } }
";
    world.put("in", 0..40);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let times = times.lock().unwrap();
    let took = *times.last().unwrap() - times[0];
    // Ten at once, then one each 10 ms: the other 30 take 300 ms.
    assert!(took >= Duration::from_millis(280), "{took:?}");
    assert_eq!(times.len(), 40);
}

#[tokio::test]
async fn a_full_queue_blocks_its_stage_and_no_call_is_repeated() {
    let world = World::new();
    let calls = Arc::new(AtomicU64::new(0));
    let count = calls.clone();
    let pass = move |n: u64| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok::<_, Failure>(serde_json::json!(n))
    };
    let registry = world.registry().component("pass", pass);
    let directory = tempfile::tempdir().unwrap();
    let yaml = format!(
        "
queues:
  in: {{ type: memory }}
  narrow: {{ type: embedded, path: {:?}, limit: {{ messages: 50 }} }}
  out: {{ type: memory }}
stages:
  fill: {{ component: pass, input: in, outputs: [narrow], max_in_flight: {{ messages: 100 }} }}
  drain: {{ component: pass, input: narrow, outputs: [out] }}
",
        directory.path()
    );
    let running = world.start(&yaml, &registry).await;
    eventually("it runs", async || running.is_ready().await).await;
    running.pause("drain").await.unwrap();
    world.put("in", 0..500);
    eventually("the stage is blocked", async || {
        running.status().await[0].stage("fill").unwrap().blocked
    })
    .await;
    let (out, rest) = (world.numbers("out").len(), world.numbers("in").len());
    assert!(out <= 100 && out + rest >= 500 - 50 - 100, "the consumer stopped pulling");
    running.resume("drain").await.unwrap();
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert!(out.into_iter().eq(0..500), "everything arrives, once");
    assert_eq!(calls.load(Ordering::Relaxed), 1000, "no call is repeated");
}

#[tokio::test]
async fn a_queue_that_holds_less_than_a_batch_lets_it_through_in_parts() {
    let world = World::new();
    let registry = world.registry();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let yaml = format!(
        "
queues:
  in: {{ type: memory }}
  wide: {{ type: embedded, path: {path:?} }}
  narrow: {{ type: embedded, path: {path:?}, limit: {{ messages: 3 }} }}
  out: {{ type: memory }}
stages:
  fill: {{ component: pass, input: in, outputs: [wide] }}
  squeeze: {{ component: pass, input: wide, outputs: [narrow] }}
  drain: {{ component: pass, input: narrow, outputs: [out] }}
"
    );
    world.put("in", 0..100);
    let running = world.start(&yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert!(out.into_iter().eq(0..100), "everything, once");
}

#[tokio::test]
async fn what_a_full_queue_refuses_becomes_a_dead_letter_of_the_stage_that_sent_it() {
    let world = World::new();
    let pass = |n: u64| Ok::<_, Failure>(serde_json::json!(n));
    let registry = world.registry().component("pass", pass);
    let directory = tempfile::tempdir().unwrap();
    let yaml = format!(
        "
queues:
  in: {{ type: memory }}
  narrow: {{ type: embedded, path: {:?}, limit: {{ messages: 5, when_full: refuse }} }}
stages:
  fill: {{ component: pass, input: in, outputs: [narrow] }}
",
        directory.path()
    );
    world.put("in", 0..12);
    let running = world.start(&yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    assert_eq!(written(&running, "narrow").await, (5, 7));
    running.drain().await;
    let dead = world.dead_letters("fill");
    assert_eq!(dead.len(), 7);
    assert!(dead.iter().all(|letter| letter.cause.kind == CauseKind::Refused), "{dead:?}");
}

#[tokio::test]
async fn a_message_of_which_several_outputs_are_refused_is_one_dead_letter() {
    let three = |n: u64| {
        let outputs = (0..3).map(|at| Emitted::json(format!("{n}{at}")));
        Ok::<_, Failure>(outputs.fold(Emit::none(), Emit::with))
    };
    let directory = tempfile::tempdir().unwrap();
    // The outputs go before the acks, or in one transaction with them.
    for queue in ["memory".to_owned(), format!("embedded, path: {:?}", directory.path())] {
        let world = World::new();
        let registry = world.registry().component("three", three);
        let yaml = format!(
            "
queues:
  feed: {{ type: memory }}
  in: {{ type: {queue} }}
  narrow: {{ type: {queue}, limit: {{ messages: 1, when_full: refuse }} }}
stages:
  put: {{ component: pass, input: feed, outputs: [in] }}
  fill: {{ component: three, input: in, outputs: [narrow] }}
"
        );
        world.put("feed", 1..3);
        let running = world.start(&yaml, &registry).await;
        running.until_idle(None).await.unwrap();
        let told = running.status().await[0].stage("fill").unwrap().dead_lettered;
        running.drain().await;
        assert_eq!((told, world.dead_letters("fill").len()), (2, 2), "on {queue}");
    }
}

#[tokio::test]
async fn a_key_that_comes_by_two_queues_is_handled_one_at_a_time() {
    let (at_work, both) = (Arc::new(Mutex::new(HashSet::new())), Arc::new(AtomicU64::new(0)));
    let world = World::new();
    let (keys, met) = (Arc::clone(&at_work), Arc::clone(&both));
    let registry = world.registry().component("hold", async move |n: u64, cx: &Context| {
        let key = cx.key().cloned();
        if !keys.lock().unwrap().insert(key.clone()) {
            met.fetch_add(1, Ordering::Relaxed);
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        keys.lock().unwrap().remove(&key);
        Ok::<_, Failure>(Emit::value(n))
    });
    let yaml = "
queues: { a: { type: memory }, b: { type: memory }, out: { type: memory } }
stages:
  hold: { component: hold, input: [a, b], outputs: [out], order: key, workers: 4 }
";
    for queue in ["a", "b"] {
        let message = |n: u64| Message::new(n.to_string()).with_key(format!("k{}", n % 5));
        world.memory.put("test", queue, (0..1000).map(message));
    }
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    assert_eq!(world.numbers("out").len(), 2000);
    assert_eq!(both.load(Ordering::Relaxed), 0, "two of a key at once");
}

/// How many messages a queue took, and how many not.
async fn written(running: &Running, queue: &str) -> (u64, u64) {
    let status = running.status().await.remove(0);
    let times = status.queues.iter().find(|times| times.queue == queue).unwrap();
    (times.written, times.failed)
}

/// Both where outputs go before the acks and where they are one transaction with them.
#[tokio::test]
async fn outputs_are_counted_when_they_are_on_their_queues() {
    let world = World::new();
    let registry = world.registry();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let yaml = format!(
        "
stop_deadline: 100ms
queues:
  in: {{ type: memory }}
  feed: {{ type: memory }}
  wide: {{ type: embedded, path: {path:?} }}
  narrow: {{ type: embedded, path: {path:?}, limit: {{ messages: 2 }} }}
  tight: {{ type: embedded, path: {path:?}, limit: {{ messages: 2 }} }}
stages:
  elsewhere: {{ component: pass, input: in, outputs: [narrow] }}
  widen: {{ component: pass, input: feed, outputs: [wide] }}
  together: {{ component: pass, input: wide, outputs: [tight] }}
"
    );
    world.put("in", 0..4);
    world.put("feed", 0..4);
    let running = world.start(&yaml, &registry).await;
    let counted = async |name: &str| {
        let status = running.status().await.remove(0);
        let stage = status.stage(name).unwrap();
        let outputs: u64 = stage.outputs.iter().map(|outputs| outputs.messages).sum();
        (outputs, stage.received, stage.blocked)
    };
    eventually("all were put", async || counted("widen").await.0 == 4).await;
    for (name, queue) in [("elsewhere", "narrow"), ("together", "tight")] {
        eventually(name, async || counted(name).await == (2, 4, true)).await;
        eventually(queue, async || written(&running, queue).await.0 == 2).await;
    }
    running.stop(None).await;
}

/// A pipeline with a queue `keyed` whose stage parks the key of a message that fails until it is mended.
struct Parking {
    world: World,
    registry: Registry,
    broken: Arc<AtomicBool>,
    yaml: String,
    /// Where the queue is.
    _directory: tempfile::TempDir,
}

impl Parking {
    /// `work` is the stage and what comes after it.
    fn new(broken: u64, work: &str) -> Self {
        let (world, directory) = (World::new(), tempfile::tempdir().unwrap());
        let is_broken = Arc::new(AtomicBool::new(true));
        let still = Arc::clone(&is_broken);
        let fragile = move |n: u64| match n == broken && still.load(Ordering::Relaxed) {
            true => Err(Failure::retry(format!("{n} is broken"))),
            false => Ok(serde_json::json!(n)),
        };
        let registry = world.registry().component("fragile", fragile);
        let yaml = format!(
            "
restart: {{ min: 1ms, max: 1ms }}
queues: {{ in: {{ type: memory }}, keyed: {{ type: embedded, path: {:?} }}, out: {{ type: memory }} }}
stages:
  fill: {{ component: pass, input: in, outputs: [keyed] }}
{work}",
            directory.path()
        );
        world.put("in", 0..100);
        Self { world, registry, broken: is_broken, yaml, _directory: directory }
    }

    async fn start(&self) -> Running {
        self.world.start(&self.yaml, &self.registry).await
    }

    /// What was broken is so no more, and the one key that is parked goes on.
    async fn mend_and_release(&self) {
        self.broken.store(false, Ordering::Relaxed);
        let loaded = self.world.load(&self.yaml, &self.registry);
        let env = ConnectorEnv { state: self.world.state.clone() };
        let connector = self.registry.connector_of("embedded").unwrap();
        let admin = connector.admin(&loaded.queues["keyed"].spec, &env).await.unwrap();
        assert_eq!(admin.release(None).await.unwrap(), 1);
    }

    /// Releases the key, of which nothing may be given back to its queue any more.
    async fn release_once(&self, running: Running) {
        let work = async || running.status().await[0].stage("work").unwrap().clone();
        let released = work().await.released;
        self.mend_and_release().await;
        eventually("all is handled", async || work().await.acked == 100).await;
        assert_eq!(work().await.released, released, "nothing was given back");
        running.drain().await;
        assert_eq!(self.world.numbers("out").len(), 100);
    }
}

#[tokio::test]
async fn a_parked_key_waits_until_it_is_released_and_others_go_on() {
    let parking = Parking::new(
        13,
        "
  work:
    { component: fragile, input: keyed, outputs: [out], order: key, workers: 2,
      on_exhausted: park, retry: { attempts: 2, min: 1ms, max: 1ms } }
",
    );
    let run = async || {
        let running = parking.start().await;
        running.until_idle(None).await.unwrap();
        running.drain().await;
        parking.world.numbers("out")
    };
    // The key of 13 is that of 3, 23, 33 ...
    let out = run().await;
    assert_eq!(out.iter().filter(|n| **n % 10 == 3).collect::<Vec<_>>(), [&3]);
    assert_eq!(out.len(), 91);
    parking.mend_and_release().await;
    let of_the_key: Vec<u64> = run().await.into_iter().filter(|n| n % 10 == 3).collect();
    assert!(of_the_key.iter().copied().eq((0..10).map(|n| n * 10 + 3)), "{of_the_key:?}");
}

/// Handings-over are counted on: those of the consumer that is opened again are no earlier ones.
#[tokio::test]
async fn a_key_that_is_released_after_its_consumer_died_is_not_given_back_again() {
    let parking = Parking::new(
        93,
        "
  work:
    { component: fragile, input: keyed, outputs: [out], order: key, on_exhausted: park,
      retry: { attempts: 1 } }
",
    );
    let running = parking.start().await;
    running.until_idle(None).await.unwrap();
    let crash = async || running.crash("work", "consumer").await.is_ok();
    eventually("there is one to kill", crash).await;
    let restarts = async || running.status().await[0].stage("work").unwrap().restarts;
    eventually("it is opened again", async || restarts().await == 1).await;
    running.until_idle(None).await.unwrap();
    parking.release_once(running).await;
}

/// Those of a stage's consumers after it was scaled are no earlier ones either, whichever worker noted
/// the key.
#[tokio::test]
async fn a_key_that_is_released_after_its_line_was_scaled_is_not_given_back_again() {
    let parking = Parking::new(
        93,
        "
  work:
    { component: fragile, input: keyed, order: key, on_exhausted: park, retry: { attempts: 1 } }
  next: { component: pass, input: work, outputs: [out] }
",
    );
    let running = parking.start().await;
    running.until_idle(None).await.unwrap();
    running.scale("next", 2).await.unwrap();
    running.until_idle(None).await.unwrap();
    parking.release_once(running).await;
}

#[tokio::test]
async fn scaling_under_load_loses_and_repeats_nothing() {
    const MESSAGES: u64 = 20_000;
    let world = World::new();
    let pass = async |n: u64| {
        tokio::task::yield_now().await;
        Ok::<_, Failure>(serde_json::json!(n))
    };
    let registry = world.registry().component("pass", pass);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  pass: { component: pass, input: in, outputs: [out], order: key, workers: 2 }
";
    world.put("in", 0..MESSAGES);
    let running = world.start(yaml, &registry).await;

    eventually("it runs", async || running.is_ready().await).await;
    for workers in [5, 1, 8, 3] {
        running.scale("pass", workers).await.unwrap();
        assert_eq!(running.status().await[0].stage("pass").unwrap().workers, workers);
    }
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let out = world.numbers("out");
    let mut last = std::collections::HashMap::new();
    for n in &out {
        let before = last.insert(n % 10, *n);
        assert!(before.is_none_or(|before| before < *n), "{n} left after {before:?}");
    }
    assert_eq!(out.len() as u64, MESSAGES);
}

#[tokio::test]
async fn a_stage_that_is_drained_or_stopped_keeps_its_queue_and_goes_on_when_it_is_resumed() {
    const MESSAGES: u64 = 5_000;
    let world = World::new();
    let pass = async |n: u64| {
        tokio::task::yield_now().await;
        Ok::<_, Failure>(serde_json::json!(n))
    };
    let registry = world.registry().component("pass", pass);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  pass: { component: pass, input: in, outputs: [out], workers: 2 }
";
    world.put("in", 0..MESSAGES);
    let running = world.start(yaml, &registry).await;
    eventually("it runs", async || running.is_ready().await).await;
    running.drain_stage("pass").await.unwrap();
    let state = async || running.status().await[0].stage("pass").unwrap().clone();
    assert_eq!((state().await.state, state().await.in_flight), (StageState::Paused, 0));
    let drained = world.numbers("out").len() + world.numbers("in").len();
    assert_eq!(drained as u64, MESSAGES, "what is not out is in its queue");
    running.resume("pass").await.unwrap();
    running.stop_stage("pass", Some(Duration::ZERO)).await.unwrap();
    assert_eq!(state().await.state, StageState::Stopped);
    let stopped = world.numbers("out").len() + world.numbers("in").len();
    assert_eq!(stopped as u64, MESSAGES, "what was in flight is back in its queue");
    assert!(running.pause("pass").await.unwrap_err().to_string().contains("is stopped"));
    running.resume("pass").await.unwrap();
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert!(out.into_iter().eq(0..MESSAGES), "everything, once");
}

/// Counts how often it is decoded.
#[derive(Debug, Clone, Copy, Serialize, Output)]
struct Typed {
    n: u64,
}

static DECODED: AtomicU64 = AtomicU64::new(0);

impl<'de> Deserialize<'de> for Typed {
    fn deserialize<D: serde::Deserializer<'de>>(decoder: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Plain {
            n: u64,
        }
        DECODED.fetch_add(1, Ordering::Relaxed);
        Plain::deserialize(decoder).map(|plain| Self { n: plain.n })
    }
}

#[tokio::test]
async fn over_a_direct_edge_a_value_goes_as_it_is_and_a_retry_decodes_it() {
    let world = World::new();
    let make = |n: u64| Ok::<_, Failure>(Typed { n });
    let take = |typed: Typed, cx: &Context| match typed.n == 7 && cx.attempt() == 1 {
        true => Err(Failure::retry("once")),
        false => Ok(serde_json::json!(typed.n)),
    };
    let registry = world.registry().component("make", make).component("take", take);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  make: { component: make, input: in }
  take: { component: take, input: make, outputs: [out], retry: { min: 1ms, max: 1ms } }
";
    world.put("in", 0..100);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    assert_eq!(world.numbers("out").len(), 100);
    assert_eq!(DECODED.load(Ordering::Relaxed), 1, "only the retry");
}

#[derive(Deserialize, schemars::JsonSchema)]
struct Bill {
    customer: String,
    #[schemars(range(max = 100))]
    total: u32,
}

/// The type is what a queue's messages have to be, whoever reads or writes them: here a component that takes and
/// answers any value.
#[tokio::test]
async fn a_rust_type_is_the_schema_of_an_input_and_of_an_output() {
    let world = World::new();
    let calls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&calls);
    let double = move |mut bill: serde_json::Value| {
        count.fetch_add(1, Ordering::Relaxed);
        bill["total"] = (bill["total"].as_u64().unwrap_or_default() * 2).into();
        Ok::<_, Failure>(bill)
    };
    let registry = world.registry().schema_of::<Bill>("Bill").component("double", double);
    let yaml = "
queues: { in: { type: memory, schema: Bill }, out: { type: memory, schema: Bill } }
stages: { double: { component: double, input: in, outputs: [out] } }
";
    let bills = [
        r#"{"customer":"Ada","total":50}"#,
        r#"{"customer":"Ada","total":51}"#,
        r#"{"customer":"Ada","total":101}"#,
        r#"{"total":1}"#,
        r#"{"customer":"Ada","total":"1"}"#,
    ];
    world.memory.put("test", "in", bills.map(Message::new));
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let out = world.memory.messages("test", "out");
    let out: Vec<Bill> = out
        .iter()
        .map(|bill| serde_json::from_slice(bill.payload.as_deref().unwrap()).unwrap())
        .collect();
    assert_eq!(
        out.iter().map(|bill| (&*bill.customer, bill.total)).collect::<Vec<_>>(),
        [("Ada", 100)]
    );
    let dead = world.dead_letters("double");
    let of = |kind: CauseKind, queue: &str| {
        let words = format!("does not fit the schema of queue `{queue}`: ");
        let is = |letter: &&brigade::DeadLetter| {
            letter.cause.kind == kind && letter.cause.message.starts_with(&words)
        };
        dead.iter().filter(is).count()
    };
    assert_eq!((of(CauseKind::Schema, "in"), of(CauseKind::Output, "out")), (3, 1), "{dead:?}");
    let kept = dead.iter().map(|letter| letter.message.payload.clone().unwrap());
    let wrong = bills[1..].iter().map(|bill| bytes::Bytes::from(*bill));
    let (kept, wrong): (HashSet<_>, HashSet<_>) = (kept.collect(), wrong.collect());
    assert_eq!(kept, wrong, "as they came");
    assert_eq!(calls.load(Ordering::Relaxed), 2, "what does not fit the input's never reaches it");
}
