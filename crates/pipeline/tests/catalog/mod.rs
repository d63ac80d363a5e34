//! A catalog with a few queue types and components, for tests of files.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use brigade_core::component::{AnyComponent, ComponentFactory, StageSite, into_any};
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Problem, Producer, QueueSpec,
    Reader,
};
use brigade_pipeline::{Catalog, CatalogComponent};
use serde_json::{Value, json};

/// Queue types `rich`, `poor`, `alone`; components `code` and `made`.
pub(crate) struct Fake;

struct Type {
    name: &'static str,
    features: Features,
}

#[async_trait]
impl Connector for Type {
    fn type_name(&self) -> &'static str {
        self.name
    }

    fn features(&self, _: &Value) -> Features {
        self.features.clone()
    }

    fn schema(&self) -> Value {
        json!({ "type": "object", "properties": { "path": { "type": "string" } } })
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        match queue.settings["path"].as_str() {
            Some("bad") => vec![Problem::at("path", "a bad path").help("another one")],
            _ => Vec::new(),
        }
    }

    async fn consumer(
        &self,
        _: &QueueSpec,
        _: &Reader,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Err(ConnectorError::unsupported("a file is only checked here"))
    }

    async fn producer(
        &self,
        _: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Err(ConnectorError::unsupported("a file is only checked here"))
    }
}

const POOR: Features = Features { consume: true, produce: true, competing: true, ..Features::NONE };
const RICH: Features = Features {
    order: true,
    key: true,
    key_order: true,
    groups: true,
    settle_together: true,
    ..POOR
};

static TYPES: [Type; 3] = [
    Type { name: "rich", features: RICH },
    Type { name: "poor", features: POOR },
    Type { name: "alone", features: Features { competing: false, ..POOR } },
];

struct Made;

impl ComponentFactory for Made {
    fn name(&self) -> &'static str {
        "made"
    }

    fn schema(&self) -> Option<Value> {
        None
    }

    fn build(&self, _: &Value, _: &StageSite) -> Result<Box<dyn AnyComponent>, Vec<Problem>> {
        Err(vec![Problem { path: Vec::new(), message: "not that".into(), help: None }])
    }
}

/// A component behind a lock that is never waited for: the trait object itself is not `Sync`.
static CODE: LazyLock<std::sync::Mutex<Box<dyn AnyComponent>>> = LazyLock::new(|| {
    std::sync::Mutex::new(into_any(|_: Value| Ok::<(), brigade_core::Failure>(())))
});

impl Catalog for Fake {
    fn connector(&self, type_name: &str) -> Option<&dyn Connector> {
        TYPES.iter().find(|kind| kind.name == type_name).map(|kind| kind as &dyn Connector)
    }

    fn connector_types(&self) -> Vec<&str> {
        TYPES.iter().map(|kind| kind.name).collect()
    }

    fn component(&self, name: &str) -> Option<CatalogComponent<'_>> {
        match name {
            "code" => {
                let code = CODE.lock().unwrap().fresh();
                // A few bytes a test, so that the catalog can lend what it makes.
                Some(CatalogComponent::Registered(Box::leak(code)))
            }
            "made" => Some(CatalogComponent::Factory(&Made)),
            _ => None,
        }
    }

    fn component_names(&self) -> Vec<&str> {
        vec!["code", "made"]
    }

    fn user_components(&self) -> Vec<&str> {
        Vec::new()
    }

    fn schema(&self, _: &str) -> Option<&Value> {
        None
    }
}
