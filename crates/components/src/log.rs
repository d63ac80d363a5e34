//! The component `log`.

use brigade_core::component::{
    AnyComponent, ComponentFactory, Context, Emit, HandleError, Parsed, StageSite,
};
use brigade_core::connector::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::shared::{Inline, Inlined, forward, one_way_if_any, schema, settings};

/// `log`: writes a log line for each message and passes it on, if the stage has outputs.
#[derive(Debug, Clone, Copy)]
pub struct Log;

/// The settings of `log`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// The level of the line.
    level: Level,
    /// The text of the line. Default: `message`.
    message: Option<String>,
    /// Whether the line includes the beginning of the payload.
    payload: bool,
}

/// The level of a line.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Level {
    Debug,
    #[default]
    Info,
    Warn,
}

/// The most of a payload that a line includes, in bytes.
const PAYLOAD_MAX: usize = 1024;

#[derive(Clone)]
struct Logging {
    settings: Settings,
    passes: bool,
}

impl ComponentFactory for Log {
    fn name(&self) -> &'static str {
        "log"
    }

    fn schema(&self) -> Option<Value> {
        schema::<Settings>()
    }

    fn build(
        &self,
        given: &Value,
        site: &StageSite,
    ) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
        one_way_if_any("log", site)?;
        let passes = !site.outputs.is_empty();
        Ok(Box::new(Inlined(Logging { settings: settings(given)?, passes })))
    }
}

impl Inline for Logging {
    fn handle(&mut self, _: Option<Parsed>, cx: &Context) -> Result<Emit, HandleError> {
        let text = self.settings.message.as_deref().unwrap_or("message");
        let payload = self.settings.payload.then(|| {
            let bytes = cx.message().payload.as_deref().unwrap_or_default();
            bytes[..bytes.len().min(PAYLOAD_MAX)].escape_ascii().to_string()
        });
        let (stage, id, attempt) = (cx.stage(), cx.id(), cx.attempt());
        match self.settings.level {
            Level::Debug => tracing::debug!(%stage, %id, attempt, payload, "{text}"),
            Level::Info => tracing::info!(%stage, %id, attempt, payload, "{text}"),
            Level::Warn => tracing::warn!(%stage, %id, attempt, payload, "{text}"),
        }
        Ok(match self.passes {
            true => Emit::from(forward(cx.message(), None)),
            false => Emit::none(),
        })
    }
}
