//! The component `delay`.

use std::time::{Duration, SystemTime};

use brigade_core::component::{
    AnyComponent, ComponentFactory, Context, Emit, HandleError, Parsed, StageSite,
};
use brigade_core::connector::Problem;
use brigade_core::field::{FieldPath, FieldPathError};
use brigade_core::{Period, Timestamp};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::shared::{Inline, Inlined, forward, json, one_way, reject, schema, settings};

/// `delay`: passes messages on so that they are handed out only after a while, or at a time given
/// in them. Its outputs must be queues that can delay.
///
/// ```yaml
/// component: { delay: { for: 5m } }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Delay;

/// The settings of `delay`: one of the two.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// For this long.
    #[serde(default, rename = "for")]
    period: Option<Period>,
    /// Until the time in this field: RFC 3339, or a number since 1970: milliseconds, or seconds if it
    /// is below 100,000,000,000.
    #[serde(default)]
    until: Option<String>,
}

#[derive(Clone)]
enum Delaying {
    For(Duration),
    Until(FieldPath),
}

impl ComponentFactory for Delay {
    fn name(&self) -> &'static str {
        "delay"
    }

    fn schema(&self) -> Option<Value> {
        schema::<Settings>()
    }

    fn build(
        &self,
        given: &Value,
        site: &StageSite,
    ) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
        one_way("delay", site)?;
        let settings: Settings = settings(given)?;
        let delaying = match (settings.period, settings.until) {
            (Some(period), None) => Delaying::For(period.0),
            (None, Some(field)) => {
                let wrong = |error: FieldPathError| vec![Problem::at("until", error.to_string())];
                Delaying::Until(field.parse().map_err(wrong)?)
            }
            _ => return Err(vec![Problem::whole("expected `for` or `until`, one of the two")]),
        };
        Ok(Box::new(Inlined(delaying)))
    }
}

impl Inline for Delaying {
    fn handle(&mut self, parsed: Option<Parsed>, cx: &Context) -> Result<Emit, HandleError> {
        let delay = match self {
            Self::For(period) => *period,
            Self::Until(field) => {
                let payload = json(parsed, cx)?;
                let time = time(field, &payload).ok_or_else(|| {
                    reject(format!(
                        "`{field}` is no time: expected RFC 3339, or a number of milliseconds or seconds since 1970"
                    ))
                })?;
                time.since(SystemTime::now().into())
            }
        };
        let output = forward(cx.message(), None);
        Ok(Emit::from(if delay.is_zero() { output } else { output.with_delay(delay) }))
    }

    fn delays(&self) -> bool {
        true
    }
}

/// The time that a field gives. Many write seconds since 1970; taken for milliseconds, they would be
/// over long ago, and nothing would be delayed.
fn time(field: &FieldPath, payload: &Value) -> Option<Timestamp> {
    /// As milliseconds, smaller numbers are times before March 1973.
    const SECONDS_BELOW: f64 = 1e11;
    match field.find(payload).and_then(Value::as_f64) {
        #[expect(clippy::cast_possible_truncation, reason = "it is small enough")]
        Some(seconds) if (0.0..SECONDS_BELOW).contains(&seconds) => {
            Some(Timestamp((seconds * 1000.0) as i64))
        }
        _ => field.time(payload),
    }
}
