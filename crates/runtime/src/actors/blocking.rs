//! The thread of a worker whose component blocks.
//!
//! It handles one delivery at a time. A call that takes longer than the stage's timeout cannot be
//! cancelled; it is fenced off: its delivery is taken from it, whatever it still answers is thrown
//! away, and another thread goes on from the desk. Such threads are counted and limited.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::prelude::*;
use brigade_core::component::{Context as ComponentContext, Kind};
use brigade_core::connector::Order;
use brigade_core::delivery::{Delivery, ended_here};
use tokio::time::Instant;

use super::worker::{WorkLoop, Worker};
use crate::runner::{Attempt, Outbox, RunnerSite, Step, call as call_component};

/// How often a thread's call is looked at, in parts of its timeout.
const LOOKS: u32 = 8;
/// The longest time between two looks.
const LOOK_MAX: Duration = Duration::from_millis(500);

pub(super) struct BlockingThread {
    call: Arc<Mutex<Call>>,
    look: Option<SpawnHandle>,
}

/// What a thread is doing.
#[derive(Default)]
struct Call {
    /// The delivery whose component runs, on a copy without the duty, and since when.
    current: Option<(Delivery, Instant)>,
    /// Whether the thread was given up on.
    fenced: bool,
}

impl BlockingThread {
    pub(super) fn start(mut work: WorkLoop) -> std::io::Result<Self> {
        let call = Arc::new(Mutex::new(Call::default()));
        let shared = Arc::clone(&call);
        let stage = Arc::clone(&work.runner.site.stage);
        let name = format!("brigade-{}", stage.name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(name).spawn(move || {
            runtime.block_on(work.run_blocking(&shared));
            if lock(&shared).fenced {
                stage.stats.stuck.sub(1);
            }
        })?;
        Ok(Self { call, look: None })
    }

    /// Looks at the call from time to time.
    pub(super) fn watch(&self, ctx: &mut actix::Context<Worker>) {
        ctx.run_later(Duration::ZERO, |worker, ctx| worker.look_often(ctx));
    }
}

impl Drop for BlockingThread {
    fn drop(&mut self) {
        // The thread ends with its call: the desk is closed. What it holds is given back now.
        drop(lock(&self.call).current.take());
    }
}

impl Worker {
    fn look_often(&mut self, ctx: &mut actix::Context<Self>) {
        let Some(timeout) = self.site().stage.timeout else { return };
        let every = (timeout / LOOKS).clamp(Duration::from_millis(1), LOOK_MAX);
        let look = ctx.run_interval(every, move |worker, ctx| worker.look(timeout, ctx));
        if let Some(thread) = self.thread_mut() {
            thread.look = Some(look);
        }
    }

    /// Takes the delivery from a call that takes too long.
    fn look(&mut self, timeout: Duration, ctx: &mut actix::Context<Self>) {
        let Some(thread) = self.thread_mut() else { return };
        let late = {
            let mut call = lock(&thread.call);
            match call.current.take() {
                Some((delivery, since)) if since.elapsed() >= timeout => {
                    call.fenced = true;
                    Some(delivery)
                }
                current => {
                    call.current = current;
                    None
                }
            }
        };
        let Some(delivery) = late else { return };
        if let Some(look) = thread.look.take() {
            ctx.cancel_future(look);
        }
        self.replace_thread(delivery, timeout, ctx);
    }

