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

use brigade::prelude::*;
use brigade::{Pipeline, PipelineStatus, Running, StageState};
use common::{World, eventually};

const YAML: &str = "
queues: { in: { type: memory }, out: { type: memory }, other: { type: memory } }
stages:
  first: { component: first, input: in, outputs: [out] }
  second: { component: pass, input: other, outputs: [out] }
";

async fn state_of(running: &Running, stage: &str) -> Option<StageState> {
    let status = running.status().await;
    status.first().map(|status: &PipelineStatus| status.stage(stage).unwrap().state)
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
    let failed = async || state_of(&running, "first").await == Some(StageState::Failed);
    eventually("it fails", failed).await;
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
