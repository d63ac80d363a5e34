//! Calls of components, which contain whatever happens in their code.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use brigade_core::component::{AnyComponent, Context, Handling, Parsed};
use brigade_core::{BoxError, Cause, CauseKind};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::runtime::Runtime;

use crate::runner::Attempt;

/// Calls the component, for as long as it takes.
pub(crate) async fn call(
    component: &mut dyn AnyComponent,
    parsed: Option<Parsed>,
    cx: &Context,
) -> Attempt {
    let called = catch_unwind(AssertUnwindSafe(|| component.handle(parsed, cx)));
    match called {
        Err(panic) => Attempt::Panicked(panic_text(panic)),
        Ok(Handling::Done(answer)) => Attempt::Answered(answer),
        Ok(Handling::Pending(future)) => match AssertUnwindSafe(future).catch_unwind().await {
            Err(panic) => Attempt::Panicked(panic_text(panic)),
            Ok(answer) => Attempt::Answered(answer),
        },
    }
}

/// Like [`call`], but from outside this runtime, so that a blocking function may have a runtime of
/// its own: runtimes cannot be nested.
pub(crate) fn call_blocking(
    runtime: &Runtime,
    component: &mut dyn AnyComponent,
    parsed: Option<Parsed>,
    cx: &Context,
) -> Attempt {
    let handle = || {
        // What it spawns finds this runtime nevertheless.
        let _entered = runtime.enter();
        component.handle(parsed, cx)
    };
    match catch_unwind(AssertUnwindSafe(handle)) {
        Err(panic) => Attempt::Panicked(panic_text(panic)),
        Ok(Handling::Done(answer)) => Attempt::Answered(answer),
        Ok(Handling::Pending(future)) => {
            match runtime.block_on(AssertUnwindSafe(future).catch_unwind()) {
                Err(panic) => Attempt::Panicked(panic_text(panic)),
                Ok(answer) => Attempt::Answered(answer),
            }
        }
    }
}

/// What a lane's workers are cloned from: the component after its `init`.
pub(crate) struct Template(Mutex<Box<dyn AnyComponent>>);

impl Template {
    pub(crate) fn new(component: Box<dyn AnyComponent>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(component)))
    }

    pub(crate) fn fresh(&self) -> Box<dyn AnyComponent> {
        self.0.lock().fresh()
    }
}

/// Copies a component: its `Clone` is the user's code.
pub(crate) fn copied(
    copy: impl FnOnce() -> Box<dyn AnyComponent>,
) -> Result<Box<dyn AnyComponent>, String> {
    catch_unwind(AssertUnwindSafe(copy)).map_err(|panic| {
        format!("its component cannot be copied: `clone` panicked: {}", panic_text(panic))
    })
}

/// Drops a value of the component's; a panic in that says nothing new.
pub(crate) fn drop_quietly(value: impl Sized) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // Dropping the panic may panic again.
        std::mem::forget(panic);
    }
}

/// A component's error as the cause of a failure. Formatting it runs the component's code too.
pub(crate) fn cause_of(kind: CauseKind, error: BoxError) -> Cause {
    let told = catch_unwind(AssertUnwindSafe(|| Cause::of(kind, error.as_ref())));
    drop_quietly(error);
    told.unwrap_or_else(|panic| {
        Cause::new(kind, format!("an error that panics when it is told: {}", panic_text(panic)))
    })
}

/// The text of a panic.
pub(crate) fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a text".to_owned()
    };
    drop_quietly(panic);
    text
}
