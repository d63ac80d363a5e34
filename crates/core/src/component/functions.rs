//! Functions as components: one method accepts all their forms, distinguished by marker types.

use std::marker::PhantomData;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;

use super::{
    AnyComponent, BatchComponent, Component, Context, Emit, HandleError, Handling, Input, Kind,
    Output, Parsed, Setup,
};
use crate::{BoxError, Failure};

/// What can be a component; see the [module](super).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a component",
    note = "a component is `async fn(In) -> Result<Out, Error>` or `fn(In) -> Result<Out, Error>`, \
            with `&Context` as a second argument if it likes,",
    note = "or `async fn(Vec<In>) -> Vec<Result<Out, Error>>`,",
    note = "or a type that implements `Component` or `BatchComponent`;",
    note = "`In` implements `serde::Deserialize`, `Out` derives `brigade::Output`; a text, a number or another \
            crate's type goes out as `Emit::value(it)`"
)]
pub trait IntoComponent<Marker> {
    /// Converts it to a type-erased component.
    fn into_any(self) -> Box<dyn AnyComponent>;
}

/// Converts a component to a type-erased one.
pub fn into_any<Marker>(component: impl IntoComponent<Marker>) -> Box<dyn AnyComponent> {
    component.into_any()
}

/// Distinguish the forms of components; users never name them.
#[expect(missing_debug_implementations, reason = "they have no values")]
pub mod markers {
    use std::marker::PhantomData;

    /// A type that implements [`Component`](super::Component).
    pub struct Typed;
    /// A type that implements [`BatchComponent`](super::BatchComponent).
    pub struct TypedBatch;
    /// `async fn(In) -> Result<Ok, E>`.
    pub struct Async<In, Ok, E>(PhantomData<(In, Ok, E)>);
    /// `async fn(In, &Context) -> Result<Ok, E>`.
    pub struct AsyncContext<In, Ok, E>(PhantomData<(In, Ok, E)>);
    /// `fn(In) -> Result<Ok, E>`.
    pub struct Sync<In, Ok, E>(PhantomData<(In, Ok, E)>);
    /// `fn(In, &Context) -> Result<Ok, E>`.
    pub struct SyncContext<In, Ok, E>(PhantomData<(In, Ok, E)>);
    /// `async fn(Vec<In>) -> Vec<Result<Ok, E>>`.
    pub struct Batch<In, Ok, E>(PhantomData<(In, Ok, E)>);
}

fn decode<T: Input>(parsed: Option<Parsed>, cx: &Context) -> Result<T, HandleError> {
    T::decode(cx.message(), parsed).map_err(HandleError::Decode)
}

fn emit<O: Output, E: Into<Failure>>(answer: Result<O, E>) -> Result<Emit, HandleError> {
    answer.map(O::into_emit).map_err(|error| HandleError::Failed(error.into()))
}

/// A type that implements [`Component`].
struct Typed<C>(C);

impl<C: Component> AnyComponent for Typed<C> {
    fn kind(&self) -> Kind {
        Kind::Async
    }

    fn init<'a>(&'a mut self, setup: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>> {
        Box::pin(self.0.init(setup))
    }

    fn handle<'a>(&'a mut self, parsed: Option<Parsed>, cx: &'a Context) -> Handling<'a> {
        match decode(parsed, cx) {
            Ok(input) => {
                Handling::Pending(Box::pin(async { emit(self.0.handle(input, cx).await) }))
            }
            Err(error) => Handling::Done(Err(error)),
        }
    }

    fn fresh(&self) -> Box<dyn AnyComponent> {
        Box::new(Self(self.0.clone()))
    }
}

impl<C: Component> IntoComponent<markers::Typed> for C {
    fn into_any(self) -> Box<dyn AnyComponent> {
        Box::new(Typed(self))
    }
}

/// A type that implements [`BatchComponent`].
struct TypedBatch<C>(C);

/// Splits a batch into the positions that decoded, with their inputs and contexts, and the errors
/// of those that did not; calls `handle` and puts all results in order.
async fn in_order<In: Input, O: Output, E: Into<Failure>>(
    parsed: Vec<Option<Parsed>>,
    cx: &[Context],
    handle: impl AsyncFnOnce(Vec<In>, &[&Context]) -> Vec<Result<O, E>>,
) -> Vec<Result<Emit, HandleError>> {
    let mut answers = Vec::with_capacity(cx.len());
    let (mut inputs, mut contexts) = (Vec::with_capacity(cx.len()), Vec::with_capacity(cx.len()));
    for (parsed, cx) in parsed.into_iter().zip(cx) {
        match decode(parsed, cx) {
            Ok(input) => {
                inputs.push(input);
                contexts.push(cx);
                answers.push(None);
            }
            Err(error) => answers.push(Some(Err(error))),
        }
    }
    if inputs.is_empty() {
        return answers.into_iter().flatten().collect();
    }
    let given = handle(inputs, &contexts).await;
    let (answered, asked) = (given.len(), contexts.len());
    let mut given = given.into_iter().filter(|_| answered == asked);
    let wrong = || {
        let text = format!("the batch component gave {answered} answers for {asked} messages");
        HandleError::Failed(Failure::retry(text))
    };
    let mut next = || given.next().map_or_else(|| Err(wrong()), emit);
    answers.into_iter().map(|answer| answer.unwrap_or_else(&mut next)).collect()
}

