//! The component `filter`.

use brigade_core::component::{
    AnyComponent, ComponentFactory, Context, Emit, HandleError, Parsed, StageSite,
};
use brigade_core::connector::Problem;
use serde_json::Value;

use crate::jq::{Expression, input};
use crate::shared::{Inline, Inlined, forward, one_way};

/// `filter`: keeps messages for which a jq expression is true and filters those for which it is
/// false. A message for which it is neither is rejected.
///
/// ```yaml
/// component: { filter: ".delay > 15" }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Filter;

#[derive(Clone)]
struct Filtering(Expression);

impl ComponentFactory for Filter {
    fn name(&self) -> &'static str {
        "filter"
    }

    fn schema(&self) -> Option<Value> {
        let expected = "a jq expression, as in `filter: \".delay > 15\"`";
        Some(serde_json::json!({ "type": "string", "expected": expected }))
    }

    fn build(
        &self,
        settings: &Value,
        site: &StageSite,
    ) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
        one_way("filter", site)?;
        let Value::String(text) = settings else {
            return Err(vec![Problem::whole(
                "expected a jq expression, as in `filter: \".delay > 15\"`",
            )]);
        };
        let expression = Expression::new(text).map_err(|error| vec![Problem::whole(error)])?;
        Ok(Box::new(Inlined(Filtering(expression))))
    }
}

impl Inline for Filtering {
    fn handle(&mut self, parsed: Option<Parsed>, cx: &Context) -> Result<Emit, HandleError> {
        match self.0.test(input(parsed, cx)?)? {
            true => Ok(Emit::from(forward(cx.message(), None))),
            false => Ok(Emit::none()),
        }
    }
}
