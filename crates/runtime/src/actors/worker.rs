//! The actor of one worker: its mailbox fills a desk, and a loop works through the desk.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use brigade_core::component::Kind;
use brigade_core::connector::Order;
use brigade_core::delivery::Delivery;
use tokio::time::Instant;

use super::blocking::BlockingThread;
use super::desk::{Desk, Item};
use super::{Crash, Halt};
use crate::call::Template;
use crate::pool::{CHUNK_MAX, Port};
use crate::runner::{Runner, RunnerSite};
use crate::tree::Exit;

/// A chunk of deliveries for a worker. One that never arrives is recorded in the books as lost.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Work {
    deliveries: Vec<Delivery>,
    port: Arc<Port>,
}

impl Work {
    pub(crate) fn new(deliveries: Vec<Delivery>, port: Arc<Port>) -> Self {
        port.posted(deliveries.len());
        Self { deliveries, port }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.port.lost(self.deliveries.len());
    }
}

pub(crate) struct Worker {
    site: Arc<RunnerSite>,
    template: Arc<Template>,
    port: Arc<Port>,
    desk: Arc<Desk>,
    thread: Option<BlockingThread>,
    exit: Exit,
}

impl Worker {
    pub(crate) fn new(
        site: Arc<RunnerSite>,
        template: Arc<Template>,
        port: Arc<Port>,
        exit: Exit,
    ) -> Self {
        let desk = Arc::new(Desk::new(site.stage.order));
        Self { site, template, port, desk, thread: None, exit }
    }
}

impl Actor for Worker {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.desk.push(self.port.up(ctx.address(), Arc::clone(&self.desk)));
        if self.port.is_closed() {
            self.exit.expected();
            return ctx.stop();
        }
        self.site.tell_listeners();
        let worker = self.work_loop();
        if self.site.stage.blocking {
            match BlockingThread::start(worker, ctx.address().downgrade()) {
                Ok(thread) => {
                    thread.watch(ctx);
                    self.thread = Some(thread);
                }
                Err(error) => {
                    tracing::error!(
                        stage = %self.site.stage.name, %error,
                        "cannot start a thread for a component that blocks: check `ulimit -u`, `ulimit -n` (each has a runtime, \
                         which opens files) and the memory that is left"
                    );
                    ctx.stop();
                }
            }
        } else {
            ctx.spawn(worker.run().into_actor(self));
        }
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.port.down();
        self.desk.close();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // `stopped` does not run if the arbiter goes first.
        self.port.down();
        self.desk.close();
    }
}

impl Handler<Work> for Worker {
    type Result = ();

    fn handle(&mut self, mut work: Work, _: &mut Self::Context) {
        let deliveries = std::mem::take(&mut work.deliveries);
        self.port.arrived(deliveries.len());
        if self.site.stage.upstream.is_some() {
            self.site.stage.heard();
        }
        self.desk.push(deliveries);
    }
}

impl Handler<Halt> for Worker {
    type Result = ();

    fn handle(&mut self, _: Halt, ctx: &mut Self::Context) {
        self.exit.expected();
        ctx.stop();
    }
}

impl Handler<Crash> for Worker {
    type Result = ();

    fn handle(&mut self, _: Crash, _: &mut Self::Context) {
        panic!("killed by a test");
    }
}

impl Worker {
    pub(super) fn thread_mut(&mut self) -> Option<&mut BlockingThread> {
        self.thread.as_mut()
    }

    /// The loop that works through the desk, with a component of its own.
    pub(super) fn work_loop(&self) -> WorkLoop {
        WorkLoop {
            runner: Runner::new(Arc::clone(&self.site), self.template.fresh()),
            template: Arc::clone(&self.template),
            port: Arc::clone(&self.port),
            desk: Arc::clone(&self.desk),
        }
    }

    pub(super) fn site(&self) -> &Arc<RunnerSite> {
        &self.site
    }
}

/// Works through a desk until it is closed.
pub(super) struct WorkLoop {
    pub(super) runner: Runner,
    pub(super) template: Arc<Template>,
    pub(super) port: Arc<Port>,
    pub(super) desk: Arc<Desk>,
}

impl WorkLoop {
    async fn run(mut self) {
        let batches = self.runner.component.kind() == Kind::Batch;
        while let Some(items) = self.next(self.chunk(batches)).await {
            if batches {
                self.gather_and_handle(items).await;
            } else {
                self.handle(items).await;
            }
            // A component that never waits would occupy its lane until the desk is empty: nothing
            // would be settled, no lease extended, nothing stopped.
            tokio::task::yield_now().await;
        }
    }

    /// Waits for something to do.
    pub(super) async fn next(&self, max: usize) -> Option<Vec<Item>> {
        let begun = Instant::now();
        let items = self.desk.next(max).await;
        self.runner.site.stage.stats.idle_ns.add_time(begun.elapsed());
        items
    }

    fn chunk(&self, batches: bool) -> usize {
        match self.runner.site.stage.batch {
            Some((size, _)) if batches => size,
            _ => self.port.chunk(),
        }
    }

    /// Handles what was taken from the desk, one after the other.
    pub(super) async fn handle(&mut self, items: Vec<Item>) {
        let (started, n) = (Instant::now(), items.iter().filter(|item| !item.retry).count());
        let ordered = self.runner.site.stage.order != Order::None;
        let mut items = items.into_iter();
        while let Some(item) = items.next() {
            let passed = if ordered { self.desk.pass(item) } else { Some(item) };
            let Some(Item { delivery, retry }) = passed else { continue };
            let retried = (ordered && retry).then(|| delivery.message.key.clone());
            let step = self.runner.handle(delivery, &self.template).await;
            self.desk.after(step, retried, items.by_ref());
            if self.runner.outbox.is_full() {
                self.send();
            }
        }
        self.send();
        self.desk.finish(self.runner.take_went());
        self.handled(n, started.elapsed());
    }

    /// Sends what waits to go over direct edges.
    pub(super) fn send(&mut self) {
        self.runner.send(self.port.lane);
    }

    /// Records that `n` were handled in this time. The time spent at the throttle is not the
    /// component's, but it does slow the worker down.
    pub(super) fn handled(&mut self, n: usize, took: Duration) {
        let throttled = self.runner.take_throttled();
        let stage = &self.runner.site.stage;
        stage.handled(n, took.saturating_sub(throttled));
        stage.stats.idle_ns.add_time(throttled);
        if self.port.handled(n, took) {
            self.runner.site.tell_listeners();
        }
    }

    /// Records that one delivery from the desk waits behind others or went back.
    pub(super) fn took_no_work(&self) {
        if self.port.freed(1) {
            self.runner.site.tell_listeners();
        }
    }

    /// Waits until a batch is full or old enough, and handles it at once. There is no order: a
    /// batch may hold several messages of a key, and a retry would break it.
    pub(super) async fn gather_and_handle(&mut self, mut items: Vec<Item>) {
        let (size, age) = self.runner.site.stage.batch.unwrap_or((CHUNK_MAX, DEFAULT_AGE));
        let started = Instant::now();
        self.desk.gather(&mut items, size, started + age).await;
        let begun = Instant::now();
        let n = items.iter().filter(|item| !item.retry).count();
        let batch = items.into_iter().map(|item| item.delivery).collect();
        for step in self.runner.handle_batch(batch, &self.template).await {
            self.desk.after(step, None, std::iter::empty());
        }
        self.send();
        self.desk.finish(self.runner.take_went());
        self.handled(n, begun.elapsed());
    }
}

/// How long a batch waits for more if the stage does not set it.
const DEFAULT_AGE: Duration = Duration::from_millis(100);