impl<C: BatchComponent> AnyComponent for TypedBatch<C> {
    fn kind(&self) -> Kind {
        Kind::Batch
    }

    fn init<'a>(&'a mut self, setup: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>> {
        Box::pin(self.0.init(setup))
    }

    fn handle<'a>(&'a mut self, _: Option<Parsed>, _: &'a Context) -> Handling<'a> {
        Handling::Done(Err(HandleError::Failed(Failure::reject("a batch component"))))
    }

    fn handle_batch<'a>(
        &'a mut self,
        parsed: Vec<Option<Parsed>>,
        cx: &'a [Context],
    ) -> LocalBoxFuture<'a, Vec<Result<Emit, HandleError>>> {
        Box::pin(in_order(parsed, cx, async |inputs, cx| self.0.handle(inputs, cx).await))
    }

    fn fresh(&self) -> Box<dyn AnyComponent> {
        Box::new(Self(self.0.clone()))
    }
}

impl<C: BatchComponent> IntoComponent<markers::TypedBatch> for C {
    fn into_any(self) -> Box<dyn AnyComponent> {
        Box::new(TypedBatch(self))
    }
}

/// A function of one of the forms.
struct Function<F, Marker>(F, PhantomData<fn(Rc<Marker>)>);

impl<F: Clone, Marker> Function<F, Marker> {
    fn again(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

macro_rules! function {
    ($marker:ident, $kind:ident, [$($bound:tt)*], |$self:ident, $parsed:ident, $cx:ident| $call:expr) => {
        impl<F, In, Ok, E> AnyComponent for Function<F, markers::$marker<In, Ok, E>>
        where
            F: $($bound)* + Clone + Send + 'static,
            In: Input,
            Ok: Output,
            E: Into<Failure> + 'static,
        {
            fn kind(&self) -> Kind {
                Kind::$kind
            }

            fn init<'a>(&'a mut self, _: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>> {
                Box::pin(async { Result::Ok(()) })
            }

            fn handle<'a>(&'a mut $self, $parsed: Option<Parsed>, $cx: &'a Context) -> Handling<'a> {
                $call
            }

            fn fresh(&self) -> Box<dyn AnyComponent> {
                Box::new(self.again())
            }
        }

        impl<F, In, Ok, E> IntoComponent<markers::$marker<In, Ok, E>> for F
        where
            F: $($bound)* + Clone + Send + 'static,
            In: Input,
            Ok: Output,
            E: Into<Failure> + 'static,
        {
            fn into_any(self) -> Box<dyn AnyComponent> {
                Box::new(Function::<F, markers::$marker<In, Ok, E>>(self, PhantomData))
            }
        }
    };
}

function!(Async, Async, [AsyncFn(In) -> Result<Ok, E>], |self, parsed, cx| {
    match decode(parsed, cx) {
        Ok(input) => Handling::Pending(Box::pin(async { emit((self.0)(input).await) })),
        Err(error) => Handling::Done(Err(error)),
    }
});
function!(AsyncContext, Async, [AsyncFn(In, &Context) -> Result<Ok, E>], |self, parsed, cx| {
    match decode(parsed, cx) {
        Ok(input) => Handling::Pending(Box::pin(async { emit((self.0)(input, cx).await) })),
        Err(error) => Handling::Done(Err(error)),
    }
});
function!(Sync, Sync, [Fn(In) -> Result<Ok, E>], |self, parsed, cx| {
    Handling::Done(decode(parsed, cx).and_then(|input| emit((self.0)(input))))
});
function!(SyncContext, Sync, [Fn(In, &Context) -> Result<Ok, E>], |self, parsed, cx| {
    Handling::Done(decode(parsed, cx).and_then(|input| emit((self.0)(input, cx))))
});

/// A function that takes batches.
struct BatchFunction<F, Marker>(F, PhantomData<fn(Rc<Marker>)>);

impl<F, In, Ok, E> AnyComponent for BatchFunction<F, markers::Batch<In, Ok, E>>
where
    F: AsyncFn(Vec<In>) -> Vec<Result<Ok, E>> + Clone + Send + 'static,
    In: Input,
    Ok: Output,
    E: Into<Failure> + 'static,
{
    fn kind(&self) -> Kind {
        Kind::Batch
    }

    fn init<'a>(&'a mut self, _: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async { Result::Ok(()) })
    }

    fn handle<'a>(&'a mut self, _: Option<Parsed>, _: &'a Context) -> Handling<'a> {
        Handling::Done(Err(HandleError::Failed(Failure::reject("a batch component"))))
    }

    fn handle_batch<'a>(
        &'a mut self,
        parsed: Vec<Option<Parsed>>,
        cx: &'a [Context],
    ) -> LocalBoxFuture<'a, Vec<Result<Emit, HandleError>>> {
        Box::pin(in_order(parsed, cx, async |inputs, _| (self.0)(inputs).await))
    }

    fn fresh(&self) -> Box<dyn AnyComponent> {
        Box::new(Self(self.0.clone(), PhantomData))
    }
}

impl<F, In, Ok, E> IntoComponent<markers::Batch<In, Ok, E>> for F
where
    F: AsyncFn(Vec<In>) -> Vec<Result<Ok, E>> + Clone + Send + 'static,
    In: Input,
    Ok: Output,
    E: Into<Failure> + 'static,
{
    fn into_any(self) -> Box<dyn AnyComponent> {
        Box::new(BatchFunction::<F, markers::Batch<In, Ok, E>>(self, PhantomData))
    }
}
