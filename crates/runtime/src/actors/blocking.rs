//! The thread of a worker whose component blocks.
//!
//! It handles one delivery at a time. A call that takes longer than the stage's timeout cannot be
//! cancelled; it is fenced off: its delivery is taken away from it, anything it still returns is
//! discarded, and another thread continues with the desk. Such threads are counted and limited.

use std::sync::Arc;
use std::time::Duration;

use actix::WeakAddr;
use actix::prelude::*;
use brigade_core::component::{Context as ComponentContext, Kind};
use brigade_core::connector::Order;
use brigade_core::delivery::{Delivery, ended_here};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::desk::Item;
use super::worker::{WorkLoop, Worker};
use crate::call::call_blocking;
use crate::outbox::Outbox;
use crate::plan::StagePlan;
use crate::runner::{Attempt, Step};

/// How often a thread's call is checked per timeout.
const LOOKS: u32 = 8;
/// The longest time between two checks.
const LOOK_MAX: Duration = Duration::from_millis(500);

pub(super) struct BlockingThread {
    call: Arc<Mutex<Call>>,
    look: Option<SpawnHandle>,
}

/// What a thread is doing.
#[derive(Default)]
struct Call {
    current: Option<Current>,
    /// Whether the thread was given up on.
    fenced: bool,
}

/// The delivery whose component runs, on a copy without the duty.
struct Current {
    delivery: Delivery,
    retry: bool,
    since: Instant,
}

/// Informs the worker that its thread has ended: user code can also panic where its calls are not
/// guarded, when a component is copied or dropped.
#[derive(Message)]
#[rtype(result = "()")]
struct Ended(Arc<Mutex<Call>>);

/// In each thread: reports its end, however it comes.
struct Thread {
    call: Arc<Mutex<Call>>,
    stage: Arc<StagePlan>,
    worker: WeakAddr<Worker>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        if self.call.lock().fenced {
            self.stage.stats.stuck.sub(1);
        } else if let Some(worker) = self.worker.upgrade() {
            worker.do_send(Ended(Arc::clone(&self.call)));
        }
    }
}

impl BlockingThread {
    pub(super) fn start(work: WorkLoop, worker: WeakAddr<Worker>) -> std::io::Result<Self> {
        let call = Arc::new(Mutex::new(Call::default()));
        let stage = Arc::clone(&work.runner.site.stage);
        let name = format!("brigade-{}", stage.name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = Thread { call: Arc::clone(&call), stage, worker };
        std::thread::Builder::new().name(name).spawn(move || {
            // Dropped last: by then nothing is held here any more.
            let thread = thread;
            let mut work = work;
            work.run_blocking(&runtime, &thread.call);
        })?;
        Ok(Self { call, look: None })
    }

    /// Checks the call periodically.
    pub(super) fn watch(&self, ctx: &mut actix::Context<Worker>) {
        ctx.run_later(Duration::ZERO, |worker, ctx| worker.look_often(ctx));
    }
}

impl Drop for BlockingThread {
    fn drop(&mut self) {
        // The thread ends with its call, since the desk is closed. What it holds is given back now.
        drop(self.call.lock().current.take());
    }
}

impl Handler<Ended> for Worker {
    type Result = ();

