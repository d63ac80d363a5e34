//! Helpers shared by the components.

use brigade_core::component::{
    AnyComponent, Context, DecodeError, Emit, Emitted, HandleError, Handling, Input, Kind, Parsed,
    Setup, StageSite,
};
use brigade_core::connector::Problem;
use brigade_core::{BoxError, Failure, Message};
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A component that runs inline and keeps no state.
pub(crate) trait Inline: Clone + Send + 'static {
    /// Handles one message.
    fn handle(&mut self, parsed: Option<Parsed>, cx: &Context) -> Result<Emit, HandleError>;

    /// Whether it emits with a delay.
    fn delays(&self) -> bool {
        false
    }
}

/// An inline component as the runtime holds it.
pub(crate) struct Inlined<C>(pub(crate) C);

impl<C: Inline> AnyComponent for Inlined<C> {
    fn kind(&self) -> Kind {
        Kind::Sync
    }

    fn init<'a>(&'a mut self, _: &'a Setup) -> LocalBoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async { Ok(()) })
    }

    fn handle<'a>(&'a mut self, parsed: Option<Parsed>, cx: &'a Context) -> Handling<'a> {
        Handling::Done(self.0.handle(parsed, cx))
    }

    fn delays(&self) -> bool {
        self.0.delays()
    }

    fn fresh(&self) -> Box<dyn AnyComponent> {
        Box::new(Self(self.0.clone()))
    }
}

/// Parses settings into their type; no settings are the same as empty ones.
pub(crate) fn settings<T: DeserializeOwned>(settings: &Value) -> Result<T, Vec<Problem>> {
    let settings = match settings {
        Value::Null => Value::Object(serde_json::Map::new()),
        other => other.clone(),
    };
    serde_json::from_value(settings).map_err(|error| vec![Problem::whole(error.to_string())])
}

/// What is wrong with the outputs of a stage whose component emits to one output without naming it.
pub(crate) fn one_way(component: &str, site: &StageSite) -> Result<(), Vec<Problem>> {
    if !site.outputs.is_empty() {
        return one_way_if_any(component, site);
    }
    let message = format!(
        "stage `{}` has no output, so that all that `{component}` passes on would be dead letters",
        site.stage
    );
    Err(vec![Problem::whole(message).help("name a queue in `outputs`, or end with `log`")])
}

/// The same for a component that may have no output at all.
pub(crate) fn one_way_if_any(component: &str, site: &StageSite) -> Result<(), Vec<Problem>> {
    if site.outputs.len() <= 1 || site.copy {
        return Ok(());
    }
    let message =
        format!("stage `{}` has several outputs, and `{component}` names none", site.stage);
    Err(vec![Problem::whole(message).help("set `copy: true`, or add a `route` stage")])
}

/// The payload as JSON.
pub(crate) fn json(parsed: Option<Parsed>, cx: &Context) -> Result<Value, HandleError> {
    Value::decode(cx.message(), parsed).map_err(decode)
}

pub(crate) fn decode(error: DecodeError) -> HandleError {
    HandleError::Decode(error)
}

pub(crate) fn reject(why: impl Into<String>) -> HandleError {
    HandleError::Failed(Failure::reject(why.into()))
}

/// The message unchanged, for the output with this name or for the only one.
pub(crate) fn forward(message: &Message, output: Option<&str>) -> Emitted {
    let emitted = Emitted::new(message.payload.clone());
    match output {
        Some(name) => emitted.to(name.to_owned()),
        None => emitted,
    }
}

/// The JSON Schema of a type, for editors and for checks.
pub(crate) fn schema<T: schemars::JsonSchema>() -> Option<Value> {
    let settings = schemars::generate::SchemaSettings::draft2020_12();
    let settings = settings.with(|settings| settings.inline_subschemas = true);
    Some(settings.into_generator().into_root_schema_for::<T>().to_value())
}
