//! `brigade graph`: draws a pipeline.

use brigade_pipeline::GraphFormat;
use brigade_runtime::Registry;
use clap::{Args, ValueEnum};

use crate::Exit;
use crate::common::{FileArguments, print};

/// Draw a pipeline.
#[derive(Debug, Args)]
pub(crate) struct Graph {
    #[command(flatten)]
    file: FileArguments,
    /// How it is drawn.
    #[arg(long, value_enum, default_value = "text")]
    format: Drawing,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Drawing {
    /// For this terminal.
    Text,
    /// For Markdown files.
    Mermaid,
    /// For Graphviz.
    Dot,
}

impl Graph {
    pub(crate) fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let format = match self.format {
            Drawing::Text => GraphFormat::Text,
            Drawing::Mermaid => GraphFormat::Mermaid,
            Drawing::Dot => GraphFormat::Dot,
        };
        print(self.file.load(registry)?.topology.graph(format).trim_end())?;
        Ok(Exit::Done)
    }
}
