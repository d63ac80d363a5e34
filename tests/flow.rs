//! How messages flow: order, direct edges, batches, routing, pausing and scaling.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use brigade::component::{Context, Emit, Emitted};
use brigade::pipeline_file::{Format, Overrides, load_str};
use brigade::{Failure, Message, Pipeline, StageState, Supervisor, Timestamp};
use common::{World, eventually};

#[tokio::test]
async fn by_key_messages_leave_in_order_also_across_retries_and_workers() {
    const MESSAGES: u64 = 5_000;
    let world = World::new();
    let flaky = |n: u64, cx: &Context| match n.is_multiple_of(7) && cx.attempt() == 1 {
        true => Err(Failure::retry("the first time")),
        false => Ok(Emit::value(n)),
    };
    let registry = world.registry().component("flaky", flaky);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  keep:
    { component: flaky, input: in, outputs: [out], workers: 4, order: key, retry: { min: 1ms, max: 3ms } }
";
    world.put("in", 0..MESSAGES);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let mut last: HashMap<u64, u64> = HashMap::new();
    let out = world.numbers("out");
    assert_eq!(out.len() as u64, MESSAGES);
    for n in out {
        let before = last.insert(n % 10, n);
        assert!(before.is_none_or(|before| before < n), "{n} left after {before:?}");
    }
}

/// A file hands out what comes after a message of a key before that is resolved, unlike queues that keep a
/// key busy.
#[tokio::test]
async fn by_key_nothing_goes_before_what_a_worker_had_when_it_died() {
    const MESSAGES: usize = 20_000;
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("in.jsonl");
    let line = |n: usize| format!("{{\"key\":\"k{}\",\"n\":{n}}}\n", n % 10);
    std::fs::write(&path, (0..MESSAGES).map(line).collect::<String>()).unwrap();
    let handled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&handled);
    let number = async move |row: serde_json::Value, _: &Context| {
        count.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        Ok::<_, Failure>(Emit::value(row["n"].clone()))
    };
    let registry = world.registry().component("number", number);
    let yaml = format!(
        "
restart: {{ min: 1ms, max: 1ms, max_restarts: 1000 }}
queues: {{ in: {{ type: file, path: {}, key: key }}, out: {{ type: memory }} }}
stages:
  keep: {{ component: number, input: in, outputs: [out], workers: 2, order: key }}
",
        path.display()
    );
    let running = world.start(&yaml, &registry).await;
    let crashes = async {
        for crash in 1..=20 {
            let on = async || handled.load(Ordering::Relaxed) > crash * MESSAGES / 25;
            eventually("it goes on", on).await;
            let hit = async || running.crash("keep", "worker").await.is_ok();
            eventually("the worker is hit", hit).await;
        }
    };
    let (idle, ()) = tokio::join!(running.until_idle(None), crashes);
    idle.unwrap();
    running.drain().await;
    let (mut last, mut seen) = (HashMap::new(), HashSet::new());
    for n in world.numbers("out") {
        if !seen.insert(n) {
            continue;
        }
        let before = last.insert(n % 10, n);
        assert!(before.is_none_or(|before| before < n), "{n} left after {before:?}");
    }
    assert_eq!(seen.len(), MESSAGES);
}

#[tokio::test]
async fn in_queue_order_a_retry_holds_back_everything_behind_it() {
    let world = World::new();
    let flaky = |n: u64, cx: &Context| match n.is_multiple_of(10) && cx.attempt() < 3 {
        true => Err(Failure::retry("twice")),
        false => Ok(Emit::value(n)),
    };
    let registry = world.registry().component("flaky", flaky);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  keep: { component: flaky, input: in, outputs: [out], order: queue, retry: { min: 1ms, max: 1ms } }
";
    world.put("in", 0..100);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    assert!(world.numbers("out").into_iter().eq(0..100));
}

#[tokio::test]
async fn over_direct_edges_a_childs_failure_is_its_own_and_the_root_waits_for_all() {
    let world = World::new();
    let split = |n: u64| Ok::<_, Failure>(vec![Emit::value(n * 10), Emit::value(n * 10 + 1)]);
    let odd = |n: u64| match n % 10 {
        1 => Err(Failure::reject("odd")),
        _ => Ok(Emit::value(n)),
    };
    let registry = world.registry().component("split", split).component("odd", odd);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  split: { component: split, input: in, workers: 2 }
  odd: { component: odd, input: split, outputs: [out], workers: 3 }
";
    world.put("in", 0..1000);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    let status = running.status().await;
    assert_eq!(status[0].stage("split").unwrap().received, 1000);
    assert_eq!(status[0].stage("odd").unwrap().calls, 2000);
    running.drain().await;
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert!(out.into_iter().eq((0..1000).map(|n| n * 10)));
    let dead = world.dead_letters("odd");
    assert_eq!(dead.len(), 1000);
    assert!(dead.iter().all(|letter| letter.attempts == 1));
    assert!(world.numbers("in").is_empty());
}

