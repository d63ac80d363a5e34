//! The component `route`.

use brigade_core::component::{
    AnyComponent, ComponentFactory, Context, Emit, HandleError, Parsed, StageSite,
};
use brigade_core::connector::Problem;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::jq::{Expression, input};
use crate::shared::{Inline, Inlined, forward, reject, schema};

/// `route`: sends each message to one of several outputs, by jq expressions; the first rule that is
/// true decides. A message for which none is true is rejected; end with a rule without `when` to
/// catch the rest.
///
/// ```yaml
/// component: { route: [{ when: ".delay > 15", to: late }, { to: on_time }] }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Route;

/// One rule.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// When it applies: a jq expression. Without it: always.
    #[serde(default)]
    when: Option<String>,
    /// The output.
    to: String,
}

#[derive(Clone)]
struct Routing(Vec<(Option<Expression>, String)>);

impl ComponentFactory for Route {
    fn name(&self) -> &'static str {
        "route"
    }

    fn schema(&self) -> Option<Value> {
        schema::<Vec<Rule>>()
    }

    fn build(
        &self,
        given: &Value,
        site: &StageSite,
    ) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
        let rules: Vec<Rule> = serde_json::from_value(given.clone()).map_err(|error| {
            vec![Problem::whole(format!(
                "expected a list of `{{when: expression, to: output}}`: {error}"
            ))]
        })?;
        let (mut problems, mut routing) = (Vec::new(), Vec::new());
        if rules.is_empty() {
            problems.push(Problem::whole("there are no rules"));
        }
        for (at, rule) in rules.into_iter().enumerate() {
            let mut wrong = |key: &str, message: String| {
                let path = vec![at.to_string(), key.to_owned()];
                let outputs: Vec<String> = site.outputs.iter().map(|o| format!("`{o}`")).collect();
                let help = Some(format!("its outputs are: {}", outputs.join(", ")));
                problems.push(Problem { path, message, help: help.filter(|_| key == "to") });
            };
            if !site.outputs.iter().any(|output| **output == *rule.to) {
                let stage = &site.stage;
                wrong("to", format!("`{}` is no output of stage `{stage}`", rule.to));
            }
            match rule.when.as_deref().map(Expression::new).transpose() {
                Ok(when) => routing.push((when, rule.to)),
                Err(error) => wrong("when", error),
            }
        }
        match problems.is_empty() {
            true => Ok(Box::new(Inlined(Routing(routing)))),
            false => Err(problems),
        }
    }

    fn warnings(&self, given: &Value, site: &StageSite) -> Vec<Problem> {
        let rules: Vec<Rule> = serde_json::from_value(given.clone()).unwrap_or_default();
        let last = rules.iter().position(|rule| rule.when.is_none()).unwrap_or(rules.len());
        let unreached = (last + 1..rules.len()).map(|at| {
            let message = "this rule is never reached: one before it has no `when`";
            let problem = Problem { path: vec![at.to_string()], ..Problem::whole(message) };
            problem.help("put the rule without `when` last")
        });
        let unnamed =
            site.outputs.iter().filter(|output| rules.iter().all(|rule| *rule.to != ***output));
        let unnamed = unnamed.map(|output| {
            Problem::whole(format!("no rule sends anything to the output `{output}`"))
        });
        unreached.chain(unnamed).collect()
    }
}

impl Inline for Routing {
    fn handle(&mut self, parsed: Option<Parsed>, cx: &Context) -> Result<Emit, HandleError> {
        let value = input(parsed, cx)?;
        for (when, to) in &self.0 {
            let applies = match when {
                Some(when) => when.test(value.clone())?,
                None => true,
            };
            if applies {
                return Ok(Emit::from(forward(cx.message(), Some(to))));
            }
        }
        Err(reject("no rule of `route` applies"))
    }
}
