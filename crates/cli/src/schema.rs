use brigade_runtime::Registry;

use crate::Exit;
use crate::common::print;

/// Prints the JSON Schema of pipeline files.
pub(crate) fn run(registry: &Registry) -> anyhow::Result<Exit> {
    let schema = brigade_pipeline::json_schema(registry);
    print(&serde_json::to_string_pretty(&schema)?);
    Ok(Exit::Done)
}
