//! One worker's handling of one delivery: check it, call the component, decide what becomes of it.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use brigade_core::component::{AnyComponent, Context, Emit, Emitted, HandleError, Handling};
use brigade_core::connector::{Order, Outgoing};
use brigade_core::delivery::{Delivery, Done, GivenUp, Outputs, Resolution};
use brigade_core::retry::{Retry, Waiting};
use brigade_core::{Cause, CauseKind, Failure, Message, Timestamp};
use brigade_pipeline::{Exhausted, Expiry};
use futures_util::FutureExt;
use serde_json::Value;
use tokio::sync::Notify;

use crate::plan::{QueuePlan, StagePlan, Target};
use crate::pool::{CHUNK_MAX, Pool};
use crate::tree::Report;

/// A worker's component and everything it needs to handle deliveries.
pub(crate) struct Runner {
    pub(crate) site: Arc<RunnerSite>,
    pub(crate) component: Box<dyn AnyComponent>,
    /// Deliveries over direct edges that are not sent yet.
    pub(crate) outbox: Outbox,
}

/// Deliveries over direct edges, by the stage they go to: sent together, since one mailbox message a
/// delivery costs more than many components do.
#[derive(Default)]
pub(crate) struct Outbox(Vec<(u16, Vec<Delivery>)>);

impl Outbox {
    /// Whether as much waits as one mailbox message takes.
    pub(crate) fn is_full(&self) -> bool {
        self.0.iter().any(|(_, deliveries)| deliveries.len() >= CHUNK_MAX)
    }

    fn push(&mut self, stage: u16, deliveries: impl Iterator<Item = Delivery>) {
        match self.0.iter_mut().find(|(have, _)| *have == stage) {
            Some((_, waiting)) => waiting.extend(deliveries),
            None => self.0.push((stage, deliveries.collect())),
        }
    }
}

/// What is the same for all workers of a stage.
pub(crate) struct RunnerSite {
    pub(crate) stage: Arc<StagePlan>,
    pub(crate) queues: Vec<Arc<QueuePlan>>,
    /// The pools of the stages fed directly, by number; empty for others.
    pub(crate) downstream: Vec<(u16, Order, Arc<Pool>)>,
    pub(crate) report: Report,
    /// The consumers that deal to this stage, to be told when there is a worker again.
    pub(crate) listeners: Mutex<Vec<Arc<Notify>>>,
}

/// What became of a delivery.
pub(crate) enum Step {
    /// It is resolved.
    Resolved,
    /// It is to be tried again after this long.
    Retry(Box<Delivery>, Duration),
}

/// How one attempt went.
pub(crate) enum Attempt {
    /// The component answered.
    Answered(Result<Emit, HandleError>),
    /// It panicked; it is to be rebuilt before the next message.
    Panicked(String),
    /// It took longer than the stage's `timeout`.
    TimedOut(Duration),
}

impl Runner {
    /// Handles one delivery as far as it goes now.
    pub(crate) async fn handle(&mut self, delivery: Delivery, template: &Template) -> Step {
        let (delivery, context) = match self.site.admit(delivery, now()) {
            Ok(admitted) => admitted,
            Err(step) => return step,
        };
        self.site.throttle().await;
        self.site.stage.stats.calls.add(1);
        let (delivery, attempt) = self.attempt(delivery, &context).await;
        if matches!(attempt, Attempt::Panicked(_)) {
            self.component = template.fresh();
        }
        let delivery = Delivery { message: context.into_message(), ..delivery };
        self.site.decide(delivery, attempt, &mut self.outbox)
    }