#[tokio::test]
async fn a_batch_component_answers_for_each_message() {
    let world = World::new();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = sizes.clone();
    let halves = async move |numbers: Vec<u64>| {
        seen.lock().unwrap().push(numbers.len());
        let half = |n: u64| match n % 2 {
            0 => Ok(Emit::value(n / 2)),
            _ => Err(Failure::reject("odd")),
        };
        numbers.into_iter().map(half).collect::<Vec<_>>()
    };
    let registry = world.registry().component("halves", halves);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  halve: { component: halves, input: in, outputs: [out], batch: { size: 100, age: 20ms } }
";
    world.put("in", 0..1000);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    assert_eq!(world.numbers("out").len(), 500);
    assert_eq!(world.dead_letters("halve").len(), 500);
    let sizes = sizes.lock().unwrap();
    assert!(sizes.iter().all(|size| *size <= 100));
    assert!(sizes.iter().any(|size| *size > 1), "{sizes:?}");
}

#[tokio::test]
async fn several_stages_each_get_every_message_of_a_queue() {
    let world = World::new();
    let yaml = "
queues: { in: { type: memory }, a: { type: memory }, b: { type: memory } }
stages:
  one: { component: pass, input: in, outputs: [a] }
  two: { component: pass, input: in, outputs: [b] }
";
    let running = world.start(yaml, &world.registry()).await;
    eventually("both are running", async || running.is_ready().await).await;
    world.put("in", 0..100);
    running.until_idle(None).await.unwrap();
    running.drain().await;
    assert_eq!((world.numbers("a").len(), world.numbers("b").len()), (100, 100));
}

#[tokio::test]
async fn a_stage_can_be_paused_resumed_and_scaled_while_it_runs() {
    let world = World::new();
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages: { work: { component: pass, input: in, outputs: [out] } }
";
    let running = world.start(yaml, &world.registry()).await;
    eventually("it runs", async || running.is_ready().await).await;
    running.pause("work").await.unwrap();
    world.put("in", 0..100);
    assert_eq!(running.status().await[0].stages[0].state, StageState::Paused);
    assert!(world.numbers("out").is_empty());
    running.resume("work").await.unwrap();
    running.scale("work", 5).await.unwrap();
    assert_eq!(running.status().await[0].stages[0].workers, 5);
    running.until_idle(None).await.unwrap();
    assert!(running.pause("nobody").await.unwrap_err().to_string().contains("there are: work"));
    running.drain().await;
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert!(out.into_iter().eq(0..100));
}

#[tokio::test]
async fn copies_go_to_all_outputs_and_expired_messages_to_the_dead_letters() {
    let world = World::new();
    let yaml = "
queues:
  in: { type: memory, event_time: at }
  a: { type: memory }
  b: { type: memory }
stages:
  work: { component: pass, input: in, outputs: [a, b], copy: true, expire: 1h }
";
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let old = format!("{{\"at\": {}}}", now.as_millis() - 2 * 3_600_000);
    let new = format!("{{\"at\": {}}}", now.as_millis());
    world.memory.put("test", "in", [old, new].map(brigade::Message::new));
    let running = world.start(yaml, &world.registry()).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    assert_eq!(world.memory.messages("test", "a").len(), 1);
    assert_eq!(world.memory.messages("test", "b").len(), 1);
    let dead = world.dead_letters("work");
    assert_eq!(dead.len(), 1);
    let message = &dead[0].cause.message;
    assert!(message.ends_with(" old, and the stage's `expire` is 1h"), "{message}");
}

#[tokio::test]
async fn several_pipelines_run_side_by_side_and_are_told_apart_by_name() {
    let world = World::new();
    let registry = world.registry();
    let pipeline = |name: &str| {
        let yaml = format!(
            "
pipeline: {name}
queues: {{ in: {{ type: memory }}, out: {{ type: memory }} }}
stages: {{ pass: {{ component: pass, input: in, outputs: [out] }} }}
"
        );
        let (format, overrides) = (Format::Yaml, Overrides::default());
        let loaded = load_str(name, format, &yaml, Path::new("."), &overrides, &registry);
        Pipeline::new(loaded.unwrap().topology, &registry).unwrap().state(world.state.clone())
    };
    let running =
        Supervisor::new().add(pipeline("one")).add(pipeline("two")).start().await.unwrap();
    let ambiguous = running.pause("pass").await.unwrap_err();
    assert!(ambiguous.to_string().contains("pipeline/pass"), "{ambiguous}");
    let producer = running.producer("two/in").await.unwrap();
    producer.produce(&[Message::new("only two").into()]).await.unwrap();
    running.until_idle(None).await.unwrap();
    assert_eq!(world.memory.messages("two", "out").len(), 1);
    assert!(world.memory.messages("one", "out").is_empty());
    assert_eq!(running.drain().await.len(), 2);
    let twice = Supervisor::new().add(pipeline("one")).add(pipeline("one")).start().await;
    assert!(twice.unwrap_err().to_string().contains("`one`"));
}

