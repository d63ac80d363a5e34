//! One worker's handling of one delivery: check it, call the component, decide what becomes of it.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use brigade_core::component::{
    AnyComponent, Context, Emit, Emitted, HandleError, Parsed, StateWrite,
};
use brigade_core::connector::Order;
use brigade_core::delivery::{Again, Children, Delivery, Requeued, Resolution, ended_here};
use brigade_core::retry::{Retry, Waiting};
use brigade_core::{Cause, CauseKind, Codec, Failure, Period, Truncated};
use brigade_pipeline::{Exhausted, Expiry};
use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::call::{Template, call, cause_of, drop_quietly, panic_text};
use crate::clock::now;
use crate::edge::{read_value, receive, take_home};
use crate::outbox::Outbox;
use crate::plan::{QueuePlan, StagePlan, Target};
use crate::pool::Pool;
use crate::route::Child;
use crate::tree::Report;

/// A message that grows over a direct edge by no more than this many bytes keeps its place in its
/// consumer's account; what grows by more is counted anew, so that `max_in_flight` bounds it. With
/// the default of 4,096 messages in flight this is 1 MiB for each direct edge.
const UNCOUNTED_MAX: usize = 256;

/// A worker's component and everything it needs to handle deliveries.
pub(crate) struct Runner {
    pub(crate) site: Arc<RunnerSite>,
    pub(crate) component: Box<dyn AnyComponent>,
    /// Deliveries over direct edges that are not sent yet.
    pub(crate) outbox: Outbox,
    /// The context, reused for one call after the other.
    context: Context,
    /// Calls that are not counted yet: counters are shared with other lanes.
    calls: usize,
    /// Deliveries that have ended or gone on here and are not in the books yet.
    went: u64,
    /// How long it has waited for the stage's throttle since this was last taken.
    throttled: Duration,
}

impl Drop for Runner {
    /// Its worker may end in the midst of what it was given.
    fn drop(&mut self) {
        self.count_calls();
    }
}

/// What is the same for all workers of a stage.
pub(crate) struct RunnerSite {
    pub(crate) stage: Arc<StagePlan>,
    pub(crate) queues: Vec<Arc<QueuePlan>>,
    /// The pools of the stages fed directly, by number; empty for others.
    pub(crate) downstream: Vec<(u16, Order, Arc<Pool>)>,
    pub(crate) report: Report,
    /// The consumers that deal to this stage, notified when a worker is back or has room.
    pub(crate) listeners: Mutex<Vec<Arc<Notify>>>,
}

/// What became of a delivery.
pub(crate) enum Step {
    /// It is resolved.
    Resolved,
    /// It is retried after this long.
    Retry(Delivery, Duration),
    /// It is resolved, and its key is parked.
    Parked(Parked),
    /// It goes back, together with everything that its worker has: the stage fails.
    Halted,
}

/// A key that is parked in its queue. What the worker was given of it before goes back.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) key: Option<Bytes>,
    /// The queue it came from.
    pub(crate) input: u16,
    /// The number of the last handing-over by its stage's consumers at that point.
    pub(crate) last: u64,
}

fn park(delivery: Delivery, error: String) -> Step {
    let parked = Parked {
        key: delivery.message.key.clone(),
        input: delivery.input,
        last: delivery.last_number(),
    };
    let requeued = Requeued { attempts: delivery.attempts, error, again: Again::Parked };
    delivery.resolve(Resolution::Requeued(Box::new(requeued)));
    Step::Parked(parked)
}

/// How one attempt went.
pub(crate) enum Attempt {
    /// The component returned a result.
    Answered(Result<Emit, HandleError>),
    /// It panicked; it must be rebuilt before the next message.
    Panicked(String),
    /// It took longer than the stage's `timeout`.
    TimedOut(Duration),
}

impl Runner {
    pub(crate) fn new(site: Arc<RunnerSite>, component: Box<dyn AnyComponent>) -> Self {
        let context = Context::lend(Arc::clone(&site.stage.context), Delivery::default());
        let (outbox, throttled) = (Outbox::default(), Duration::ZERO);
        Self { site, component, outbox, context, calls: 0, went: 0, throttled }
    }

    /// Handles one delivery as far as possible now.
    pub(crate) async fn handle(&mut self, delivery: Delivery, template: &Template) -> Step {
        let mut delivery = match self.admit(delivery) {
            Ok(admitted) => admitted,
            Err(step) => return step,
        };
        self.throttle().await;
        self.calls += 1;
        let parsed = delivery.parsed.take();
        let none = self.context.exchange(delivery);
        let attempt = self.attempt(parsed).await;
        let delivery = self.context.exchange(none);
        if matches!(attempt, Attempt::Panicked(_)) {
            self.component = template.fresh();
        }
        self.decide(delivery, attempt)
    }

