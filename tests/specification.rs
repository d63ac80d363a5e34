//! What holds when things go wrong and when they end, one sentence a test. The themes are those that
//! Broadway (Elixir) tests its crashes and its shutdown for; the tests are Brigade's own, on whole
//! pipelines with faults planned by the testkit.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use brigade::component::Raw;
use brigade::prelude::*;
use brigade::{CauseKind, Message, MessageId, Pipeline, Registry, StageState};
use brigade_testkit::{Fault, Trial, TrialSetup};
use common::{World, eventually};
use tokio::sync::Semaphore;

/// Two stages over a queue; `more` stands in the first one.
fn two(more: &str) -> String {
    format!(
        "queues:
  in: {{ type: memory }}
  mid: {{ type: memory }}
  out: {{ type: memory }}
stages:
  first: {{ component: pass, input: in, outputs: [mid], retry: {{ attempts: 3 }}, {more} }}
  second: {{ component: pass, input: mid, outputs: [out] }}
"
    )
}

fn trial(yaml: &str) -> TrialSetup {
    trial_with(yaml, brigade::registry())
}

fn trial_with(yaml: &str, registry: Registry) -> TrialSetup {
    let topology = World::new().load(yaml, &registry);
    Trial::of(Pipeline::new(topology, &registry).unwrap()).without_back_off()
}

fn numbered(numbers: std::ops::Range<u64>) -> impl Iterator<Item = Message> {
    let message = |n: u64| {
        let id = MessageId(u128::from(n) + 1);
        Message::new(n.to_string()).with_id(id).with_key((n % 5).to_string())
    };
    numbers.map(message)
}

fn numbers(trial: &Trial, queue: &str) -> Vec<u64> {
    let text = |message: &Message| String::from_utf8(message.payload.clone().unwrap().to_vec());
    let outputs = trial.outputs(queue);
    outputs.iter().map(|message| text(message).unwrap().parse().unwrap()).collect()
}

fn sorted(mut numbers: Vec<u64>) -> Vec<u64> {
    numbers.sort_unstable();
    numbers
}

fn all(n: u64) -> Vec<u64> {
    (0..n).collect()
}

async fn sent(setup: TrialSetup, messages: u64) -> Trial {
    let trial = setup.start().await.unwrap();
    trial.send("in", numbered(0..messages));
    trial.settle().await.unwrap();
    trial
}

// Components that go wrong.

#[tokio::test]
async fn a_message_whose_call_panics_is_tried_again_and_others_are_not() {
    let trial = sent(trial(&two("")).fault("first", 3..=3, Fault::Panic), 10).await;
    assert_eq!(sorted(numbers(&trial, "out")), all(10));
    let stage = trial.status().await.stage("first").unwrap().clone();
    assert_eq!((stage.panics, stage.calls, stage.restarts), (1, 11, 0));
}

#[tokio::test]
async fn a_message_that_always_fails_becomes_one_dead_letter_after_its_attempts() {
    let fault = Fault::Error("never".into());
    let trial = sent(trial(&two("")).fault("first", 1..=3, fault), 1).await;
    let dead = trial.dead_letters("first");
    assert_eq!(dead.len(), 1);
    assert_eq!((dead[0].cause.kind, dead[0].attempts), (CauseKind::Error, 3));
    assert_eq!(dead[0].message.payload.as_deref(), Some(&b"0"[..]));
    assert!(trial.outputs("out").is_empty());
}

#[tokio::test]
async fn a_message_that_is_rejected_is_not_tried_again() {
    let fault = Fault::Reject("no good".into());
    let trial = sent(trial(&two("")).fault("first", 1..=1, fault), 1).await;
    assert_eq!(trial.dead_letters("first")[0].attempts, 1);
    assert_eq!(trial.status().await.stage("first").unwrap().calls, 1);
}

