//! The actor of one producer on one lane, and the handle through which it is reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Instant;

use actix::prelude::*;
use arc_swap::ArcSwapOption;
use brigade_core::connector::{
    ConnectorError, Outgoing, Produced, Producer as ConnectorProducer, Rejected, Staged,
};
use brigade_core::state::StoreId;
use tokio::sync::oneshot;

use super::settler::Settler;
use super::tries::{Told, Tries};
use super::{Crash, Halt};
use crate::plan::QueuePlan;
use crate::tree::Exit;

/// The way to the producer of a queue; it stays while actors behind it come and go.
pub(crate) struct Outlet {
    pub(crate) queue: Arc<QueuePlan>,
    pub(crate) producer: Arc<dyn ConnectorProducer>,
    pub(crate) store: Option<StoreId>,
    addr: ArcSwapOption<Addr<Producer>>,
    /// Set when there must not be an actor any more.
    closed: AtomicBool,
    told: Told,
}

/// A batch to be put on the queue.
#[derive(Message)]
#[rtype(result = "()")]
struct Produce {
    /// Shared with the requester, which resends what is not confirmed.
    batch: Arc<Vec<Outgoing>>,
    reply: oneshot::Sender<Result<Vec<Produced>, ConnectorError>>,
}

/// A batch to be prepared for the transaction of its acks.
#[derive(Message)]
#[rtype(result = "()")]
struct Stage {
    /// Lent by the requester.
    batch: Arc<Vec<Outgoing>>,
    reply: oneshot::Sender<Result<Staged, ConnectorError>>,
}

impl Outlet {
    pub(crate) fn new(queue: Arc<QueuePlan>, producer: Arc<dyn ConnectorProducer>) -> Arc<Self> {
        let store = producer.store();
        let (addr, closed) = (ArcSwapOption::empty(), AtomicBool::new(false));
        Arc::new(Self { queue, producer, store, addr, closed, told: Told::default() })
    }

    /// Puts a batch on the queue, however long it takes; only what is not confirmed is sent again.
    /// Calls `stand` with the indices of confirmed messages as soon as they are on the queue.
    /// Returns what the queue refused for good, with indices in the batch.
    ///
    /// # Errors
    /// The queue cannot be written and never will be.
    pub(crate) async fn produce(
        &self,
        batch: Vec<Outgoing>,
        settler: &Settler,
        stand: impl Fn(&[usize]),
    ) -> Result<Vec<(usize, Rejected)>, String> {
        let mut rejected = Vec::new();
        let mut places: Vec<usize> = (0..batch.len()).collect();
        let (mut batch, mut tries) = (Arc::new(batch), Tries::default());
        loop {
            let begun = Instant::now();
            let answered = self.ask_to_produce(Arc::clone(&batch)).await;
            let kind = self.queue.keeper.type_name();
            let answered = answered.and_then(|outcomes| {
                one_for_each(&self.queue.spec.name, kind, batch.len(), outcomes)
            });
            let error = match answered {
                Ok(outcomes) => {
                    self.queue.times.write.done_since(begun);
                    let (mut left, mut last) = (Vec::new(), None);
                    let mut confirmed = Vec::with_capacity(places.len());
                    for (at, outcome) in outcomes.into_iter().enumerate() {
                        match outcome {
                            Produced::Confirmed => confirmed.push(places[at]),
                            Produced::Rejected(why) => rejected.push((places[at], why)),
                            Produced::Failed(error) => {
                                left.push(at);
                                // A permanent error is reported, even if transient ones follow it.
                                if last.as_ref().is_none_or(ConnectorError::is_transient) {
                                    last = Some(error);
                                }
                            }
                        }
                    }
                    stand(&confirmed);
                    let times = &self.queue.times;
                    times.failed.add(left.len());
                    times.written.add(confirmed.len());
                    let Some(error) = last else { break };
                    batch = Arc::new(left.iter().map(|at| batch[*at].clone()).collect());
                    places = left.iter().map(|at| places[*at]).collect();
                    error
                }
                Err(error) => error,
            };
            self.wait_after(&error, &mut tries, settler).await?;
        }
        let failures = tries.failures();
        if failures > 0 {
            tracing::info!(queue = %self.queue.spec.name, failures, "the queue takes messages again");
        }
        Ok(rejected)
    }

    /// Prepares a batch for the transaction of its acks.
    pub(crate) async fn stage(&self, batch: Arc<Vec<Outgoing>>) -> Result<Staged, ConnectorError> {
        let (reply, answer) = oneshot::channel();
        let messages = batch.len();
        match &*self.addr.load() {
            Some(addr) => addr.do_send(Stage { batch, reply }),
            None => return Err(self.away()),
        }
        let staged = answer.await.unwrap_or_else(|_| Err(self.away()))?;
        only_of_the_batch(&self.queue.spec.name, self.queue.keeper.type_name(), messages, staged)
    }

