//! How it comes through trouble: an output that takes nothing for a minute (memory), and actors that
//! are killed (how long until they are back).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use brigade::component::Raw;
use brigade::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Outgoing, Problem, Produced,
    Producer, QueueSpec, Reader,
};
use brigade::{Failure, MemoryState, Running};
use serde_json::Value;

use crate::support::{Goal, Row, pipeline, resident, timed};

const OUTAGE: Duration = Duration::from_secs(60);
const KILLS: usize = 20;

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

/// By how much the memory grows while an output is away whose input has as much as is asked for. No component
/// is called twice, no attempt used, and everything arrives afterwards.
pub(crate) fn outage(name: &'static str) -> Row {
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
    let text = "pipeline: bench
queues:
  in: { type: generator, template: { n: '{{seq}}', text: '{{hex 100}}' } }
  out: { type: kept }
stages: { call: { component: call, input: in, outputs: [out], workers: 2 } }
";
    let (unit, goal) = ("MB more resident", Goal::AtMost(10.0));
    let mut row = Row { name, unit, ours: vec![], by_hand: vec![], goal };
    timed(pipeline(text, &registry).state(MemoryState::new()), async |running| {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let before = resident("self");
        kept.away.store(true, Relaxed);
        let begun = Instant::now();
        while begun.elapsed() < OUTAGE {
            tokio::time::sleep(Duration::from_millis(500)).await;
            row.ours.push(resident("self") - before);
        }
        let called = calls.load(Relaxed);
        kept.away.store(false, Relaxed);
        while kept.taken.load(Relaxed) < called {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let status = &running.status().await[0].stages[0];
        assert_eq!(status.failed_attempts, 0, "{status:?}");
    });
    row
}

/// How long nothing is handled after an actor was killed, with a back-off of 100 ms with jitter.
pub(crate) fn restart(name: &'static str, actor: &'static str) -> Row {
    let handled = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&handled);
    let call = move |_: Raw| {
        count.fetch_add(1, Relaxed);
        Ok::<_, Failure>(())
    };
    let registry = brigade::registry().component("call", call);
    let text = "pipeline: bench
restart: { max_restarts: 1000, min: 100ms, max: 100ms }
queues: { in: { type: generator, rate: 5000 } }
stages: { call: { component: call, input: in } }
";
    let mut row =
        Row { name, unit: "ms", ours: vec![], by_hand: vec![], goal: Goal::AtMost(200.0) };
    std::panic::set_hook(Box::new(|_| {}));
    timed(pipeline(text, &registry).state(MemoryState::new()), async |running| {
        for _ in 0..KILLS {
            row.ours.push(back_after_a_kill(running, actor, &handled).await);
        }
    });
    let _ = std::panic::take_hook();
    row
}

async fn back_after_a_kill(running: &Running, actor: &'static str, handled: &AtomicU64) -> f64 {
    while !running.is_ready().await {}
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.crash("call", actor).await.expect("the actor is there");
    let begun = Instant::now();
    // What was under way ends; then nothing comes until the actor is back.
    tokio::time::sleep(Duration::from_millis(30)).await;
    let then = handled.load(Relaxed);
    while handled.load(Relaxed) == then {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    begun.elapsed().as_secs_f64() * 1000.0
}
