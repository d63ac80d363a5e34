//! The state of components.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

mod common;

use std::collections::BTreeMap;

use brigade::prelude::*;
use brigade::state::StateStore as _;
use brigade::{Message, MessageId};
use common::World;

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