    /// The worker dies with its thread. If the thread ends because the desk is closed, the worker
    /// is not there to receive this, or its stage has failed.
    fn handle(&mut self, Ended(call): Ended, ctx: &mut Self::Context) {
        if self.thread_mut().is_some_and(|thread| Arc::ptr_eq(&thread.call, &call)) {
            ctx.stop();
        }
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

    /// Takes the delivery away from a call that takes too long.
    fn look(&mut self, timeout: Duration, ctx: &mut actix::Context<Self>) {
        let Some(thread) = self.thread_mut() else { return };
        let late = {
            let mut call = thread.call.lock();
            match call.current.take() {
                Some(current) if current.since.elapsed() >= timeout => {
                    call.fenced = true;
                    Some(current)
                }
                current => {
                    call.current = current;
                    None
                }
            }
        };
        let Some(late) = late else { return };
        if let Some(look) = thread.look.take() {
            ctx.cancel_future(look);
        }
        self.replace_thread(late, timeout, ctx);
    }

    fn replace_thread(
        &mut self,
        Current { delivery, retry, .. }: Current,
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
        let mut work = self.work_loop();
        let desk = Arc::clone(&work.desk);
        let retried = retry.then(|| delivery.message.key.clone());
        // A timeout emits nothing.
        let before = ended_here();
        let step = site.decide(delivery, Attempt::TimedOut(timeout), &mut Outbox::default());
        let went = ended_here() - before;
        work.handled(usize::from(!retry), timeout);
        desk.after(step, retried, std::iter::empty());
        desk.finish(went);
        if desk.is_closed() {
            return;
        }
        if stuck > stage.stuck_limit as u64 {
            let text = format!(
                "{stuck} blocking calls took longer than the timeout and still run; \
                 `stuck_limit` is {}",
                stage.stuck_limit
            );
            site.report.failed(stage.index, text);
            return;
        }
        match BlockingThread::start(work, ctx.address().downgrade()) {
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
    fn run_blocking(&mut self, runtime: &Runtime, call: &Mutex<Call>) {
        if self.runner.component.kind() == Kind::Batch {
            return runtime.block_on(self.run_blocking_batches(call));
        }
        let ordered = self.runner.site.stage.order != Order::None;
        while let Some(mut items) = runtime.block_on(self.next(1)) {
            let Some(item) = items.pop() else { continue };
            let Some(item) = (if ordered { self.desk.pass(item) } else { Some(item) }) else {
                self.took_no_work();
                continue;
            };
            let started = Instant::now();
            let retry = item.retry;
            let retried = retry.then(|| item.delivery.message.key.clone());
            let Some(step) = self.handle_blocking(item, runtime, call) else { return };
            let went = self.runner.take_went();
            self.handled(usize::from(!retry), started.elapsed());
            self.desk.after(step, retried, std::iter::empty());
            self.desk.finish(went);
        }
    }

    /// Batches are not fenced: `check` refuses a timeout on a blocking batch component.
    async fn run_blocking_batches(&mut self, call: &Mutex<Call>) {
        let size = self.runner.site.stage.batch.map_or(1, |(size, _)| size);
        while let Some(items) = self.next(size).await {
            if call.lock().fenced {
                return;
            }
            let desk = Arc::clone(&self.desk);
            tokio::select! {
                biased;
                () = self.gather_and_handle(items) => {}
                // It may be waiting at the throttle, with what is given back now.
                () = desk.closed() => return,
            }
        }
    }

    /// Handles one delivery; `None` if it was taken away meanwhile, or the desk was closed before
    /// the call began.
    fn handle_blocking(
        &mut self,
        Item { delivery, retry }: Item,
        runtime: &Runtime,
        call: &Mutex<Call>,
    ) -> Option<Step> {
        let mut delivery = match self.runner.admit(delivery) {
            Ok(admitted) => admitted,
            Err(step) => return Some(step),
        };
        let stage = Arc::clone(&self.runner.site.stage);
        if stage.throttle.is_some() {
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = self.runner.throttle() => {}
                    () = self.desk.closed() => {}
                }
            });
        }
        let parsed = delivery.parsed.take();
        let copy = delivery.copy_without_duty();
        let context = ComponentContext::lend(Arc::clone(&stage.context), copy);
        call.lock().current = Some(Current { delivery, retry, since: Instant::now() });
        // Checked only now: if the desk is closed later, whoever closes it finds what is to be
        // given back.
        if self.desk.is_closed() {
            drop(call.lock().current.take());
            return None;
        }
        stage.stats.calls.add(1);
        let component = self.runner.component.as_mut();
        let attempt = call_blocking(runtime, component, parsed, &context);
        if matches!(attempt, Attempt::Panicked(_)) {
            self.runner.component = self.template.fresh();
        }
        let Current { delivery, .. } = call.lock().current.take()?;
        let step = self.runner.decide(delivery, attempt);
        self.send();
        Some(step)
    }
}
