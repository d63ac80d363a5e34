//! What a program can name in its pipeline files: connectors, components, schemas.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use brigade_core::component::{AnyComponent, ComponentFactory, IntoComponent};
use brigade_core::connector::{Connector, ConnectorError, Formats};
use brigade_core::state::StateStore;
use brigade_pipeline::{Catalog, CatalogComponent};
use futures_util::future::BoxFuture;

use crate::format::Formatted;

/// What a program can name in its pipeline files.
///
/// The facade's `brigade::registry()` contains everything that the program was built with; add your
/// own.
///
/// ```
/// use brigade_runtime::Registry;
/// async fn check(number: u64) -> Result<(), std::num::ParseIntError> { Ok(()) }
/// let registry = Registry::new().component("check", check);
/// assert!(format!("{registry:?}").contains("check"));
/// ```
#[derive(Default)]
pub struct Registry {
    connectors: BTreeMap<&'static str, Arc<dyn Connector>>,
    factories: BTreeMap<&'static str, Box<dyn ComponentFactory>>,
    components: BTreeMap<String, Box<dyn AnyComponent>>,
    schemas: BTreeMap<String, serde_json::Value>,
    formats: Option<Arc<dyn Formats>>,
    state: Option<OpenState>,
}

/// Opens the state that is kept under a directory.
pub type OpenState = Arc<
    dyn Fn(&Path) -> BoxFuture<'static, Result<Arc<dyn StateStore>, ConnectorError>> + Send + Sync,
>;

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component, a function or a value, under the name that stages use for it; see
    /// [`brigade_core::component`]. A later one with the same name replaces an earlier one.
    #[must_use]
    pub fn component<M>(
        mut self,
        name: impl Into<String>,
        component: impl IntoComponent<M>,
    ) -> Self {
        self.components.insert(name.into(), component.into_any());
        self
    }

    /// Adds a component that is made from settings in the pipeline file.
    #[must_use]
    pub fn factory(mut self, factory: Box<dyn ComponentFactory>) -> Self {
        self.factories.insert(factory.name(), factory);
        self
    }

    /// Adds a connector.
    #[must_use]
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.connectors.insert(connector.type_name(), connector);
        self
    }

    /// Adds a JSON Schema, under the name that queues use for it in `schema:`.
    #[must_use]
    pub fn schema(mut self, name: impl Into<String>, schema: serde_json::Value) -> Self {
        self.schemas.insert(name.into(), schema);
        self
    }

    /// Adds the JSON Schema of a Rust type, under the name that queues use for it in `schema:`.
    #[must_use]
    pub fn schema_of<T: schemars::JsonSchema>(self, name: impl Into<String>) -> Self {
        let schema = schemars::schema_for!(T);
        self.schema(name, schema.to_value())
    }

    /// Sets what opens the schema registries that queues name.
    #[must_use]
    pub fn formats(self, formats: Arc<dyn Formats>) -> Self {
        Self { formats: Some(formats), ..self }
    }

    /// Sets what opens the pipelines' state.
    #[must_use]
    pub fn state(self, open: OpenState) -> Self {
        Self { state: Some(open), ..self }
    }

    /// What opens the state, if it was set.
    pub(crate) fn open_state(&self) -> Option<&OpenState> {
        self.state.as_ref()
    }

    /// The connector of a queue type.
    pub fn connector_of(&self, type_name: &str) -> Option<Arc<dyn Connector>> {
        let inner = Arc::clone(self.connectors.get(type_name)?);
        Some(match self.formats.clone() {
            Some(formats) => Arc::new(Formatted { inner, formats }),
            None => inner,
        })
    }
}

impl Catalog for Registry {
    fn connector(&self, type_name: &str) -> Option<&dyn Connector> {
        self.connectors.get(type_name).map(AsRef::as_ref)
    }

    fn connector_types(&self) -> Vec<&str> {
        self.connectors.keys().copied().collect()
    }

    fn component(&self, name: &str) -> Option<CatalogComponent<'_>> {
        if let Some(component) = self.components.get(name) {
            return Some(CatalogComponent::Registered(component.as_ref()));
        }
        self.factories.get(name).map(|factory| CatalogComponent::Factory(factory.as_ref()))
    }

    fn component_names(&self) -> Vec<&str> {
        let own = self.components.keys().map(String::as_str);
        own.chain(self.factories.keys().copied()).collect()
    }

    fn user_components(&self) -> Vec<&str> {
        self.components.keys().map(String::as_str).collect()
    }

    fn schema(&self, name: &str) -> Option<&serde_json::Value> {
        self.schemas.get(name)
    }

    fn formats(&self) -> Option<&dyn Formats> {
        self.formats.as_deref()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("connectors", &self.connectors.keys())
            .field("components", &self.components.keys())
            .field("factories", &self.factories.keys())
            .field("schemas", &self.schemas.keys())
            .finish_non_exhaustive()
    }
}
