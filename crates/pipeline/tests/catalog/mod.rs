//! A catalog with a few queue types and components, for tests of files.

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use brigade_core::component::{AnyComponent, into_any};
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Problem, Producer, QueueSpec,
    Reader,
};
use brigade_pipeline::{Catalog, CatalogComponent};
use serde_json::{Value, json};

/// The queue type `rich` and the component `code`.
pub(crate) struct Fake;

struct Rich;

#[async_trait]
impl Connector for Rich {
    fn type_name(&self) -> &'static str {
        "rich"
    }

    fn features(&self, _: &Value) -> Features {
        Features { consume: true, produce: true, competing: true, groups: true, ..Features::NONE }
    }

    fn schema(&self) -> Value {
        json!({ "type": "object", "properties": { "path": { "type": "string" } } })
    }

    fn check(&self, _: &QueueSpec) -> Vec<Problem> {
        Vec::new()
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

static RICH: Rich = Rich;

/// A component behind a lock that is never waited for: the trait object itself is not `Sync`.
static CODE: LazyLock<std::sync::Mutex<Box<dyn AnyComponent>>> = LazyLock::new(|| {
    std::sync::Mutex::new(into_any(|_: Value| Ok::<(), brigade_core::Failure>(())))
});

impl Catalog for Fake {
    fn connector(&self, type_name: &str) -> Option<&dyn Connector> {
        (type_name == "rich").then_some(&RICH as &dyn Connector)
    }

    fn connector_types(&self) -> Vec<&str> {
        vec!["rich"]
    }

    fn component(&self, name: &str) -> Option<CatalogComponent<'_>> {
        match name {
            "code" => {
                let code = CODE.lock().unwrap().fresh();
                // A few bytes a test, so that the catalog can lend what it makes.
                Some(CatalogComponent::Registered(Box::leak(code)))
            }
            _ => None,
        }
    }

    fn component_names(&self) -> Vec<&str> {
        vec!["code"]
    }

    fn user_components(&self) -> Vec<&str> {
        Vec::new()
    }

    fn schema(&self, _: &str) -> Option<&Value> {
        None
    }
}