const BY_CUSTOMER: &str = "
queues: { in: { type: memory, key: customer, event_time: at }, out: { type: memory } }
stages:
  first: { component: COMPONENT, input: in, outputs: [out], order: key, workers: 4, retry: { attempts: 1 } }
";

/// As records of Kafka have keys and times of their own, whatever the file says of the payload.
#[tokio::test]
async fn what_a_queue_declares_in_the_payload_goes_before_what_the_message_has() {
    let world = World::new();
    let tell = |_: Message, cx: &Context| {
        let key = cx.key().map(|key| String::from_utf8_lossy(key).into_owned());
        let time = cx.message().event_time.map(|time| time.0);
        Ok::<_, Failure>(serde_json::json!([key, time]))
    };
    let registry = world.registry().component("tell", tell);
    let message = |text: &str| {
        let message = Message::new(text.to_owned()).with_key("own");
        Message { event_time: Some(Timestamp(1)), ..message }
    };
    let tombstone = Message { payload: None, ..message("") };
    let messages = [r#"{"customer":"anna","at":7}"#, r#"{"customer":null}"#, "{}"].map(message);
    world.memory.put("test", "in", messages.into_iter().chain([tombstone]));
    let running = world.start(&BY_CUSTOMER.replace("COMPONENT", "tell"), &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let mut out: Vec<_> = world.memory.messages("test", "out");
    out.sort_by(|a, b| a.payload.cmp(&b.payload));
    let told: Vec<_> = out.iter().map(|m| m.payload.as_deref().unwrap()).collect();
    let own = &br#"["own",1]"#[..];
    assert_eq!(told, [&br#"["anna",7]"#[..], own, own, own]);
}

#[tokio::test]
async fn an_order_by_a_field_holds_though_the_messages_have_other_keys() {
    let world = World::new();
    let (busy, met) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let met_too = Arc::clone(&met);
    let registry = world.registry().component("hold", async move |_: Message, _: &Context| {
        if busy.swap(true, Ordering::SeqCst) {
            met.store(true, Ordering::SeqCst);
        }
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        busy.store(false, Ordering::SeqCst);
        Ok::<_, Failure>(Emit::value(1))
    });
    let message = |n: u64| Message::new(r#"{"customer":"anna"}"#).with_key(format!("k{n}"));
    world.memory.put("test", "in", (0..200).map(message));
    let running = world.start(&BY_CUSTOMER.replace("COMPONENT", "hold"), &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    assert_eq!(world.numbers("out").len(), 200);
    assert!(!met_too.load(Ordering::SeqCst), "two of a customer at once");
}

#[tokio::test]
async fn an_output_keeps_its_own_key_where_its_payload_has_none() {
    let world = World::new();
    let emit = |n: u64| {
        let value = if n == 0 { serde_json::json!({ "customer": "anna" }) } else { n.into() };
        Ok::<_, Failure>(Emit::value(value).key("own"))
    };
    let registry = world.registry().component("emit", emit);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory, key: customer } }
stages: { first: { component: emit, input: in, outputs: [out], order: queue } }
";
    world.put("in", 0..2);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let out = world.memory.messages("test", "out");
    let keys: Vec<_> = out.iter().map(|m| m.key.as_deref().unwrap()).collect();
    assert_eq!(keys, [&b"anna"[..], b"own"]);
}

/// The output's queue reads the key in what the component made, in the queue's own codec.
#[tokio::test]
async fn bytes_that_go_on_a_queue_have_the_key_that_stands_in_them() {
    let world = World::new();
    let yaml = "
queues: { in: { type: memory, codec: bytes }, out: { type: memory, key: customer } }
stages: { first: { component: pass, input: in, outputs: [out] } }
";
    world.memory.put("test", "in", [Message::new(r#"{"customer":"anna"}"#), Message::new("{")]);
    let running = world.start(yaml, &world.registry()).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let out = world.memory.messages("test", "out");
    assert_eq!((out.len(), out[0].key.as_deref()), (1, Some(&b"anna"[..])));
    let letter = world.dead_letters("first").remove(0);
    assert!(letter.cause.message.contains("output for queue `out`"), "{:?}", letter.cause);
}

/// The end of a pipeline: what its component is done with is acked, what it rejects goes to the dead letters, the
/// only queue that it puts something on.
#[tokio::test]
async fn a_stage_without_outputs_is_done_with_its_messages() {
    let world = World::new();
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let note = Arc::clone(&seen);
    let end = move |n: u64| match n % 3 {
        0 => Err(Failure::reject("a third of them")),
        _ => {
            note.lock().unwrap().insert(n);
            Ok(())
        }
    };
    let registry = world.registry().component("end", end);
    let yaml = "
queues: { in: { type: memory }, dead: { type: memory } }
stages: { end: { component: end, input: in, dead_letter: dead } }
";
    world.put("in", 0..30);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    let status = running.status().await[0].stage("end").unwrap().clone();
    assert_eq!((status.received, status.dead_lettered, status.in_flight), (30, 10, 0));
    assert_eq!(status.acked + status.filtered, 20);
    running.drain().await;
    assert!(world.numbers("in").is_empty());
    assert_eq!(world.memory.messages("test", "dead").len(), 10);
    assert_eq!(*seen.lock().unwrap(), (0..30).filter(|n| n % 3 > 0).collect());
}

/// What one message became is one transaction with its ack: in the embedded store, and where a
/// file's position is kept in it.
#[tokio::test]
async fn a_message_that_becomes_more_than_a_queue_holds_goes_on_when_the_queue_is_empty() {
    let world = World::new();
    let ten = |n: u64| {
        let outputs = (0..10).map(|at| Emitted::json((n * 10 + at).to_string()));
        Ok::<_, Failure>(outputs.fold(Emit::none(), Emit::with))
    };
    let registry = world.registry().component("ten", ten);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("in.jsonl");
    std::fs::write(&path, "0\n1\n2\n").unwrap();
    let yaml = format!(
        "
state: {:?}
queues:
  in: {{ type: file, path: {path:?} }}
  tens: {{ type: embedded, limit: {{ messages: 3 }} }}
  hundreds: {{ type: embedded, limit: {{ messages: 3 }} }}
  out: {{ type: memory }}
stages:
  first: {{ component: ten, input: in, outputs: [tens] }}
  second: {{ component: ten, input: tens, outputs: [hundreds] }}
  third: {{ component: pass, input: hundreds, outputs: [out] }}
",
        directory.path().join("state")
    );
    let pipeline = Pipeline::new(world.load(&yaml, &registry), &registry).unwrap();
    let running = Supervisor::new().add(pipeline).start().await.unwrap();
    eventually("all of it comes", async || world.numbers("out").len() == 300).await;
    running.drain().await;
    let mut out = world.numbers("out");
    out.sort_unstable();
    assert!(out.into_iter().eq(0..300), "everything, once");
}

#[tokio::test]
async fn by_priority_a_later_input_waits_until_an_earlier_one_is_empty() {
    let world = World::new();
    let registry =
        world.registry().component("pass", |n: u64| Ok::<_, Failure>(serde_json::json!(n)));
    let yaml = "
queues: { urgent: { type: memory }, rest: { type: memory }, out: { type: memory } }
stages:
  pass: { component: pass, input: { queues: [urgent, rest], priority: true }, outputs: [out], order: queue }
";
    world.put("rest", 1000..1020);
    world.put("urgent", 0..200);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let out = world.numbers("out");
    assert_eq!(out.len(), 220);
    let first_of_the_rest = out.iter().position(|n| *n >= 1000).unwrap();
    assert_eq!(first_of_the_rest, 200, "{out:?}");
}

/// A queue that takes its time to answer is not empty for that.
#[tokio::test]
async fn by_priority_a_later_input_also_waits_for_queues_on_disk() {
    let world = World::new();
    let handled = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&handled);
    let note = move |n: u64| {
        noted.lock().unwrap().push(n);
        Ok::<_, Failure>(Emit::none())
    };
    let registry = world.registry().component("note", note);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let yaml = format!(
        "
queues:
  urgent: {{ type: embedded, path: {path:?}, sync: normal }}
  rest: {{ type: embedded, path: {path:?}, sync: normal }}
stages:
  note: {{ component: note, input: {{ queues: [urgent, rest], priority: true }} }}
"
    );
    let running = world.start(&yaml, &registry).await;
    eventually("it runs", async || running.is_ready().await).await;
    running.pause("note").await.unwrap();
    for (queue, numbers) in [("rest", 5000..7000_u64), ("urgent", 0..4000)] {
        let producer = running.producer(queue).await.unwrap();
        let messages: Vec<_> = numbers.map(|n| Message::new(n.to_string()).into()).collect();
        let put = producer.produce(&messages).await.unwrap();
        assert!(put.into_iter().all(|one| one.confirmed().is_ok()));
    }
    running.resume("note").await.unwrap();
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let handled = handled.lock().unwrap();
    assert_eq!(handled.len(), 6000);
    let first_of_the_rest = handled.iter().position(|n| *n >= 5000).unwrap();
    assert_eq!(first_of_the_rest, 4000);
}