    /// Handles a batch, one answer for each.
    pub(crate) async fn handle_batch(
        &mut self,
        deliveries: Vec<Delivery>,
        template: &Template,
    ) -> Vec<Step> {
        let mut steps = Vec::with_capacity(deliveries.len());
        let (mut admitted, mut contexts) = (Vec::new(), Vec::new());
        for delivery in deliveries {
            match self.site.admit(delivery, now()) {
                Ok((delivery, context)) => {
                    self.site.throttle().await;
                    admitted.push(delivery);
                    contexts.push(context);
                }
                Err(step) => steps.push(step),
            }
        }
        if admitted.is_empty() {
            return steps;
        }
        self.site.stage.stats.calls.add(1);
        let attempts = self.attempt_batch(&mut admitted, &contexts).await;
        if attempts.iter().any(|attempt| matches!(attempt, Attempt::Panicked(_))) {
            self.component = template.fresh();
        }
        let messages = contexts.into_iter().map(Context::into_message);
        for ((delivery, message), attempt) in admitted.into_iter().zip(messages).zip(attempts) {
            let delivery = Delivery { message, ..delivery };
            steps.push(self.site.decide(delivery, attempt, &mut self.outbox));
        }
        steps
    }

    async fn attempt(&mut self, mut delivery: Delivery, cx: &Context) -> (Delivery, Attempt) {
        let parsed = delivery.parsed.take();
        let attempt = match self.site.stage.timeout {
            None => self.call(parsed, cx).await,
            Some(timeout) => tokio::time::timeout(timeout, self.call(parsed, cx))
                .await
                .unwrap_or(Attempt::TimedOut(timeout)),
        };
        (delivery, attempt)
    }

    /// Calls the component, for as long as it takes.
    pub(crate) async fn call(&mut self, parsed: Option<Value>, cx: &Context) -> Attempt {
        let component = &mut self.component;
        let called = std::panic::catch_unwind(AssertUnwindSafe(|| component.handle(parsed, cx)));
        match called {
            Err(panic) => Attempt::Panicked(panic_text(panic.as_ref())),
            Ok(Handling::Done(answer)) => Attempt::Answered(answer),
            Ok(Handling::Pending(future)) => match AssertUnwindSafe(future).catch_unwind().await {
                Err(panic) => Attempt::Panicked(panic_text(panic.as_ref())),
                Ok(answer) => Attempt::Answered(answer),
            },
        }
    }

    async fn attempt_batch(&mut self, batch: &mut [Delivery], cx: &[Context]) -> Vec<Attempt> {
        let parsed = batch.iter_mut().map(|delivery| delivery.parsed.take()).collect();
        let component = &mut self.component;
        let future = async { component.handle_batch(parsed, cx).await };
        let future = AssertUnwindSafe(future).catch_unwind();
        match self.site.in_time(future).await {
            None => {
                let timeout = self.site.stage.timeout.unwrap_or_default();
                cx.iter().map(|_| Attempt::TimedOut(timeout)).collect()
            }
            Some(Err(panic)) => {
                let text = panic_text(panic.as_ref());
                cx.iter().map(|_| Attempt::Panicked(text.clone())).collect()
            }
            Some(Ok(answers)) => answers.into_iter().map(Attempt::Answered).collect(),
        }
    }
}