#[tokio::test]
async fn a_failure_that_passes_leaves_no_trace_but_a_count() {
    let fault = Fault::Error("away".into());
    let trial = sent(trial(&two("")).fault("first", 2..=3, fault), 10).await;
    assert_eq!(sorted(numbers(&trial, "out")), all(10));
    assert!(trial.dead_letters("first").is_empty());
    assert_eq!(trial.status().await.stage("first").unwrap().failed_attempts, 2);
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_dropped_and_tried_again() {
    let fault = Fault::Slow(Duration::from_secs(3600));
    let wait = |setup: TrialSetup| setup.fault("first", 2..=2, fault);
    let trial = sent(wait(trial_of_async("timeout: 50ms")), 5).await;
    assert_eq!(sorted(numbers(&trial, "out")), all(5));
    assert_eq!(trial.status().await.stage("first").unwrap().timeouts, 1);
}

/// As [`two`] with an async first component, which a timeout can drop.
fn trial_of_async(more: &str) -> TrialSetup {
    let registry = brigade::registry().component("wait", async |raw: Raw| Ok::<_, Failure>(raw));
    trial_with(&two(more).replacen("component: pass", "component: wait", 1), registry)
}

#[tokio::test]
async fn a_slow_call_holds_up_its_worker_and_nobody_else() {
    let slow = Fault::Slow(Duration::from_secs(3600));
    let setup = trial_of_async("workers: 2").fault("first", 1..=1, slow);
    let trial = setup.start().await.unwrap();
    trial.send("in", numbered(0..100));
    // What its own worker had been given waits behind it: the rest goes by.
    eventually("the other worker goes on", async || trial.outputs("out").len() > 90).await;
    assert!(!trial.settle_within(Duration::ZERO).await.unwrap());
    let stopped = trial.stop(Duration::from_millis(10)).await;
    assert!(stopped[0].given_back >= 1);
}

#[tokio::test]
async fn in_the_order_of_keys_what_comes_after_a_failure_of_its_key_waits_for_it() {
    let fault = Fault::Error("away".into());
    let setup = trial(&two("order: key, workers: 3")).fault("first", 4..=6, fault);
    let trial = sent(setup, 100).await;
    let out = numbers(&trial, "out");
    assert_eq!(sorted(out.clone()), all(100));
    for key in 0..5 {
        let of_key: Vec<u64> = out.iter().copied().filter(|n| n % 5 == key).collect();
        assert!(of_key.is_sorted(), "key {key}: {of_key:?}");
    }
}

#[tokio::test]
async fn in_the_order_of_the_queue_everything_waits_for_a_failure() {
    let fault = Fault::Error("away".into());
    let setup = trial(&two("order: queue")).fault("first", 4..=5, fault);
    let trial = sent(setup, 20).await;
    assert_eq!(numbers(&trial, "out"), all(20));
}

// Batches.

fn batches() -> TrialSetup {
    let registry = brigade::registry().component("double", double);
    trial_with(
        "queues: { in: { type: memory }, out: { type: memory } }
stages:
  first:
    component: double
    input: in
    outputs: [out]
    batch: { size: 5, age: 20ms }
    retry: { attempts: 3 }
",
        registry,
    )
}

async fn double(inputs: Vec<u64>) -> Vec<Result<serde_json::Value, Failure>> {
    let answer = |n: u64| match n {
        13 => Err(Failure::reject("unlucky")),
        n => Ok((2 * n).into()),
    };
    inputs.into_iter().map(answer).collect()
}

#[tokio::test]
async fn of_a_batch_only_the_message_that_fails_is_given_up_on() {
    let trial = sent(batches(), 20).await;
    let wanted: Vec<u64> = (0..20).filter(|n| *n != 13).map(|n| 2 * n).collect();
    assert_eq!(sorted(numbers(&trial, "out")), wanted);
    assert_eq!(trial.dead_letters("first").len(), 1);
}

#[tokio::test]
async fn a_batch_that_panics_is_tried_again_as_a_whole() {
    let trial = sent(batches().fault("first", 1..=1, Fault::Panic), 10).await;
    assert_eq!(sorted(numbers(&trial, "out")), (0..10).map(|n| 2 * n).collect::<Vec<_>>());
    assert!(trial.dead_letters("first").is_empty());
}

#[tokio::test]
async fn a_batch_that_is_not_full_goes_when_it_is_old_enough() {
    let trial = sent(batches(), 3).await;
    assert_eq!(trial.outputs("out").len(), 3);
}

#[tokio::test]
async fn at_the_end_a_batch_that_is_not_full_is_handled() {
    let trial = batches().start().await.unwrap();
    trial.send("in", numbered(0..3));
    let stage = async || trial.status().await.stage("first").unwrap().received;
    eventually("it has them", async || stage().await == 3).await;
    let (memory, stopped) = trial.end_with_queues().await;
    assert_eq!(stopped[0].given_back, 0);
    assert_eq!(memory.messages("test", "out").len(), 3);
}

#[tokio::test]
async fn a_consumer_that_stalls_is_opened_again_and_nothing_is_lost() {
    let setup = trial(&two("")).stall("in", 2..=3).without_back_off();
    let trial = setup.start().await.unwrap();
    for n in 0..20 {
        trial.send("in", numbered(n..n + 1));
        trial.settle().await.unwrap();
    }
    assert_eq!(sorted(numbers(&trial, "out")), all(20));
    let stage = trial.status().await.stage("first").unwrap().clone();
    assert_eq!((stage.restarts, stage.acked), (2, 20));
}

// Outputs.

#[tokio::test]
async fn an_output_queue_that_is_away_costs_no_attempt_and_repeats_no_call() {
    let trial = sent(trial(&two("")).outage("mid", 1..=3), 50).await;
    assert_eq!(sorted(numbers(&trial, "out")), all(50));
    let stage = trial.status().await.stage("first").unwrap().clone();
    assert_eq!((stage.calls, stage.failed_attempts), (50, 0));
}

#[tokio::test]
async fn nothing_is_acked_before_its_output_is_confirmed() {
    let setup = trial(&two("")).outage("mid", 1..=1_000_000);
    let trial = setup.start().await.unwrap();
    trial.send("in", numbered(0..10));
    let stage = async || trial.status().await.stage("first").unwrap().clone();
    eventually("it is blocked", async || stage().await.blocked).await;
    assert_eq!(stage().await.acked, 0);
    let (memory, _) = trial.stop_with_queues(Duration::from_millis(10)).await;
    // The queue has them again, for the next start.
    assert_eq!(memory.messages("test", "in").len(), 10);
}

#[tokio::test]
async fn also_the_books_of_a_stop_in_the_middle_close() {
    let later = |number: u64| match number % 2 {
        0 => Ok(Emit::value(number)),
        _ => Err(Failure::retry_after(Duration::from_secs(3600), "later")),
    };
    let registry = brigade::registry().component("later", later);
    let yaml = two("").replacen("pass", "later", 1);
    let setup = trial_with(&yaml, registry).outage("mid", 1..=1_000_000);
    let trial = setup.start().await.unwrap();
    trial.send("in", numbered(0..10));
    let stage = async || trial.status().await.stage("first").unwrap().clone();
    let all_wait = async || {
        let first = stage().await;
        first.blocked && first.received == 10
    };
    eventually("it is blocked, and has them all", all_wait).await;
    let stopped = trial.stop(Duration::from_millis(10)).await;
    let first = stopped[0].status.stage("first").unwrap();
    let outcomes = (first.acked, first.requeued + first.released, first.in_flight);
    assert_eq!((first.received, outcomes), (10, (0, 10, 0)));
}

#[tokio::test]
async fn one_output_that_is_away_does_not_lose_the_other() {
    let yaml = "queues: { in: { type: memory }, a: { type: memory }, b: { type: memory } }
stages:
  first: { component: pass, input: in, outputs: [a, b], copy: true }
";
    let trial = sent(trial(yaml).outage("b", 1..=3), 10).await;
    assert_eq!(sorted(numbers(&trial, "a")), all(10));
    assert_eq!(sorted(numbers(&trial, "b")), all(10));
}

#[tokio::test]
async fn dead_letters_wait_for_their_queue_and_are_not_lost() {
    let yaml = "queues: { in: { type: memory }, dead: { type: memory } }
stages:
  first: { component: log, input: in, dead_letter: dead, retry: { attempts: 1 } }
";
    let fault = Fault::Error("no".into());
    let setup = trial(yaml).fault("first", 1..=10, fault).outage("dead", 1..=3);
    let trial = sent(setup, 10).await;
    assert_eq!(trial.dead_letters("first").len(), 10);
}

// Actors that die.

/// Kills an actor of the first stage. A lane that has not begun yet has none, nor has one whose actor is about to
/// come back from the last time.
async fn crash(trial: &Trial, actor: &'static str) {
    let crash = async || trial.running().crash("first", actor).await.is_ok();
    eventually("there is one to kill", crash).await;
}

#[tokio::test]
async fn an_actor_that_dies_is_started_again_and_what_it_held_is_handled_again() {
    for actor in ["worker", "consumer", "producer"] {
        // Each death is that of several actors, one a lane and queue.
        let restart = "restart: { max_restarts: 100 }\nqueues:";
        let yaml = two("").replace("queues:", restart);
        let trial = trial(&yaml).start().await.unwrap();
        for round in 0..3 {
            trial.send("in", numbered(round * 1000..(round + 1) * 1000));
            crash(&trial, actor).await;
        }
        trial.settle().await.unwrap();
        let mut out = sorted(numbers(&trial, "out"));
        out.dedup();
        assert!(out == all(3000), "{actor}: {} of 3000", out.len());
        assert_eq!(trial.status().await.unaccounted, [], "{actor}");
        assert!(trial.status().await.stage("first").unwrap().restarts >= 1, "{actor}");
    }
}

#[tokio::test]
async fn an_actor_that_dies_disturbs_no_other_stage() {
    let trial = sent(trial(&two("")), 10).await;
    crash(&trial, "worker").await;
    eventually("it is back", async || trial.status().await.is_ready()).await;
    trial.send("in", numbered(10..20));
    trial.settle().await.unwrap();
    assert_eq!(trial.status().await.stage("second").unwrap().restarts, 0);
    assert_eq!(sorted(numbers(&trial, "out")), all(20));
}

#[tokio::test]
async fn beyond_its_budget_a_stage_has_failed_and_its_queue_keeps_the_rest() {
    let yaml = two("").replace("queues:", "restart: { max_restarts: 2, period: 1m }\nqueues:");
    let trial = trial(&yaml).start().await.unwrap();
    let state = async || trial.status().await.stage("first").unwrap().state;
    for _ in 0..3 {
        eventually("there is one to kill", async || {
            state().await == StageState::Failed
                || trial.running().crash("first", "worker").await.is_ok()
        })
        .await;
    }
    eventually("it has failed", async || {
        let _ = trial.running().crash("first", "worker").await;
        state().await == StageState::Failed
    })
    .await;
    trial.send("in", numbered(0..10));
    // A consumer that still lived would take them now.
    let said = trial.settle().await.unwrap_err().to_string();
    assert!(said.starts_with("stage `first` failed: "), "{said}");
    assert_eq!(trial.outputs("in").len(), 10);
    assert_eq!(trial.status().await.stage("second").unwrap().state, StageState::Running);
}

#[tokio::test]
async fn what_a_consumer_held_whose_stage_has_failed_is_kept_from_nobody() {
    let restart = "restart: { max_restarts: 0 }\nqueues:";
    let registry = brigade::registry().component("wait", async |_: Raw| {
        std::future::pending::<()>().await;
        Ok::<_, Failure>(Emit::none())
    });
    let yaml =
        two("").replace("queues:", restart).replacen("component: pass", "component: wait", 1);
    let trial = trial_with(&yaml, registry).start().await.unwrap();
    trial.send("in", numbered(0..10));
    eventually("some are in flight", async || trial.outputs("in").len() < 10).await;
    crash(&trial, "consumer").await;
    eventually("they are back", async || trial.outputs("in").len() == 10).await;
    let status = trial.status().await;
    assert_eq!(status.stage("first").unwrap().state, StageState::Failed);
    assert_eq!(status.stage("second").unwrap().state, StageState::Running);
}

// The end.

/// Has the component `wait`, which passes nothing on before a gate is closed.
fn registry_that_waits(open: &Arc<Semaphore>) -> Registry {
    let wait = Arc::clone(open);
    brigade::registry().component("wait", async move |raw: Raw| {
        drop(wait.acquire().await);
        Ok::<_, Failure>(raw)
    })
}

/// As [`two`] with this component in the first stage.
fn trial_that_waits(open: &Arc<Semaphore>) -> TrialSetup {
    let yaml = two("").replacen("component: pass", "component: wait", 1);
    trial_with(&yaml, registry_that_waits(open))
}

#[tokio::test]
async fn a_drain_lets_what_is_in_flight_finish() {
    let open = Arc::new(Semaphore::new(0));
    let trial = trial_that_waits(&open).start().await.unwrap();
    trial.send("in", numbered(0..1));
    let in_flight = async || trial.status().await.stage("first").unwrap().in_flight;
    eventually("it is in flight", async || in_flight().await == 1).await;
    let watcher = trial.running().watcher();
    let ending = tokio::spawn(trial.end_with_queues());
    eventually("it is drained", async || {
        let status = watcher.status().await.remove(0);
        status.stage("first").unwrap().state == StageState::Draining
    })
    .await;
    open.close();
    let (memory, stopped) = ending.await.unwrap();
    assert_eq!(stopped[0].given_back, 0);
    let left = memory.messages("test", "mid").len() + memory.messages("test", "out").len();
    assert_eq!(left, 1, "its output is on a queue");
}

#[tokio::test]
async fn a_drain_takes_nothing_more_from_the_queues() {
    // More than minutes of work: however late the drain comes, it is not all done.
    const ALL: u64 = 20_000;
    let slow = Fault::Slow(Duration::from_millis(20));
    let setup = trial_of_async("max_in_flight: { messages: 1 }").fault("first", 1..=ALL, slow);
    let trial = setup.start().await.unwrap();
    trial.send("in", numbered(0..ALL));
    let received = async || trial.status().await.stage("first").unwrap().received;
    eventually("one has come", async || received().await > 0).await;
    let (memory, stopped) = trial.end_with_queues().await;
    let stage = stopped[0].status.stage("first").unwrap();
    assert!(stage.received < ALL, "{} came", stage.received);
    assert_eq!(memory.messages("test", "in").len() as u64, ALL - stage.acked);
}

#[tokio::test]
async fn an_actor_that_dies_in_a_drain_is_started_again_to_finish_what_is_in_flight() {
    for actor in ["worker", "producer"] {
        let restart = "restart: { min: 500ms, max: 500ms }\nqueues:";
        let open = Arc::new(Semaphore::new(0));
        let registry = registry_that_waits(&open);
        let yaml = two("workers: 1").replace("queues:", restart);
        let yaml = yaml.replacen("component: pass", "component: wait", 1);
        let topology = World::new().load(&yaml, &registry);
        let setup = Trial::of(Pipeline::new(topology, &registry).unwrap());
        let trial = setup.outage("mid", 1..=1).start().await.unwrap();
        trial.send("in", numbered(0..1000));
        let in_flight = async || trial.status().await.stage("first").unwrap().in_flight;
        // One it works on, one is on its desk.
        eventually("some wait for the worker", async || in_flight().await > 2).await;
        crash(&trial, actor).await;
        open.close();
        // It comes back while the stage is drained: nothing is pulled meanwhile.
        let (memory, stopped) = trial.end_with_queues().await;
        let left = |queue| memory.messages("test", queue).len();
        assert_eq!(left("in") + left("mid") + left("out"), 1000, "{actor}");
        let stage = stopped[0].status.stage("first").unwrap();
        assert!(stage.acked > 0 && stage.restarts > 0, "{actor}: {stage:?}");
    }
}

#[tokio::test]
async fn what_is_not_done_by_the_deadline_goes_back_and_uses_no_attempt() {
    let slow = Fault::Slow(Duration::from_secs(3600));
    let trial = trial_of_async("").fault("first", 1..=1, slow).start().await.unwrap();
    trial.send("in", numbered(0..1));
    let in_flight = async || trial.status().await.stage("first").unwrap().in_flight;
    eventually("it is in flight", async || in_flight().await == 1).await;
    let (memory, stopped) = trial.stop_with_queues(Duration::from_millis(10)).await;
    assert_eq!(stopped[0].given_back, 1);
    assert_eq!(stopped[0].status.stage("first").unwrap().failed_attempts, 0);
    assert_eq!(memory.messages("test", "in").len(), 1);
}

#[tokio::test]
async fn a_retry_that_waits_is_given_back_at_the_end() {
    let yaml = two("order: queue").replace("attempts: 3", "attempts: 3, min: 1h, max: 1h");
    let registry = brigade::registry();
    let topology = World::new().load(&yaml, &registry);
    let setup = Trial::of(Pipeline::new(topology, &registry).unwrap());
    let setup = setup.fault("first", 1..=1, Fault::Error("away".into()));
    let trial = setup.start().await.unwrap();
    trial.send("in", numbered(0..1));
    let failed = async || trial.status().await.stage("first").unwrap().failed_attempts;
    eventually("it has failed once", async || failed().await == 1).await;
    let (memory, _) = trial.stop_with_queues(Duration::from_millis(10)).await;
    assert_eq!(memory.messages("test", "in").len(), 1);
}

#[tokio::test]
async fn after_a_stop_every_stage_says_that_it_has_stopped() {
    let trial = sent(trial(&two("")), 10).await;
    let stopped = trial.end().await;
    let states: Vec<StageState> = stopped[0].status.stages.iter().map(|s| s.state).collect();
    assert_eq!(states, [StageState::Stopped; 2]);
    assert!(stopped[0].failed.is_empty());
}

#[tokio::test]
async fn a_pipeline_can_be_ended_before_anything_came() {
    let trial = trial(&two("")).start().await.unwrap();
    let stopped = trial.end().await;
    assert_eq!(stopped[0].given_back, 0);
}

#[tokio::test]
async fn a_stage_is_not_ready_before_its_init_is_through() {
    #[derive(Clone)]
    struct Waits(Arc<AtomicBool>, Arc<AtomicU64>);
    impl brigade::component::Component for Waits {
        type In = Raw;
        type Out = Raw;
        async fn init(&mut self, _: &brigade::component::Setup) -> Result<(), brigade::BoxError> {
            self.1.fetch_add(1, SeqCst);
            match self.0.load(SeqCst) {
                true => Ok(()),
                false => Err("not yet".into()),
            }
        }
        async fn handle(&mut self, raw: Raw, _: &Context) -> Result<Raw, Failure> {
            Ok(raw)
        }
    }
    let (open, inits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let world = World::new();
    let registry = world.registry().component("wait", Waits(Arc::clone(&open), Arc::clone(&inits)));
    let yaml = two("").replacen("component: pass", "component: wait", 1);
    let restart = "restart: { max_restarts: 1000, min: 1ms, max: 1ms }\nqueues:";
    let running = world.start(&yaml.replacen("queues:", restart, 1), &registry).await;
    world.put("in", 0..3);
    eventually("it has tried", async || inits.load(SeqCst) > 2).await;
    assert!(!running.is_ready().await);
    assert_eq!(world.numbers("in").len(), 3, "nothing is taken by who cannot handle it");
    open.store(true, SeqCst);
    running.until_idle(None).await.unwrap();
    assert_eq!(sorted(world.numbers("out")), all(3));
    running.stop(None).await;
}

// What is told.

#[tokio::test]
async fn every_outcome_is_counted_once() {
    let setup = trial(&two(""))
        .fault("first", 1..=1, Fault::Reject("no".into()))
        .fault("first", 5..=5, Fault::Panic)
        .outage("mid", 2..=3);
    let trial = sent(setup, 200).await;
    let status = trial.status().await;
    let stage = status.stage("first").unwrap();
    assert_eq!((stage.received, stage.acked, stage.dead_lettered), (200, 199, 1));
    assert_eq!(stage.in_flight, 0);
    assert_eq!(stage.outputs[0].messages, 199);
    assert_eq!(status.unaccounted, []);
}

#[tokio::test]
async fn a_throttle_holds_back_and_loses_nothing() {
    let begun = std::time::Instant::now();
    let trial = sent(trial(&two("throttle: { rate: 10, per: 100ms, burst: 10 }")), 30).await;
    assert_eq!(sorted(numbers(&trial, "out")), all(30));
    // Ten at once, then one in ten milliseconds: less time would be more than the rate.
    assert!(begun.elapsed() >= Duration::from_millis(150), "{:?}", begun.elapsed());
}
