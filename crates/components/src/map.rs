//! The component `map`.

use brigade_core::component::{
    AnyComponent, ComponentFactory, Context, Emit, Emitted, HandleError, Parsed, StageSite,
};
use brigade_core::connector::Problem;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::jq::{Expression, input, json};
use crate::shared::{Inline, Inlined, one_way, reject, schema};

/// `map`: applies a jq expression to each message. Every resulting value becomes a message; none
/// means filtered. At most 10,000 values, and 64 MiB, per message.
///
/// ```yaml
/// component: { map: ". + { total: (.price * .count) }" }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Map;

/// The settings of `map`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(extend("expected" = "a jq expression, or `{jq: expression, key: expression}`"))]
enum Settings {
    /// The expression.
    Plain(String),
    /// The expression, and one for the key.
    Keyed(Keyed),
}

/// A `map` that also sets the key.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Keyed {
    /// What each message becomes.
    jq: String,
    /// The key of what it becomes: a text, evaluated on each value that `jq` makes. Null, or no
    /// value: no key.
    #[serde(default)]
    key: Option<String>,
}

/// The most bytes that one message may become.
const BYTES_MAX: usize = 64 << 20;

#[derive(Clone)]
struct Mapping {
    value: Expression,
    key: Option<Expression>,
}

impl ComponentFactory for Map {
    fn name(&self) -> &'static str {
        "map"
    }

    fn schema(&self) -> Option<Value> {
        schema::<Settings>()
    }

    fn build(
        &self,
        given: &Value,
        site: &StageSite,
    ) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
        one_way("map", site)?;
        let wrong = |text: String| vec![Problem::whole(text)];
        let settings: Settings = serde_json::from_value(given.clone())
            .map_err(|_| wrong("expected a jq expression, as in `map: \".items[]\"`".to_owned()))?;
        let Keyed { jq, key } = match settings {
            Settings::Plain(jq) => Keyed { jq, key: None },
            Settings::Keyed(keyed) => keyed,
        };
        let value = Expression::new(&jq).map_err(wrong)?;
        let key = key.map(|key| Expression::new(&key)).transpose().map_err(wrong)?;
        Ok(Box::new(Inlined(Mapping { value, key })))
    }
}

/// A number with a fraction or an exponent as a queue's `key` has it, in whichever way it was written.
fn by_value(text: String) -> String {
    match text.parse::<f64>() {
        Ok(float) if float.is_finite() && text.contains(['.', 'e', 'E']) => {
            serde_json::Value::from(float).to_string()
        }
        _ => text,
    }
}

impl Inline for Mapping {
    fn handle(&mut self, parsed: Option<Parsed>, cx: &Context) -> Result<Emit, HandleError> {
        let (mut emit, mut bytes) = (Emit::none(), 0);
        for value in self.value.run(input(parsed, cx)?)? {
            let payload = json(&value)?;
            bytes += payload.len();
            if bytes > BYTES_MAX {
                return Err(reject(format!("makes more than {BYTES_MAX} bytes of one message")));
            }
            let mut output = Emitted::json(payload);
            if let Some(key) = &self.key {
                // Like for a queue's `key`, null means no key.
                let key = key.run(value)?.into_iter().next().and_then(|key| match key {
                    jaq_json::Val::Null => None,
                    jaq_json::Val::TStr(text) => Some(text.to_vec().into()),
                    other => Some(by_value(other.to_string()).into()),
                });
                output = output.with_key(key);
            }
            emit = emit.with(output);
        }
        Ok(emit)
    }
}