    /// Checks whether the component may see a delivery.
    pub(crate) fn admit(&mut self, delivery: Delivery) -> Result<Delivery, Step> {
        let before = ended_here();
        let admitted = match delivery.is_deserted() {
            true => {
                delivery.resolve(Resolution::Released);
                Err(Step::Resolved)
            }
            false => self.site.admit(delivery),
        };
        self.went += ended_here() - before;
        admitted
    }

    /// Decides what becomes of a delivery after an attempt.
    pub(crate) fn decide(&mut self, delivery: Delivery, attempt: Attempt) -> Step {
        #[cfg(feature = "sabotage")]
        if self.site.stage.sabotage.strike(crate::sabotage::LEAK) {
            std::mem::forget(delivery);
            return Step::Resolved;
        }
        let (before, on) = (ended_here(), self.outbox.gone_on);
        let step = self.site.decide(delivery, attempt, &mut self.outbox);
        self.went += ended_here() - before + (self.outbox.gone_on - on);
        step
    }

    /// Returns and resets how many have ended or gone on here.
    pub(crate) fn take_went(&mut self) -> u64 {
        std::mem::take(&mut self.went)
    }

    /// Waits until the stage's throttle lets another message pass.
    pub(crate) async fn throttle(&mut self) {
        if self.site.stage.throttle.is_some() {
            let begun = Instant::now();
            self.count_calls();
            self.site.throttle().await;
            self.throttled += begun.elapsed();
        }
    }

    /// Returns and resets how long it waited for the throttle.
    pub(crate) fn take_throttled(&mut self) -> Duration {
        std::mem::take(&mut self.throttled)
    }

    /// Handles a batch, with one result per message.
    pub(crate) async fn handle_batch(
        &mut self,
        deliveries: Vec<Delivery>,
        template: &Template,
    ) -> Vec<Step> {
        let mut steps = Vec::with_capacity(deliveries.len());
        let (mut parsed, mut contexts) = (Vec::new(), Vec::new());
        for delivery in deliveries {
            match self.admit(delivery) {
                Ok(mut delivery) => {
                    self.throttle().await;
                    parsed.push(delivery.parsed.take());
                    contexts.push(Context::lend(Arc::clone(&self.site.stage.context), delivery));
                }
                Err(step) => steps.push(step),
            }
        }
        if contexts.is_empty() {
            return steps;
        }
        self.calls += 1;
        self.count_calls();
        let attempts = self.attempt_batch(parsed, &contexts).await;
        if attempts.iter().any(|attempt| matches!(attempt, Attempt::Panicked(_))) {
            self.component = template.fresh();
        }
        for (context, attempt) in contexts.into_iter().zip(attempts) {
            steps.push(self.decide(context.into_delivery(), attempt));
        }
        steps
    }

    /// Sends what waits to go over direct edges, and counts what was called.
    pub(crate) fn send(&mut self, lane: usize) {
        self.count_calls();
        self.site.send(&mut self.outbox, lane);
    }

    /// Adds the calls since the last time to the stage's: together, as most take next to no time, and
    /// before whatever may take long, as all workers of a stage share the count.
    fn count_calls(&mut self) {
        self.site.stage.stats.calls.add(std::mem::take(&mut self.calls));
    }

    async fn attempt(&mut self, parsed: Option<Parsed>) -> Attempt {
        let Self { site, component, context, calls, .. } = self;
        let call = call(component.as_mut(), parsed, context);
        match site.stage.timeout {
            None => {
                let mut call = pin!(call);
                let at_once = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
                if let Poll::Ready(attempt) = at_once {
                    return attempt;
                }
                site.stage.stats.calls.add(std::mem::take(calls));
                call.await
            }
            Some(timeout) => {
                site.stage.stats.calls.add(std::mem::take(calls));
                let mut call = Box::pin(call);
                let in_time = tokio::time::timeout(timeout, &mut call).await;
                in_time.unwrap_or_else(|_| {
                    drop_quietly(call);
                    Attempt::TimedOut(timeout)
                })
            }
        }
    }

    async fn attempt_batch(&mut self, parsed: Vec<Option<Parsed>>, cx: &[Context]) -> Vec<Attempt> {
        let component = &mut self.component;
        let future = async { component.handle_batch(parsed, cx).await };
        let mut future = Box::pin(AssertUnwindSafe(future).catch_unwind());
        match self.site.in_time(&mut future).await {
            None => {
                drop_quietly(future);
                let timeout = self.site.stage.timeout.unwrap_or_default();
                cx.iter().map(|_| Attempt::TimedOut(timeout)).collect()
            }
            Some(Err(panic)) => {
                let text = panic_text(panic);
                cx.iter().map(|_| Attempt::Panicked(text.clone())).collect()
            }
            Some(Ok(answers)) => answers.into_iter().map(Attempt::Answered).collect(),
        }
    }
}

