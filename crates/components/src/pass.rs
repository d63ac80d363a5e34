//! The component `pass`.

use brigade_core::component::{
    AnyComponent, ComponentFactory, Context, Emit, HandleError, Parsed, StageSite,
};
use brigade_core::connector::Problem;
use serde_json::Value;

use crate::shared::{Inline, Inlined, forward, one_way};

/// `pass`: passes messages on unchanged, byte for byte. For stages that only check a schema, split
/// a pipeline, or fan out with `copy`.
#[derive(Debug, Clone, Copy)]
pub struct Pass;

impl ComponentFactory for Pass {
    fn name(&self) -> &'static str {
        "pass"
    }

    fn schema(&self) -> Option<Value> {
        None
    }

    fn build(
        &self,
        settings: &Value,
        site: &StageSite,
    ) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
        one_way("pass", site)?;
        match settings {
            Value::Null => Ok(Box::new(Inlined(Self))),
            _ => Err(vec![Problem::whole("takes no settings")]),
        }
    }
}

impl Inline for Pass {
    fn handle(&mut self, _: Option<Parsed>, cx: &Context) -> Result<Emit, HandleError> {
        Ok(Emit::from(forward(cx.message(), None)))
    }
}
