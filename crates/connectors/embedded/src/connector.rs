//! The connector of embedded queues, and their features.

use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Problem, Producer, QueueAdmin,
    QueueSpec, Reader, Used,
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
            Ok(settings) => settings.problems(),
            Err(error) => vec![Problem::whole(error.to_string())],
        }
    }

    fn conflict(&self, one: Used<'_>, other: Used<'_>) -> Option<Problem> {
        let settings = |used: Used<'_>| serde_json::from_value::<Settings>(used.settings.clone());
        let (first, second) = (settings(one).ok()?, settings(other).ok()?);
        let path = second.path.as_deref().filter(|path| first.path.as_deref() == Some(path))?;
        let sync = |settings: &Settings| settings.sync.unwrap_or_default().as_str();
        let (first, second) = (sync(&first), sync(&second));
        if first == second {
            return None;
        }
        let message = format!(
            "both are in the store `{}`, with `sync: {first}` and `sync: {second}`, and a store has one",
            path.display()
        );
        Some(Problem::at("path", message).help("give both the same `sync`, or each its own `path`"))
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

    async fn reach(&self, queue: &QueueSpec, env: &ConnectorEnv) -> Result<(), ConnectorError> {
        // Whether the store can be made is a part of it.
        Self::store(queue, env).await?.queue_admin(queue).await?.status().await.map(drop)
    }

    async fn admin(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        let settings: Settings = queue.settings()?;
        if let Some(path) = settings.path.filter(|path| !Store::is_made(path)) {
            return Err(ConnectorError::permanent(format!(
                "queue `{}` cannot be looked into: there is no store in {}, as nothing has run yet",
                queue.name,
                path.display()
            )));
        }
        Self::store(queue, env).await?.queue_admin(queue).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The first one opened decides for the store: what the other one requires would not hold.
    #[test]
    fn two_queues_of_one_store_have_one_sync() {
        let conflict = |one: Value, other: Value| {
            let [one, other] = [("a", one), ("b", other)]
                .map(|(name, settings)| QueueSpec::new("p", name, settings));
            let used = |queue| Used { queue, settings: &queue.settings, read: true, written: true };
            Embedded.conflict(used(&one), used(&other)).map(|problem| problem.message)
        };
        let said = conflict(json!({ "path": "/x", "sync": "normal" }), json!({ "path": "/x/" }));
        let said = said.expect("the default is another");
        assert!(said.contains("`sync: normal` and `sync: full`"), "{said}");
        for (one, other) in [
            (json!({ "path": "/x" }), json!({ "path": "/x", "sync": "full" })),
            (json!({ "path": "/x", "sync": "normal" }), json!({ "path": "/y" })),
            (json!({ "path": "/x", "sync": "normal" }), json!({})),
            (json!({}), json!({})),
        ] {
            assert_eq!(conflict(one, other), None);
        }
    }
}