impl RunnerSite {
    /// Adds a consumer that deals to the stage.
    pub(crate) fn listen(&self, consumer: Arc<Notify>) {
        self.listeners.lock().push(consumer);
    }

    /// Forgets the consumers: from now on they deal to other workers, and register again.
    pub(crate) fn forget_listeners(&self) {
        self.listeners.lock().clear();
    }

    /// Notifies the consumers that a worker is back, or has room, so that they can deal what waited
    /// for it.
    pub(crate) fn tell_listeners(&self) {
        let listeners = self.listeners.lock();
        listeners.iter().for_each(|listener| listener.notify_one());
    }

    /// Checks whether the component may see a delivery.
    pub(crate) fn admit(&self, mut delivery: Delivery) -> Result<Delivery, Step> {
        take_home(&self.stage, &self.queues, &mut delivery);
        if let Some(defect) = delivery.defect.take() {
            let truncated = defect.truncated.clone();
            let cause = Cause::new(defect.kind, defect.message);
            return Err(self.give_up_on(delivery, cause, truncated));
        }
        if let Err(cause) = read_value(&mut delivery) {
            return Err(self.give_up_on(delivery, cause, None));
        }
        if let Err(cause) = receive(&self.stage, &self.queues, &mut delivery) {
            return Err(self.give_up_on(delivery, cause, None));
        }
        match self.expired(&delivery) {
            None => Ok(delivery),
            Some((Expiry::Discard, _)) => {
                delivery.resolve(Resolution::Discarded);
                Err(Step::Resolved)
            }
            Some((Expiry::DeadLetter, cause)) => Err(self.give_up_on(delivery, cause, None)),
        }
    }

    /// What happens to a delivery that is too old, and how old it is.
    fn expired(&self, delivery: &Delivery) -> Option<(Expiry, Cause)> {
        let expire = self.stage.expire?;
        let from = delivery.message.event_time.or(delivery.enqueued_at)?;
        let age = now().since(from);
        (age > expire.after).then(|| {
            let limit = Period(expire.after);
            let message = format!("{age:?} old, and the stage's `expire` is {limit}");
            (expire.then, Cause::new(CauseKind::Expired, message))
        })
    }

