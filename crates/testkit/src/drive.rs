//! Tests of one component: [`Driven`] calls it with messages and returns its results.

use std::fmt;
use std::sync::Arc;

use brigade_core::component::{
    AnyComponent, Context, Emitted, HandleError, Handling, IntoComponent, Kind, Setup,
    StageContext, StateWrite,
};
use brigade_core::delivery::Parts;
use brigade_core::state::{StateStore as _, StoreOp};
use brigade_core::{BoxError, Message};
use brigade_memory::MemoryState;

/// One component, driven by hand: call it with messages, and look at its results. It decodes,
/// encodes, and keeps its state as it does in a stage; nothing else of a stage is present, so a
/// panic of the component is a panic of the test.
///
/// ```
/// use brigade_core::component::{Component, Context, Emit};
/// use brigade_core::{BoxError, Failure, Message};
/// use brigade_testkit::Driven;
///
/// /// Adds up what it gets.
/// #[derive(Clone)]
/// struct Sum;
///
/// impl Component for Sum {
///     type In = u64;
///     type Out = Emit;
///     async fn handle(&mut self, number: u64, cx: &Context) -> Result<Emit, Failure> {
///         let known = cx.load_state("sum").await?;
///         let sum: u64 = known.map_or(Ok(0), |bytes| serde_json::from_slice(&bytes))? + number;
///         Ok(Emit::value(sum).put_state("sum", sum.to_string()))
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
/// let mut sum = Driven::new(Sum).await?;
/// sum.handle(Message::new("2")).await.expect("a number is fine");
/// let outputs = sum.handle(Message::new("3")).await.expect("a number is fine");
/// assert_eq!(outputs[0].payload.as_deref(), Some(&b"5"[..]));
/// assert!(sum.handle(Message::new("three")).await.is_err());
/// # Ok::<_, BoxError>(()) })?;
/// # Ok::<_, BoxError>(())
/// ```
pub struct Driven {
    component: Box<dyn AnyComponent>,
    stage: Arc<StageContext>,
    state: Arc<MemoryState>,
}

impl Driven {
    /// Wraps a component and runs its `init`.
    ///
    /// # Errors
    /// The error of its `init`.
    pub async fn new<M>(component: impl IntoComponent<M>) -> Result<Self, BoxError> {
        let (mut component, state) = (component.into_any(), MemoryState::new());
        let stage =
            StageContext { state: Some(state.clone()), ..StageContext::new("test", "test") };
        let stage = Arc::new(stage);
        let setup = Setup { stage: Arc::clone(&stage), lane: 0, workers: 1 };
        component.init(&setup).await?;
        Ok(Self { component, stage, state })
    }

    /// Handles a message for the first time.
    ///
    /// # Errors
    /// It does not decode, the component failed, or its result does not encode.
    pub async fn handle(&mut self, message: Message) -> Result<Vec<Emitted>, HandleError> {
        self.attempt(message, 1).await
    }

    /// Handles a message that has failed before: `attempt` is the number of this attempt, from 1.
    ///
    /// # Errors
    /// See [`handle`](Driven::handle).
    pub async fn attempt(
        &mut self,
        message: Message,
        attempt: u32,
    ) -> Result<Vec<Emitted>, HandleError> {
        if self.component.kind() == Kind::Batch {
            return self.handle_batch([message]).await.pop().expect("one answer for one message");
        }
        let attempts = attempt.saturating_sub(1);
        let delivery = Parts { message, attempts, ..Parts::default() }.into();
        let cx = Context::lend(Arc::clone(&self.stage), delivery);
        let answer = match self.component.handle(None, &cx) {
            Handling::Done(answer) => answer,
            Handling::Pending(answer) => answer.await,
        };
        let (outputs, writes) = answer?.into_parts().map_err(HandleError::Output)?;
        self.keep(writes).await;
        Ok(outputs.into_vec())
    }

    /// Handles messages as one batch; returns one result per message, in their order.
    pub async fn handle_batch(
        &mut self,
        messages: impl IntoIterator<Item = Message>,
    ) -> Vec<Result<Vec<Emitted>, HandleError>> {
        let context = |message| Context::new(Arc::clone(&self.stage), message);
        let cx: Vec<Context> = messages.into_iter().map(context).collect();
        let parsed = cx.iter().map(|_| None).collect();
        let answers = self.component.handle_batch(parsed, &cx).await;
        let mut all = Vec::with_capacity(answers.len());
        for answer in answers {
            let parts = answer.and_then(|emit| emit.into_parts().map_err(HandleError::Output));
            all.push(match parts {
                Ok((outputs, writes)) => {
                    self.keep(writes).await;
                    Ok(outputs.into_vec())
                }
                Err(error) => Err(error),
            });
        }
        all
    }

    async fn keep(&self, writes: Vec<StateWrite>) {
        let space = &self.stage.state_space;
        let op = |StateWrite { key, value }| match value {
            Some(value) => StoreOp::Put { space: Arc::clone(space), key, value },
            None => StoreOp::Delete { space: Arc::clone(space), key },
        };
        let kept = self.state.commit(writes.into_iter().map(op).collect()).await;
        kept.expect("the memory takes values");
    }
}

impl fmt::Debug for Driven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driven").field("component", &self.component).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use brigade_core::Failure;
    use brigade_core::component::Emit;

    use super::*;

    async fn twice(number: u64, cx: &Context) -> Result<Emit, Failure> {
        match number {
            0 => Err(Failure::reject("nothing to double")),
            1 if cx.attempt() == 1 => Err(Failure::retry("later")),
            number => Ok(Emit::value(number * 2).and("log", number)),
        }
    }

    #[tokio::test]
    async fn outputs_failures_and_attempts_are_the_components() {
        let mut driven = Driven::new(twice).await.unwrap();
        let outputs = driven.handle(Message::new("4")).await.unwrap();
        let payloads: Vec<_> = outputs.iter().map(|output| output.payload.clone()).collect();
        assert_eq!(payloads, [Some("8".into()), Some("4".into())]);
        assert_eq!(outputs[1].output.as_deref(), Some("log"));
        let failed = driven.handle(Message::new("0")).await.unwrap_err();
        assert!(matches!(failed, HandleError::Failed(Failure::Reject(_))), "{failed:?}");
        assert!(driven.handle(Message::new("1")).await.is_err());
        assert!(driven.attempt(Message::new("1"), 2).await.is_ok());
        let odd = driven.handle(Message::new("{}")).await.unwrap_err();
        assert!(matches!(odd, HandleError::Decode(_)), "{odd:?}");
    }

    #[tokio::test]
    async fn a_batch_component_answers_for_each_message() {
        let each = async |numbers: Vec<u64>| {
            numbers
                .into_iter()
                .map(|n| if n == 0 { Err(Failure::reject("0")) } else { Ok(Emit::value(n)) })
                .collect::<Vec<_>>()
        };
        let mut driven = Driven::new(each).await.unwrap();
        let answers = driven.handle_batch(["1", "0", "x"].map(Message::new)).await;
        assert!(answers[0].is_ok());
        assert!(matches!(answers[1], Err(HandleError::Failed(_))), "{:?}", answers[1]);
        assert!(matches!(answers[2], Err(HandleError::Decode(_))), "{:?}", answers[2]);
    }
}
