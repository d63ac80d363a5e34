//! The connector of generated messages, and its keys.

use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Problem, Producer, QueueSpec,
    Reader,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::consumer::GeneratorConsumer;
use crate::template;

/// The connector of generated messages, type `generator`. It can only be read.
///
/// ```yaml
/// orders: { type: generator, count: 1000, rate: 100, template: { id: "{{seq}}", total: "{{int 1 500}}" } }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Generator;

/// The keys of a generator queue.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The template of each message: JSON whose texts may contain `{{seq}}`, `{{int 1 100}}`,
    /// `{{float 0 1}}`, `{{pick a b c}}` and `{{hex 16}}`. Default: `{ seq: "{{seq}}" }`.
    #[serde(default = "sequence")]
    pub(crate) template: Value,
    /// How many messages. Default: no end.
    #[serde(default)]
    pub(crate) count: Option<u64>,
    /// How many per second. Default: as fast as they are taken.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(crate) rate: Option<u32>,
    /// The seed: the same one makes the same messages.
    #[serde(default)]
    pub(crate) seed: u64,
}

fn sequence() -> Value {
    serde_json::json!({ "seq": "{{seq}}" })
}

pub(crate) fn features(settings: &Settings) -> Features {
    Features {
        consume: true,
        finite: settings.count.is_some(),
        order: true,
        batch: true,
        groups: true,
        replay: true,
        settle_together: true,
        ..Features::NONE
    }
}

#[async_trait]
impl Connector for Generator {
    fn type_name(&self) -> &'static str {
        "generator"
    }

    fn features(&self, settings: &Value) -> Features {
        serde_json::from_value(settings.clone()).map_or(Features::NONE, |s| features(&s))
    }

    fn schema(&self) -> Value {
        schemars::schema_for!(Settings).to_value()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        let settings: Settings = match queue.settings() {
            Ok(settings) => settings,
            Err(error) => {
                return vec![Problem::whole(error.to_string())];
            }
        };
        let wrong = template::wrong(&settings.template).into_iter();
        let problem = |inside: String| {
            let message = format!("the placeholder `{{{{{inside}}}}}` means nothing");
            Problem::at("template", message).help(template::help(&inside))
        };
        wrong.map(problem).collect()
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(GeneratorConsumer::open(queue, reader, &env.state).await?))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        let text = format!("queue `{}`: nothing can be put on a generator", queue.name);
        Err(ConnectorError::unsupported(text))
    }
}