    /// Waits until the stage's throttle lets another message pass.
    async fn throttle(&self) {
        let Some(bucket) = &self.stage.throttle else { return };
        loop {
            let taken = bucket.lock().take(Instant::now().into_std());
            match taken {
                Ok(()) => return,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// The result of a future; `None` if the stage's timeout comes first.
    async fn in_time<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        match self.stage.timeout {
            None => Some(future.await),
            Some(timeout) => tokio::time::timeout(timeout, future).await.ok(),
        }
    }

    /// Decides what becomes of a delivery after an attempt.
    pub(crate) fn decide(
        &self,
        mut delivery: Delivery,
        attempt: Attempt,
        outbox: &mut Outbox,
    ) -> Step {
        let stats = &self.stage.stats;
        let (cause, asked) = match attempt {
            Attempt::Answered(Ok(emit)) => return self.done(delivery, emit, outbox),
            Attempt::Answered(Err(HandleError::Decode(error))) => {
                let cause = Cause::new(CauseKind::Decode, error.to_string());
                return self.give_up_on(delivery, cause, None);
            }
            Attempt::Answered(Err(HandleError::Output(error))) => {
                return self.give_up_on(delivery, Cause::of(CauseKind::Output, &error), None);
            }
            Attempt::Answered(Err(HandleError::Failed(Failure::Reject(error)))) => {
                let cause = cause_of(CauseKind::Rejected, error);
                stats.failed_attempts.add(1);
                delivery.attempts = delivery.attempts.saturating_add(1);
                delivery.first_failed_at.get_or_insert_with(now);
                return self.give_up_on(delivery, cause, None);
            }
            Attempt::Answered(Err(HandleError::Failed(Failure::Retry { error, after }))) => {
                (cause_of(CauseKind::Error, error), after)
            }
            Attempt::Panicked(text) => {
                stats.panics.add(1);
                (Cause::new(CauseKind::Panic, text), None)
            }
            Attempt::TimedOut(timeout) => {
                stats.timeouts.add(1);
                (Cause::new(CauseKind::Timeout, format!("took longer than {timeout:?}")), None)
            }
        };
        stats.failed_attempts.add(1);
        delivery.attempts = delivery.attempts.saturating_add(1);
        delivery.first_failed_at.get_or_insert_with(now);
        let random = fastrand::f64();
        match self.stage.retry.decide(delivery.attempts, asked, self.waiting(&delivery), random) {
            Retry::InProcess(delay) => Step::Retry(delivery, delay),
            Retry::InQueue(delay) => {
                let (attempts, error) = (delivery.attempts, cause.message);
                let again = Again::After(delay);
                let requeued = Requeued { attempts, error, again };
                delivery.resolve(Resolution::Requeued(Box::new(requeued)));
                Step::Resolved
            }
            Retry::Exhausted => self.exhausted(delivery, cause),
        }
    }

    /// Where a failed delivery can wait: in its queue only if it is a message of its own there, and
    /// if its place in the order does not matter.
    fn waiting(&self, delivery: &Delivery) -> Waiting {
        let delays = self.queues[usize::from(delivery.input)].features.retry_delay;
        let free = self.stage.order == Order::None && self.stage.upstream.is_none();
        if delays && free { Waiting::InQueue } else { Waiting::InProcess }
    }

    fn exhausted(&self, delivery: Delivery, cause: Cause) -> Step {
        match self.stage.on_exhausted {
            // A redriven message does not come from the queue that has its key.
            Exhausted::Park if self.queues[usize::from(delivery.input)].features.park => {
                park(delivery, cause.message)
            }
            Exhausted::DeadLetter | Exhausted::Park => self.give_up_on(delivery, cause, None),
            Exhausted::Discard => {
                delivery.resolve(Resolution::Discarded);
                Step::Resolved
            }
            Exhausted::Halt => {
                let id = delivery.message.id;
                self.report.failed(
                    self.stage.index,
                    format!(
                        "message {id} used up its attempts (on_exhausted: halt): {}",
                        cause.message
                    ),
                );
                delivery.resolve(Resolution::Released);
                Step::Halted
            }
        }
    }

    fn give_up_on(&self, delivery: Delivery, cause: Cause, truncated: Option<Truncated>) -> Step {
        delivery.give_up(self.stage.index, cause, truncated);
        Step::Resolved
    }

    /// Sends off what the component emitted.
    fn done(&self, delivery: Delivery, emit: Emit, outbox: &mut Outbox) -> Step {
        let (emitted, writes) = match emit.into_parts() {
            Ok(parts) => parts,
            Err(error) => {
                return self.give_up_on(delivery, Cause::of(CauseKind::Output, &error), None);
            }
        };
        if writes.is_empty()
            && let [output] = &emitted[..]
            && !output.is_delayed()
            && output.grows(&delivery.message) <= UNCOUNTED_MAX
            && let Ok([(name, Target::Direct(stage))]) = self.targets(output)
        {
            return self.go_on(delivery, name, *stage, emitted, outbox);
        }
        self.fan_out(delivery, emitted, writes, outbox)
    }

    /// The usual case over a direct edge: one message becomes one, which takes over its duty.
    fn go_on(
        &self,
        mut delivery: Delivery,
        name: &str,
        stage: u16,
        emitted: SmallVec<[Emitted; 1]>,
        outbox: &mut Outbox,
    ) -> Step {
        let id = delivery.message.id.output(&self.stage.name, name, 0);
        for output in emitted {
            let takeover = output.turn(&mut delivery.message);
            delivery.message.id = id;
            if takeover.value {
                delivery.codec = Codec::Json;
            }
            delivery.go_on(takeover.typed.map(Parsed::Typed));
        }
        outbox.gone_on += 1;
        outbox.push(stage, delivery);
        Step::Resolved
    }

    /// Sends any number of outputs to queues and over direct edges.
    fn fan_out(
        &self,
        delivery: Delivery,
        emitted: SmallVec<[Emitted; 1]>,
        writes: Vec<StateWrite>,
        outbox: &mut Outbox,
    ) -> Step {
        let (outputs, direct) = match self.route(&delivery, emitted) {
            Ok(routed) => routed,
            Err(cause) => return self.give_up_on(delivery, cause, None),
        };
        let made: usize = direct.iter().map(|child| child.message.size()).sum();
        let children = Children {
            count: u32::try_from(direct.len()).expect("memory ends before"),
            // They replace the message, which is counted already.
            size: made.saturating_sub(delivery.message.size()),
        };
        for Child { stage, message, typed, codec } in direct {
            let mut child = delivery.child(message, typed.map(Parsed::Typed));
            child.codec = codec;
            outbox.push(stage, child);
        }
        let written = self.stage.context.unsettled.show(writes);
        delivery.done(self.stage.index, outputs, written, children);
        Step::Resolved
    }

    /// Sends what waits to go over direct edges.
    pub(crate) fn send(&self, outbox: &mut Outbox, lane: usize) {
        for (stage, deliveries) in outbox.take() {
            let found = self.downstream.iter().find(|(index, _, _)| *index == stage);
            let (_, order, pool) = found.expect("every direct target has its pool");
            pool.send_direct(*order, lane, deliveries);
        }
    }
}