    fn replace_thread(
        &mut self,
        delivery: Delivery,
        timeout: Duration,
        ctx: &mut actix::Context<Self>,
    ) {
        let site = Arc::clone(self.site());
        let stage = &site.stage;
        stage.stats.stuck.add(1);
        let stuck = stage.stats.stuck.get();
        tracing::warn!(
            pipeline = %stage.context.pipeline, stage = %stage.name, stuck, ?timeout,
            "a blocking call took longer than the timeout; its thread is given up on"
        );
        let work = self.work_loop();
        let (desk, port) = (Arc::clone(&work.desk), Arc::clone(&work.port));
        let key = delivery.message.key.clone();
        // A timeout emits nothing.
        let before = ended_here();
        let step = site.decide(delivery, Attempt::TimedOut(timeout), &mut Outbox::default());
        let went = ended_here() - before;
        if port.handled(1, timeout) {
            site.tell_listeners();
        }
        match step {
            Step::Retry(delivery, after) => desk.retry(delivery, Instant::now() + after),
            Step::Parked(parked) => desk.park(parked, std::iter::empty()),
            Step::Resolved => desk.open(key.as_ref(), std::iter::empty()),
        }
        desk.finish(went);
        if stuck > stage.stuck_limit as u64 {
            let text = format!(
                "{stuck} blocking calls took longer than the timeout and still run; \
                 `stuck_limit` is {}",
                stage.stuck_limit
            );
            site.report.failed(stage.index, text);
            return;
        }
        match BlockingThread::start(work) {
            Ok(thread) => {
                thread.watch(ctx);
                *self.thread_mut().expect("it was there just now") = thread;
            }
            Err(error) => {
                tracing::error!(stage = %stage.name, %error, "no thread to be had");
                ctx.stop();
            }
        }
    }
}

impl WorkLoop {
    async fn run_blocking(&mut self, call: &Mutex<Call>) {
        if self.runner.component.kind() == Kind::Batch {
            return self.run_blocking_batches(call).await;
        }
        let ordered = self.runner.site.stage.order != Order::None;
        while let Some(mut items) = self.next(1).await {
            let Some(item) = items.pop() else { continue };
            let Some(item) = (if ordered { self.desk.pass(item) } else { Some(item) }) else {
                continue;
            };
            let key = item.delivery.message.key.clone();
            let started = Instant::now();
            let Some(step) = self.handle_blocking(item.delivery, call).await else { return };
            let (went, retry) = (self.runner.take_went(), item.retry);
            self.handled(usize::from(!retry), started.elapsed());
            match step {
                Step::Retry(delivery, after) => self.retry(delivery, after),
                Step::Parked(parked) => self.desk.park(parked, std::iter::empty()),
                Step::Resolved if retry => self.desk.open(key.as_ref(), std::iter::empty()),
                Step::Resolved => {}
            }
            self.desk.finish(went);
        }
    }

    /// Batches are not fenced: a timeout on a blocking batch component is refused by `check`.
    async fn run_blocking_batches(&mut self, call: &Mutex<Call>) {
        let size = self.runner.site.stage.batch.map_or(1, |(size, _)| size);
        while let Some(items) = self.next(size).await {
            if lock(call).fenced {
                return;
            }
            self.gather_and_handle(items).await;
        }
    }

    /// Handles one delivery; `None` when it was taken away meanwhile.
    async fn handle_blocking(&mut self, delivery: Delivery, call: &Mutex<Call>) -> Option<Step> {
        let mut delivery = match self.runner.admit(delivery) {
            Ok(admitted) => admitted,
            Err(step) => return Some(step),
        };
        let site: &RunnerSite = &self.runner.site;
        site.throttle().await;
        site.stage.stats.calls.add(1);
        let parsed = delivery.parsed.take();
        let copy = delivery.copy_without_duty();
        let context = ComponentContext::lend(Arc::clone(&site.stage.context), copy);
        lock(call).current = Some((delivery, Instant::now()));
        let attempt = call_component(self.runner.component.as_mut(), parsed, &context).await;
        if matches!(attempt, Attempt::Panicked(_)) {
            self.runner.component = self.template.fresh();
        }
        let (delivery, _) = lock(call).current.take()?;
        let step = self.runner.decide(delivery, attempt);
        self.send();
        Some(step)
    }
}

fn lock(call: &Mutex<Call>) -> std::sync::MutexGuard<'_, Call> {
    call.lock().unwrap_or_else(PoisonError::into_inner)
}
