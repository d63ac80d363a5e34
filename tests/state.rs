//! The state of components.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use brigade::connector::ConnectorError;
use brigade::prelude::*;
use brigade::state::{StateStore, StoreOp};
use brigade::{MemoryState, Message, MessageId, Pipeline, Supervisor};
use brigade_testkit::{Like, LikeStore, paused};
use common::{World, eventually};
use tokio::sync::Semaphore;

/// Counts by key: reads its state, adds one, writes it.
#[derive(Clone)]
struct Count;

impl Component for Count {
    type In = u64;
    type Out = Emit;

    async fn handle(&mut self, n: u64, cx: &Context) -> Result<Emit, Failure> {
        let key = format!("k{}", n % 10);
        let known = cx.load_state(&key).await?;
        let count: u64 = known.map_or(Ok(0), |bytes| serde_json::from_slice(&bytes))? + 1;
        if n.is_multiple_of(17) && cx.attempt() == 1 {
            return Err(Failure::retry("not the first time"));
        }
        if n.is_multiple_of(101) && cx.attempt() == 1 {
            panic!("on purpose");
        }
        Ok(Emit::value(count).put_state(key, count.to_string()))
    }
}

#[tokio::test]
async fn by_key_a_message_sees_what_the_ones_before_it_wrote_also_before_it_is_stored() {
    let world = World::new();
    let registry = world.registry().component("count", Count);
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  count:
    component: count
    input: in
    outputs: [out]
    order: key
    workers: 4
    retry: { min: 1ms, max: 2ms }
";
    world.put("in", 0..2000);
    let running = world.start(yaml, &registry).await;
    running.until_idle(None).await.unwrap();
    running.drain().await;
    let mut counts = BTreeMap::new();
    for count in world.numbers("out") {
        *counts.entry(count).or_insert(0) += 1;
    }
    assert!(counts.keys().copied().eq(1..=200));
    // Each of the ten keys counted from 1 to 200, and no number twice.
    counts.retain(|_, times| *times != 10);
    assert!(counts.is_empty(), "how often each was counted: {counts:?}");
}