    async fn ask_to_produce(
        &self,
        batch: Arc<Vec<Outgoing>>,
    ) -> Result<Vec<Produced>, ConnectorError> {
        let (reply, answer) = oneshot::channel();
        match &*self.addr.load() {
            Some(addr) => addr.do_send(Produce { batch, reply }),
            None => return Err(self.away()),
        }
        answer.await.unwrap_or_else(|_| Err(self.away()))
    }

    fn away(&self) -> ConnectorError {
        let name = &self.queue.spec.name;
        ConnectorError::transient(format!("the producer of queue `{name}` is being restarted"))
    }

    async fn wait_after<'s>(
        &self,
        error: &ConnectorError,
        tries: &mut Tries<'s>,
        settler: &'s Settler,
    ) -> Result<(), String> {
        let (stage, queue) = (&settler.root().name, &self.queue.spec.name);
        if !error.is_transient() {
            return Err(format!("cannot produce on queue `{queue}`: {error}"));
        }
        if self.told.is_due() {
            tracing::warn!(%stage, %queue, %error, "the queue takes nothing; waiting");
        }
        tries.wait(settler).await;
        Ok(())
    }

    /// Ends the actor, even one that is not up yet: the actor and this hold each other.
    pub(crate) fn close(&self) {
        self.closed.store(true, SeqCst);
        if let Some(addr) = &*self.addr.load() {
            addr.do_send(Halt);
        }
    }

    /// Kills the actor, as if by a defect in Brigade.
    pub(crate) fn crash(&self) -> bool {
        self.addr.load().as_ref().is_some_and(|addr| addr.try_send(Crash).is_ok())
    }
}

/// A producer's results, if there is one per message; otherwise they cannot be matched to messages.
///
/// # Errors
/// There is not. Retrying would not help, since the connector is wrong.
pub(crate) fn one_for_each(
    queue: &str,
    kind: &str,
    messages: usize,
    outcomes: Vec<Produced>,
) -> Result<Vec<Produced>, ConnectorError> {
    let answers = outcomes.len();
    if answers == messages {
        return Ok(outcomes);
    }
    Err(ConnectorError::permanent(format!(
        "the producer of queue `{queue}` (type {kind}) answered for {answers} of {messages} messages; \
         expected one outcome for each, in the same order: `produce` of this connector has to be mended"
    )))
}

/// What a producer prepared, if everything it rejects is in the batch: each index once, here in
/// order.
///
/// # Errors
/// It is not. Retrying would not help, since the connector is wrong.
pub(crate) fn only_of_the_batch(
    queue: &str,
    kind: &str,
    messages: usize,
    mut staged: Staged,
) -> Result<Staged, ConnectorError> {
    staged.rejected.sort_unstable_by_key(|(at, _)| *at);
    let places = staged.rejected.iter().map(|(at, _)| *at);
    let twice =
        staged.rejected.windows(2).find(|pair| pair[0].0 == pair[1].0).map(|pair| pair[0].0);
    let Some(wrong) = places.max().filter(|last| *last >= messages).or(twice) else {
        return Ok(staged);
    };
    Err(ConnectorError::permanent(format!(
        "the producer of queue `{queue}` (type {kind}) rejected place {wrong} of {messages} messages; \
         expected places from 0, each once: `stage` of this connector has to be mended"
    )))
}

pub(crate) struct Producer {
    outlet: Arc<Outlet>,
    exit: Exit,
}

impl Producer {
    pub(crate) fn new(outlet: Arc<Outlet>, exit: Exit) -> Self {
        Self { outlet, exit }
    }
}

impl Actor for Producer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.outlet.addr.store(Some(Arc::new(ctx.address())));
        if self.outlet.closed.load(SeqCst) {
            self.exit.expected();
            ctx.stop();
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.outlet.addr.store(None);
    }
}

impl Handler<Produce> for Producer {
    type Result = ();

    fn handle(&mut self, Produce { batch, reply }: Produce, ctx: &mut Self::Context) {
        let producer = Arc::clone(&self.outlet.producer);
        let produce = async move {
            // The requester may be gone: then the messages are handled again.
            let _ = reply.send(producer.produce(&batch).await);
        };
        ctx.spawn(produce.into_actor(self));
    }
}

impl Handler<Stage> for Producer {
    type Result = ();

    fn handle(&mut self, Stage { batch, reply }: Stage, ctx: &mut Self::Context) {
        let producer = Arc::clone(&self.outlet.producer);
        let stage = async move {
            let staged = producer.stage(&batch).await;
            drop(batch);
            let _ = reply.send(staged);
        };
        ctx.spawn(stage.into_actor(self));
    }
}

impl Handler<Halt> for Producer {
    type Result = ();

    fn handle(&mut self, _: Halt, ctx: &mut Self::Context) {
        self.exit.expected();
        ctx.stop();
    }
}

impl Handler<Crash> for Producer {
    type Result = ();

    fn handle(&mut self, _: Crash, _: &mut Self::Context) {
        panic!("killed by a test");
    }
}
