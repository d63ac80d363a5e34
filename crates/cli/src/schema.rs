//! `brigade schema`: prints the JSON Schema of pipeline files, or the reference of their keys.

use brigade_pipeline::reference;
use brigade_runtime::Registry;
use clap::{Args, ValueEnum};

use crate::Exit;
use crate::common::print;

/// Print the JSON Schema of pipeline files, for editors; or the reference of their keys.
#[derive(Debug, Args)]
pub(crate) struct Schema {
    /// What is printed.
    #[arg(long, value_enum, default_value = "json")]
    format: Printed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Printed {
    /// The JSON Schema.
    Json,
    /// Every key, in Markdown.
    Keys,
    /// What each queue type can do, in Markdown.
    Features,
}

impl Schema {
    pub(crate) fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let text = match self.format {
            Printed::Json => {
                serde_json::to_string_pretty(&brigade_pipeline::json_schema(registry))?
            }
            Printed::Keys => reference::keys(registry),
            Printed::Features => reference::features(registry),
        };
        print(text.trim_end())?;
        Ok(Exit::Done)
    }
}