impl RunnerSite {
    /// This consumer deals to the stage.
    pub(crate) fn listen(&self, consumer: Arc<Notify>) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(consumer);
    }

    /// The consumers deal to other workers from now on, and will say so again.
    pub(crate) fn forget_listeners(&self) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A worker is there that was not: what waited for it can be dealt.
    pub(crate) fn tell_listeners(&self) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().for_each(|listener| listener.notify_one());
    }

    /// Checks whether the component may see a delivery, and lends its message to a context.
    pub(crate) fn admit(
        &self,
        mut delivery: Delivery,
        now: Timestamp,
    ) -> Result<(Delivery, Context), Step> {
        if let Some(defect) = delivery.defect.take() {
            let truncated = defect.truncated.clone();
            let cause = Cause::new(defect.kind, defect.message);
            return Err(self.give_up_on(delivery, cause, truncated));
        }
        let input = &self.queues[usize::from(delivery.input)];
        if self.stage.upstream.is_none()
            && let Err(cause) = input.receive(&mut delivery)
        {
            return Err(self.give_up_on(delivery, cause, None));
        }
        if let Some(step) = self.expired(&delivery, now) {
            return Err(match step {
                Expiry::Discard => {
                    delivery.guard.resolve(Resolution::Discarded);
                    Step::Resolved
                }
                Expiry::DeadLetter => {
                    let cause = Cause::new(CauseKind::Expired, "older than the stage's `expire`");
                    self.give_up_on(delivery, cause, None)
                }
            });
        }
        let message = std::mem::take(&mut delivery.message);
        let stage = Arc::clone(&self.stage.context);
        let locate = delivery.guard.locate();
        let context = Context::new(stage, message, delivery.attempts + 1).at(
            Arc::clone(&input.spec.name),
            delivery.receipt,
            delivery.redeliveries,
            locate,
        );
        Ok((delivery, context))
    }

    fn expired(&self, delivery: &Delivery, now: Timestamp) -> Option<Expiry> {
        let expire = self.stage.expire?;
        let from = delivery.message.event_time.or(delivery.enqueued_at)?;
        (now.since(from) > expire.after).then_some(expire.then)
    }

    /// Waits until the stage's throttle lets one message more pass.
    pub(crate) async fn throttle(&self) {
        let Some(bucket) = &self.stage.throttle else { return };
        loop {
            let taken = bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
            match taken {
                Ok(()) => return,
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

    /// A future's answer, unless the stage's timeout comes first.
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
                let cause = Cause::of(CauseKind::Rejected, error.as_ref());
                stats.failed_attempts.add(1);
                delivery.attempts += 1;
                delivery.first_failed_at.get_or_insert_with(now);
                return self.give_up_on(delivery, cause, None);
            }
            Attempt::Answered(Err(HandleError::Failed(Failure::Retry { error, after }))) => {
                (Cause::of(CauseKind::Error, error.as_ref()), after)
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
        delivery.attempts += 1;
        delivery.first_failed_at.get_or_insert_with(now);
        let random = fastrand::f64();
        match self.stage.retry.decide(delivery.attempts, asked, self.waiting(&delivery), random) {
            Retry::InProcess(delay) => Step::Retry(Box::new(delivery), delay),
            Retry::InQueue(delay) => {
                let (attempts, error) = (delivery.attempts, cause.message);
                delivery.guard.resolve(Resolution::Requeued { attempts, error, delay });
                Step::Resolved
            }
            Retry::Exhausted => self.exhausted(delivery, cause),
        }
    }

    /// Where a failed delivery can wait: in its queue only if it stands for itself there, and if
    /// its place in the order does not matter.
    fn waiting(&self, delivery: &Delivery) -> Waiting {
        let delays = self.queues[usize::from(delivery.input)].features.delay;
        let free = self.stage.order == Order::None && self.stage.upstream.is_none();
        if delays && free { Waiting::InQueue } else { Waiting::InProcess }
    }

    fn exhausted(&self, delivery: Delivery, cause: Cause) -> Step {
        match self.stage.on_exhausted {
            Exhausted::DeadLetter => self.give_up_on(delivery, cause, None),
            Exhausted::Discard => {
                delivery.guard.resolve(Resolution::Discarded);
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
                delivery.guard.resolve(Resolution::Released);
                Step::Resolved
            }
        }
    }

    fn give_up_on(
        &self,
        delivery: Delivery,
        cause: Cause,
        truncated: Option<brigade_core::Truncated>,
    ) -> Step {
        let given_up = GivenUp {
            stage: self.stage.index,
            message: delivery.message,
            cause,
            attempts: delivery.attempts,
            first_failed_at: delivery.first_failed_at,
            truncated,
        };
        delivery.guard.resolve(Resolution::DeadLettered(Box::new(given_up)));
        Step::Resolved
    }

    /// Sends what the component emitted on its way.
    fn done(&self, delivery: Delivery, emit: Emit, outbox: &mut Outbox) -> Step {
        let routed = match self.route(&delivery, emit) {
            Ok(routed) => routed,
            Err(cause) => return self.give_up_on(delivery, cause, None),
        };
        let Routed { outputs, direct, writes } = routed;
        let keep = !outputs.is_empty();
        let children: usize = direct.iter().map(|(_, messages)| messages.len()).sum();
        for (stage, messages) in direct {
            outbox.push(stage, messages.into_iter().map(|message| child(&delivery, message)));
        }
        let done = Done {
            stage: self.stage.index,
            attempts: delivery.attempts,
            outputs,
            writes,
            children: u32::try_from(children).expect("memory ends before"),
            message: keep.then(|| Box::new(delivery.message)),
        };
        delivery.guard.resolve(Resolution::Done(done));
        Step::Resolved
    }

    /// Sends what waits to go over direct edges.
    pub(crate) fn send(&self, outbox: &mut Outbox, lane: usize) {
        for (stage, deliveries) in &mut outbox.0 {
            if deliveries.is_empty() {
                continue;
            }
            let found = self.downstream.iter().find(|(index, _, _)| index == stage);
            let (_, order, pool) = found.expect("every direct target has its pool");
            pool.send_direct(*order, lane, std::mem::take(deliveries));
        }
    }

    /// Finds the way of each output and makes its message.
    fn route(&self, delivery: &Delivery, emit: Emit) -> Result<Routed, Cause> {
        let (emitted, writes) =
            emit.into_parts().map_err(|error| Cause::of(CauseKind::Output, &error))?;
        let mut routed = Routed { outputs: Outputs::new(), direct: Vec::new(), writes };
        let mut index = 0;
        for output in emitted {
            let targets = self.targets(&output)?;
            for (name, target) in targets {
                let id = delivery.message.id.output(&self.stage.name, name, index);
                index += 1;
                let mut message = message_of(&output, &delivery.message);
                message.id = id;
                match *target {
                    Target::Queue(queue) => {
                        self.queues[usize::from(queue)].send(&mut message)?;
                        routed.outputs.push((queue, Outgoing { message, delay: output.delay }));
                    }
                    Target::Direct(stage) => routed.push_direct(stage, message),
                }
            }
        }
        Ok(routed)
    }

    fn targets(&self, output: &Emitted) -> Result<&[(Arc<str>, Target)], Cause> {
        let all = &self.stage.outputs;
        let declared = || {
            let names: Vec<_> = all.iter().map(|(name, _)| format!("`{name}`")).collect();
            format!(
                "stage `{}` declares {}",
                self.stage.name,
                match names.len() {
                    0 => "no output".to_owned(),
                    _ => names.join(", "),
                }
            )
        };
        let wrong = |what: String| Cause::new(CauseKind::Output, format!("{what}; {}", declared()));
        match &output.output {
            Some(name) => all
                .iter()
                .position(|(have, _)| **have == **name)
                .map(|at| &all[at..=at])
                .ok_or_else(|| wrong(format!("no output `{name}`"))),
            None if all.len() == 1 || (self.stage.copy && !all.is_empty()) => Ok(all),
            None => Err(wrong("the output has no name".to_owned())),
        }
    }
}

/// What the outputs of one message have become.
struct Routed {
    outputs: Outputs,
    direct: Vec<(u16, Vec<Message>)>,
    writes: Vec<brigade_core::component::StateWrite>,
}

impl Routed {
    fn push_direct(&mut self, stage: u16, message: Message) {
        match self.direct.iter_mut().find(|(have, _)| *have == stage) {
            Some((_, messages)) => messages.push(message),
            None => self.direct.push((stage, vec![message])),
        }
    }
}

fn message_of(output: &Emitted, input: &Message) -> Message {
    Message {
        id: input.id,
        key: output.key.clone().unwrap_or_else(|| input.key.clone()),
        headers: output.headers.clone().unwrap_or_else(|| input.headers.clone()),
        payload: output.payload.clone(),
        event_time: output.event_time.or(input.event_time),
    }
}

fn child(parent: &Delivery, message: Message) -> Delivery {
    Delivery {
        message,
        parsed: None,
        attempts: 0,
        redeliveries: parent.redeliveries,
        input: parent.input,
        receipt: parent.receipt,
        enqueued_at: parent.enqueued_at,
        first_failed_at: None,
        defect: None,
        guard: parent.guard.child(),
    }
}

/// What a lane's workers are cloned from: the component after its `init`.
pub(crate) struct Template(std::sync::Mutex<Box<dyn AnyComponent>>);

impl Template {
    pub(crate) fn new(component: Box<dyn AnyComponent>) -> Arc<Self> {
        Arc::new(Self(std::sync::Mutex::new(component)))
    }

    pub(crate) fn fresh(&self) -> Box<dyn AnyComponent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fresh()
    }
}

/// The time now, by the wall clock.
pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a text".to_owned()
    }
}
