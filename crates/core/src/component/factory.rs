//! Components that are made from settings in the pipeline file.

use std::sync::Arc;

use serde_json::Value;

use super::AnyComponent;
use crate::connector::Problem;

/// Makes components from settings in the pipeline file: `component: { filter: ".delay > 15" }`.
pub trait ComponentFactory: Send + Sync {
    /// The name in the pipeline file.
    fn name(&self) -> &'static str;

    /// The JSON Schema of its settings, made with schemars; `None` if it takes none.
    fn schema(&self) -> Option<Value>;

    /// Makes the component. Settings that passed the schema may still be wrong (an expression that
    /// does not parse, an output that is not declared). Reads no files; that belongs in `init`.
    ///
    /// # Errors
    /// Everything that is wrong, with key paths relative to the settings.
    fn build(
        &self,
        settings: &Value,
        site: &StageSite,
    ) -> Result<Box<dyn AnyComponent>, Vec<Problem>>;

    /// What is most likely a mistake in settings that `build` accepts, with key paths relative to
    /// the settings. Default: nothing.
    fn warnings(&self, settings: &Value, site: &StageSite) -> Vec<Problem> {
        let _ = (settings, site);
        Vec::new()
    }
}

/// Where a component is placed.
#[derive(Debug, Clone)]
pub struct StageSite {
    /// The stage.
    pub stage: Arc<str>,
    /// The names of its outputs.
    pub outputs: Vec<Arc<str>>,
    /// Whether a value without a named output goes to all of them.
    pub copy: bool,
    /// The directory of the pipeline file.
    pub directory: std::path::PathBuf,
}
