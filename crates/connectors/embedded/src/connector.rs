use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Problem, Producer, QueueAdmin,
    QueueSpec, Reader,
};
use brigade_core::state::StateStore;
use serde_json::Value;

use crate::settings::{Options, Settings};
use crate::store::Store;

/// What a queue with these settings can do.
pub(crate) fn features(settings: &Settings) -> Features {
    Features { dedup: settings.dedup.is_some(), ..FEATURES }
}

/// What all embedded queues can do.
const FEATURES: Features = Features {
    consume: true,
    produce: true,
    durable: true,
    order: true,
    key_order: true,
    groups: true,
    competing: true,
    delay: true,
    retry_delay: true,
    attempts: true,
    batch: true,
    park: true,
    limit: true,
    key: true,
    headers: true,
    event_time: true,
    message_id: true,
    null_payload: true,
    empty_payload: true,
    binary: true,
    settle_together: true,
    ..Features::NONE
};

/// The connector of embedded queues, type `embedded`. Without `path` a queue lives in the
/// pipeline's state.
#[derive(Debug, Clone, Copy, Default)]
pub struct Embedded;

impl Embedded {
    async fn store(
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn StateStore>, ConnectorError> {
        let settings: Settings = queue.settings()?;
        match settings.path {
            None => Ok(Arc::clone(&env.state)),
            Some(path) => {
                let sync = settings.sync.unwrap_or_default();
                let options = Options { sync, ..Options::default() };
                Ok(Store::open_aside(path, options).await?)
            }
        }
    }
}

#[async_trait]
impl Connector for Embedded {
    fn type_name(&self) -> &'static str {
        "embedded"
    }

    fn features(&self, settings: &Value) -> Features {
        serde_json::from_value(settings.clone()).map_or(FEATURES, |settings| features(&settings))
    }

    fn store_name(&self, settings: &Value) -> String {
        let path = settings.get("path").and_then(Value::as_str);
        path.unwrap_or_default().to_owned()
    }

    fn schema(&self) -> Value {
        schemars::schema_for!(Settings).to_value()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        match queue.settings::<Settings>() {
            Ok(Settings { path: None, sync: Some(_), .. }) => {
                vec![
                    Problem::at("sync", "`sync` is a matter of the whole store")
                        .help("give the queue a `path` of its own"),
                ]
            }
            Ok(_) => Vec::new(),
            Err(error) => {
                vec![Problem { path: Vec::new(), message: error.to_string(), help: None }]
            }
        }
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Self::store(queue, env).await?.queue_consumer(queue, reader).await
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Self::store(queue, env).await?.queue_producer(queue).await
    }

    async fn admin(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        Self::store(queue, env).await?.queue_admin(queue).await
    }
}
