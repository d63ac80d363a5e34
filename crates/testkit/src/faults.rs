//! Faults at chosen points of a trial: component calls that go wrong, queues that take nothing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::component::{
    AnyComponent, Context, Emit, HandleError, Handling, Kind, Parsed, Setup,
};
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Incoming, Lag, Outgoing, Produced, Producer,
    QueueSpec, Reader, Want,
};
use brigade_core::{BoxError, Failure};
use brigade_memory::Memory;
use futures_util::future::LocalBoxFuture;

use crate::kept::Kept;
use crate::like::{Like, LikeConnector, LikeConsumer, LikeProducer};

/// What a component call does instead of its work, or before it.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It panics.
    Panic,
    /// It fails, and may be retried.
    Error(String),
    /// It fails for good.
    Reject(String),
    /// It takes this much longer, and then does its work.
    Slow(Duration),
}

/// Calls, counted from 1 over all workers of a stage, and what goes wrong with them. A batch is one
/// call.
pub(crate) type Planned = (RangeInclusive<u64>, Fault);

/// A component some of whose calls go wrong.
pub(crate) struct Faulty {
    inner: Box<dyn AnyComponent>,
    faults: Arc<Vec<Planned>>,
    calls: Arc<AtomicU64>,
}

impl Faulty {
    pub(crate) fn new(inner: Box<dyn AnyComponent>, faults: Vec<Planned>) -> Self {
        Self { inner, faults: Arc::new(faults), calls: Arc::default() }
    }

    /// What goes wrong with the next call.
    fn next(&self) -> Option<Fault> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let planned = self.faults.iter().find(|(calls, _)| calls.contains(&call));
        planned.map(|(_, fault)| fault.clone())
    }
}

fn failed(fault: &Fault) -> Option<Failure> {
    match fault {
        Fault::Panic => panic!("a fault of the trial"),
        Fault::Error(text) => Some(Failure::retry(text.clone())),
        Fault::Reject(text) => Some(Failure::reject(text.clone())),
        Fault::Slow(_) => None,
    }
}

async fn wait(fault: &Fault) {
    if let Fault::Slow(period) = fault {
        tokio::time::sleep(*period).await;
    }
}

impl AnyComponent for Faulty {
    fn kind(&self) -> Kind {
        self.inner.kind()
    }

    fn init<'a>(&'a mut self, setup: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>> {
        self.inner.init(setup)
    }

    fn handle<'a>(&'a mut self, parsed: Option<Parsed>, cx: &'a Context) -> Handling<'a> {
        let Some(fault) = self.next() else { return self.inner.handle(parsed, cx) };
        if let Some(failure) = failed(&fault) {
            return Handling::Done(Err(HandleError::Failed(failure)));
        }
        Handling::Pending(Box::pin(async move {
            wait(&fault).await;
            match self.inner.handle(parsed, cx) {
                Handling::Done(answer) => answer,
                Handling::Pending(answer) => answer.await,
            }
        }))
    }

    fn handle_batch<'a>(
        &'a mut self,
        parsed: Vec<Option<Parsed>>,
        cx: &'a [Context],
    ) -> LocalBoxFuture<'a, Vec<Result<Emit, HandleError>>> {
        let Some(fault) = self.next() else { return self.inner.handle_batch(parsed, cx) };
        Box::pin(async move {
            if failed(&fault).is_some() {
                let failure = || HandleError::Failed(failed(&fault).expect("it was one just now"));
                return cx.iter().map(|_| Err(failure())).collect();
            }
            wait(&fault).await;
            self.inner.handle_batch(parsed, cx).await
        })
    }

    fn delays(&self) -> bool {
        self.inner.delays()
    }

    fn fresh(&self) -> Box<dyn AnyComponent> {
        let (faults, calls) = (Arc::clone(&self.faults), Arc::clone(&self.calls));
        Box::new(Self { inner: self.inner.fresh(), faults, calls })
    }
}

/// Memory queues, some of which take nothing for a while, or stall.
pub(crate) struct Unsteady {
    pub(crate) memory: Memory,
    /// Queues, and which batches they do not take, counted from 1.
    pub(crate) outages: Vec<(String, RangeInclusive<u64>)>,
    /// By queue.
    pub(crate) stalls: BTreeMap<String, Stalls>,
    /// The dead letters that the queues have taken.
    pub(crate) kept: Arc<Kept>,
}

/// Which pulls of a queue stall (counted from 1 over all its consumers).
#[derive(Debug, Clone, Default)]
pub(crate) struct Stalls {
    pub(crate) planned: Vec<RangeInclusive<u64>>,
    /// How many pulls there were.
    pulls: Arc<AtomicU64>,
}

impl Stalls {
    /// Counts a pull; returns whether it stalls.
    fn next(&self) -> bool {
        let number = self.pulls.fetch_add(1, Ordering::Relaxed) + 1;
        self.planned.iter().any(|pulls| pulls.contains(&number))
    }
}

#[async_trait]
impl LikeConnector for Unsteady {
    fn inner(&self) -> &dyn Connector {
        &self.memory
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let inner = self.memory.consumer(queue, reader, env).await?;
        let Some(stalls) = self.stalls.get(&*queue.name).cloned() else { return Ok(inner) };
        let (queue, closed) = (Arc::clone(&queue.name), AtomicBool::new(false));
        Ok(Arc::new(Like(UnsteadyConsumer { inner, queue, stalls, closed })))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        let inner = self.memory.producer(queue, env).await?;
        let inner = self.kept.keeping(&queue.name, inner);
        let outages = self.outages.iter().filter(|(name, _)| **name == *queue.name);
        let outages: Vec<_> = outages.map(|(_, batches)| batches.clone()).collect();
        if outages.is_empty() {
            return Ok(inner);
        }
        Ok(Arc::new(Like(UnsteadyProducer { inner, outages, batches: AtomicU64::new(0) })))
    }
}

struct UnsteadyConsumer {
    inner: Arc<dyn Consumer>,
    queue: Arc<str>,
    stalls: Stalls,
    /// Once set, it answers nothing any more, like a consumer whose connection is gone.
    closed: AtomicBool,
}

#[async_trait]
impl LikeConsumer for UnsteadyConsumer {
    fn inner(&self) -> &dyn Consumer {
        &*self.inner
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        match self.stalls.next() {
            true => Err(ConnectorError::stalled("a stall of the trial")),
            false => self.inner.consume(want).await,
        }
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        match self.closed.load(Ordering::Relaxed) {
            true => Err(ConnectorError::closed(&self.queue)),
            false => self.inner.lag().await,
        }
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.closed.store(true, Ordering::Relaxed);
        self.inner.shutdown().await
    }
}

struct UnsteadyProducer {
    inner: Arc<dyn Producer>,
    outages: Vec<RangeInclusive<u64>>,
    batches: AtomicU64,
}

#[async_trait]
impl LikeProducer for UnsteadyProducer {
    fn inner(&self) -> &dyn Producer {
        &*self.inner
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let number = self.batches.fetch_add(1, Ordering::Relaxed) + 1;
        if self.outages.iter().any(|outage| outage.contains(&number)) {
            return Err(ConnectorError::transient("an outage of the trial"));
        }
        self.inner.produce(batch).await
    }
}
