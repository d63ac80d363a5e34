//! How it comes through trouble: an output that takes nothing for a while (memory, repeated calls),
//! and actors that are killed (how long until they are back).
//! `OUTAGE=30 cargo bench --bench recovery`; the outage is in seconds.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark prints, and one that stops says where"
)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use brigade::component::Raw;
use brigade::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Outgoing, Problem, Produced,
    Producer, QueueSpec, Reader,
};
use brigade::pipeline_file::{Format, Overrides, load_str};
use brigade::{Failure, MemoryState, Pipeline, Registry, Running, Supervisor};
use serde_json::Value;

/// An output that can be away, and counts what it gets.
#[derive(Default)]
struct Kept {
    away: AtomicBool,
    taken: AtomicU64,
}

#[derive(Clone)]
struct KeepConnector(Arc<Kept>);

#[async_trait]
impl Connector for KeepConnector {
    fn type_name(&self) -> &'static str {
        "kept"
    }

    fn features(&self, _: &Value) -> Features {
        Features { produce: true, ..Features::NONE }
    }

    fn schema(&self) -> Value {
        serde_json::json!({ "type": "object" })
    }

    fn check(&self, _: &QueueSpec) -> Vec<Problem> {
        Vec::new()
    }

    async fn consumer(
        &self,
        _: &QueueSpec,
        _: &Reader,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Err(ConnectorError::unsupported("it only keeps"))
    }

    async fn producer(
        &self,
        _: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(KeepProducer(Arc::clone(&self.0))))
    }
}

struct KeepProducer(Arc<Kept>);

#[async_trait]
impl Producer for KeepProducer {
    fn features(&self) -> Features {
        Features { produce: true, ..Features::NONE }
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        if self.0.away.load(Relaxed) {
            return Err(ConnectorError::transient("away"));
        }
        self.0.taken.fetch_add(batch.len() as u64, Relaxed);
        Ok(batch.iter().map(|_| Produced::Confirmed).collect())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}

async fn start(yaml: &str, registry: &Registry) -> Running {
    let overrides = Overrides::default();
    let loaded = load_str("bench", Format::Yaml, yaml, Path::new("."), &overrides, registry);
    let pipeline = Pipeline::new(loaded.unwrap().topology, registry).unwrap();
    Supervisor::new().add(pipeline.state(MemoryState::new())).start().await.unwrap()
}

/// Resident memory in bytes.
fn resident() -> i64 {
    const PAGE: i64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * PAGE
}

async fn outage(seconds: u64) {
    let kept = Arc::new(Kept::default());
    let calls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&calls);
    let call = move |raw: Raw| {
        count.fetch_add(1, Relaxed);
        Ok::<_, Failure>(raw.0.unwrap_or_default())
    };
    let registry = brigade::registry()
        .connector(Arc::new(KeepConnector(Arc::clone(&kept))))
        .component("call", call);
    let yaml = "
pipeline: bench
queues:
  in: { type: generator, template: { n: '{{seq}}', text: '{{hex 100}}' }, rate: 20000 }
  out: { type: kept }
stages: { call: { component: call, input: in, outputs: [out], workers: 2 } }
";
    let running = start(yaml, &registry).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = resident();
    kept.away.store(true, Relaxed);
    let mut most = before;
    let begun = Instant::now();
    let mut called = Vec::new();
    while begun.elapsed().as_secs() < seconds {
        tokio::time::sleep(Duration::from_millis(500)).await;
        most = most.max(resident());
        called.push(calls.load(Relaxed));
    }
    let stopped_pulling = called[called.len() / 2] == called[called.len() - 1];
    kept.away.store(false, Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stopped = running.drain().await;
    let stage = &stopped[0].status.stages[0];
    println!(
        "output away for {seconds} s: memory grew by {:.1} MB at most; the consumer stopped pulling: \
         {stopped_pulling}; {} calls, {} outputs taken, {} failed attempts",
        (most - before) as f64 / 1e6,
        calls.load(Relaxed),
        kept.taken.load(Relaxed),
        stage.failed_attempts
    );
}

async fn restarts() {
    let handled = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&handled);
    let call = move |_: Raw| {
        count.fetch_add(1, Relaxed);
        Ok::<_, Failure>(())
    };
    let registry = brigade::registry().component("call", call);
    let yaml = "
pipeline: bench
restart: { max_restarts: 1000, min: 100ms, max: 100ms }
queues: { in: { type: generator, rate: 5000 } }
stages: { call: { component: call, input: in } }
";
    let running = start(yaml, &registry).await;
    for actor in ["worker", "consumer"] {
        let mut late = Vec::new();
        for _ in 0..20 {
            while !running.is_ready().await {}
            tokio::time::sleep(Duration::from_millis(100)).await;
            running.crash("call", actor).await.unwrap();
            let begun = Instant::now();
            // What was under way ends; then nothing comes until the actor is back.
            tokio::time::sleep(Duration::from_millis(30)).await;
            let then = handled.load(Relaxed);
            while handled.load(Relaxed) == then {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            late.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        late.sort_by(f64::total_cmp);
        println!(
            "a {actor} that is killed handles again after {:.0} ms (median), {:.0} ms (slowest of 20); \
             its back-off is 100 ms with jitter",
            late[10], late[19]
        );
    }
    running.drain().await;
}

fn main() {
    let seconds = std::env::var("OUTAGE").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    std::panic::set_hook(Box::new(|_| {}));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(restarts());
    runtime.block_on(outage(seconds));
}