#[tokio::test]
async fn what_dedupe_has_seen_is_forgotten_in_its_turn_also_after_a_restart() {
    let world = World::new();
    let registry = world.registry();
    let yaml = "
queues: { in: { type: memory }, out: { type: memory } }
stages:
  once: { component: { dedupe: { key: id, max: 3 } }, input: in, outputs: [out], order: queue }
";
    let message = |n: u64| Message::new(format!(r#"{{"id":{n}}}"#)).with_id(MessageId(n.into()));
    for run in 0..2 {
        world.memory.put("test", "in", (run * 10..run * 10 + 5).map(message));
        let running = world.start(yaml, &registry).await;
        running.until_idle(None).await.unwrap();
        running.drain().await;
        let kept = world.state.scan("component/test/once", "").await.unwrap();
        let kept: Vec<_> = kept.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(kept, [2, 3, 4].map(|n| (run * 10 + n).to_string()));
    }
    assert_eq!(world.memory.messages("test", "out").len(), 10);
}

/// A consumer died while calls were under way. What they answer is nobody's: a message that is handed out
/// again sees nothing of it, and what was not called yet is not called for the dead.
#[tokio::test]
async fn what_a_consumer_that_died_had_handed_out_is_not_seen_in_the_state() {
    const MESSAGES: usize = 12;
    let world = World::new();
    let directory = tempfile::tempdir().unwrap();
    let lines: String =
        (0..MESSAGES).map(|n| format!("{{\"key\":\"k{n}\",\"n\":{n}}}\n")).collect();
    std::fs::write(directory.path().join("in.jsonl"), lines).unwrap();
    let calls = Arc::new(Mutex::new([0_u32; MESSAGES]));
    // Of the first message, and of the others: closed when those that were called first may answer.
    let gates = Arc::new([Semaphore::new(0), Semaphore::new(0)]);
    let died = Arc::new(AtomicBool::new(false));
    let (called, held, over) = (Arc::clone(&calls), Arc::clone(&gates), Arc::clone(&died));
    let count = async move |row: serde_json::Value, cx: &Context| -> Result<Emit, Failure> {
        let n = usize::try_from(row["n"].as_u64().unwrap()).unwrap();
        let known = cx.load_state(&format!("k{n}")).await?;
        let known: u64 = known.map_or(Ok(0), |bytes| serde_json::from_slice(&bytes))?;
        called.lock().unwrap()[n] += 1;
        if !over.load(Relaxed) {
            held[n.min(1)].acquire().await.unwrap_err();
        }
        Ok(Emit::none().put_state(format!("k{n}"), (known + 1).to_string()))
    };
    let registry = world.registry().component("count", count);
    let yaml = format!(
        "
restart: {{ min: 1ms, max: 1ms }}
queues: {{ in: {{ type: file, path: {}, key: key }} }}
stages:
  count: {{ component: count, input: in, order: key, workers: 4 }}
",
        directory.path().join("in.jsonl").display()
    );
    let running = world.start(&yaml, &registry).await;
    let received = async || running.status().await[0].stage("count").unwrap().received;
    eventually("all are handed out", async || received().await == MESSAGES as u64).await;
    eventually("the workers are in calls", async || {
        let calls = calls.lock().unwrap();
        calls[0] == 1 && calls.iter().sum::<u32>() == 4
    })
    .await;
    let in_calls = *calls.lock().unwrap();
    died.store(true, Relaxed);
    running.crash("count", "consumer").await.unwrap();
    eventually("all are handed out again", async || received().await == 2 * MESSAGES as u64).await;
    gates[0].close();
    let stored = async || world.state.load("component/test/count", "k0").await.unwrap();
    eventually("the first is stored", async || stored().await.is_some()).await;
    assert_eq!(stored().await.unwrap(), "1");
    gates[1].close();
    running.until_idle(None).await.unwrap();
    running.drain().await;
    for n in 0..MESSAGES {
        let stored = world.state.load("component/test/count", &format!("k{n}")).await.unwrap();
        assert_eq!(stored.unwrap(), "1", "k{n}");
    }
    let expected = in_calls.map(|calls| calls + 1);
    assert_eq!(*calls.lock().unwrap(), expected, "each in a call, and each once again");
}

/// A state whose first commits fail, until the gate is opened.
struct Failing {
    inner: Arc<MemoryState>,
    failed: Arc<AtomicU64>,
    mended: Arc<AtomicBool>,
}

#[async_trait]
impl LikeStore for Failing {
    fn inner(&self) -> &dyn StateStore {
        &*self.inner
    }

    async fn commit(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError> {
        let is_first =
            ops.iter().any(|op| matches!(op, StoreOp::Put { value, .. } if value == "1"));
        if is_first && !self.mended.load(Relaxed) {
            self.failed.fetch_add(1, Relaxed);
            return Err(ConnectorError::transient("the disk is full"));
        }
        self.inner.commit(ops).await
    }
}

/// The messages of a key come by two queues: what the earlier one wrote cannot be stored for a while.
#[test]
fn a_write_that_is_tried_again_does_not_go_over_a_later_one() {
    paused(async {
        let last = async |n: u64, _: &Context| -> Result<Emit, Failure> {
            Ok(Emit::none().put_state("last", n.to_string()))
        };
        let world = World::new();
        let registry = world.registry().component("last", last);
        let yaml = "
queues: { one: { type: memory }, other: { type: memory } }
stages: { last: { component: last, input: [one, other], order: key } }
";
        let (failed, mended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let inner = world.state.clone();
        let state = Failing { inner, failed: Arc::clone(&failed), mended: Arc::clone(&mended) };
        let pipeline = Pipeline::new(world.load(yaml, &registry), &registry).unwrap();
        let pipeline = pipeline.state(Arc::new(Like(state)));
        let running = Supervisor::new().add(pipeline).start_here().await.unwrap();
        let put = |queue, n: u64| {
            let message = Message::new(n.to_string()).with_id(MessageId(n.into())).with_key("k");
            world.memory.put("test", queue, [message]);
        };
        put("one", 1);
        eventually("it cannot be stored", async || failed.load(Relaxed) > 0).await;
        put("other", 2);
        let acked = async || running.status().await[0].stage("last").unwrap().acked;
        eventually("the later one is stored", async || acked().await == 1).await;
        mended.store(true, Relaxed);
        running.until_idle(None).await.unwrap();
        running.drain().await;
        let stored = world.state.load("component/test/last", "last").await.unwrap();
        assert_eq!(stored.as_deref(), Some(&b"2"[..]));
    });
}
