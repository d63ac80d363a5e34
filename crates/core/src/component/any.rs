//! Components with state, [`Component`] and [`BatchComponent`], and [`AnyComponent`], the form in
//! which the runtime calls every component.

use std::fmt;
use std::future::Future;

use futures_util::future::LocalBoxFuture;

use super::{Context, DecodeError, Emit, Input, Output, OutputError, Parsed, Setup};
use crate::{BoxError, Failure};

/// A component with state, or with resources that it builds once.
///
/// Each worker has its own clone of the value that was registered; after a panic the worker starts
/// again from a fresh one.
///
/// ```
/// use brigade_core::{Failure, component::{Component, Context, Emit}};
///
/// #[derive(Clone, Default)]
/// struct Sum { total: i64 }
///
/// impl Component for Sum {
///     type In = i64;
///     type Out = Emit;
///     async fn handle(&mut self, number: i64, _cx: &Context) -> Result<Emit, Failure> {
///         self.total += number;
///         Ok(Emit::value(self.total))
///     }
/// }
/// # let _ = brigade_core::component::into_any(Sum::default());
/// ```
pub trait Component: Clone + Send + 'static {
    /// What a message's payload is decoded into.
    type In: Input;
    /// What it returns.
    type Out: Output;

    /// Builds what the workers share. Runs once per lane, before the first message, on the value
    /// that the lane's workers are cloned from.
    ///
    /// # Errors
    /// `init` is retried with the stage's back-off until the restart budget is used up; then the
    /// stage is `failed` and its queue keeps the rest.
    fn init(&mut self, setup: &Setup) -> impl Future<Output = Result<(), BoxError>> {
        let _ = setup;
        async { Ok(()) }
    }

    /// Handles one message.
    ///
    /// # Errors
    /// See [`Failure`].
    fn handle(
        &mut self,
        input: Self::In,
        cx: &Context,
    ) -> impl Future<Output = Result<Self::Out, Failure>>;
}

/// A component that handles several messages at once and returns a result for each.
pub trait BatchComponent: Clone + Send + 'static {
    /// What a message's payload is decoded into.
    type In: Input;
    /// What it returns for a message.
    type Out: Output;

    /// See [`Component::init`].
    ///
    /// # Errors
    /// See [`Component::init`].
    fn init(&mut self, setup: &Setup) -> impl Future<Output = Result<(), BoxError>> {
        let _ = setup;
        async { Ok(()) }
    }

    /// Handles a batch and returns one result per input, in the order of the inputs. If there are
    /// more or fewer, all of them count as failed, since results cannot be matched to inputs. `cx`
    /// has the messages' contexts in the same order. Messages that do not decode are in neither
    /// list.
    fn handle(
        &mut self,
        inputs: Vec<Self::In>,
        cx: &[&Context],
    ) -> impl Future<Output = Vec<Result<Self::Out, Failure>>>;
}

/// How a component is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Directly; a timeout cannot interrupt it.
    Sync,
    /// As a future.
    Async,
    /// With whole batches, as a future.
    Batch,
}

/// Why a component gave no outputs.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// The payload does not decode; the component never saw it.
    #[error("the payload does not decode: {0}")]
    Decode(#[source] DecodeError),
    /// The component returned a failure.
    #[error("the component failed: {}", .0.error())]
    Failed(Failure),
    /// What it returned does not encode.
    #[error("the answer does not encode: {0}")]
    Output(#[source] OutputError),
}

/// A call of a component: a call that never waits is done when it returns.
pub enum Handling<'a> {
    /// Done.
    Done(Result<Emit, HandleError>),
    /// To be awaited on the same thread.
    Pending(LocalBoxFuture<'a, Result<Emit, HandleError>>),
}

impl fmt::Debug for Handling<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(result) => f.debug_tuple("Done").field(result).finish(),
            Self::Pending(_) => f.write_str("Pending"),
        }
    }
}

/// Any component, as the runtime holds it. Made by [`into_any`](super::into_any); only components
/// that are made from settings implement it by hand.
pub trait AnyComponent: Send {
    /// How it is called.
    fn kind(&self) -> Kind;

    /// See [`Component::init`].
    fn init<'a>(&'a mut self, setup: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>>;

    /// Handles the message in `cx`. `parsed` is its payload already decoded, if available. Not
    /// called on batch components.
    fn handle<'a>(&'a mut self, parsed: Option<Parsed>, cx: &'a Context) -> Handling<'a>;

    /// Handles a batch; only called on batch components. Returns one result per context.
    fn handle_batch<'a>(
        &'a mut self,
        parsed: Vec<Option<Parsed>>,
        cx: &'a [Context],
    ) -> LocalBoxFuture<'a, Vec<Result<Emit, HandleError>>> {
        let _ = parsed;
        Box::pin(async move {
            let wrong = || HandleError::Failed(Failure::reject("not a batch component"));
            cx.iter().map(|_| Err(wrong())).collect()
        })
    }

    /// Whether it emits with a delay, so that its outputs must be queues that support delays.
    fn delays(&self) -> bool {
        false
    }

    /// A copy for one worker.
    fn fresh(&self) -> Box<dyn AnyComponent>;
}

impl fmt::Debug for dyn AnyComponent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AnyComponent({:?})", self.kind())
    }
}
