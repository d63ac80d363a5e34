//! Pipeline files converted from other systems' files.

mod checked;
mod engines;
mod python;
mod queue;
mod secrets;
mod volley;

use std::path::PathBuf;

use anyhow::Context as _;
use brigade_runtime::Registry;
use clap::{Args, Subcommand};

use crate::Exit;
use crate::common::{print, say};

/// Convert another system's file to a pipeline file.
#[derive(Debug, Args)]
pub(crate) struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    /// Convert Volley's queues, in either form: the list of 0.x and the mapping with profiles of
    /// 1.x.
    Volley {
        /// Volley's file of queues, such as `volley_config.yml`.
        file: PathBuf,
        /// Python files with Volley engines; each engine becomes a stage.
        engines: Vec<PathBuf>,
        /// The pipeline's name. Default: the name of the file's directory.
        #[arg(long)]
        name: Option<String>,
        /// Where the pipeline file is written. Default: standard output.
        #[arg(long, value_name = "PATH")]
        output: Option<PathBuf>,
    },
}

impl Import {
    pub(crate) fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let From::Volley { file, engines, name, output } = &self.from;
        let place = file.display().to_string();
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let config = brigade_pipeline::read(file)?;
        let mut program = engines::Program::default();
        for path in engines {
            program.add(&path.display().to_string(), &read(path)?)?;
        }
        let name = name.clone().unwrap_or_else(|| directory_of(file));
        let imported = volley::import(&place, &config, &program, &name, registry)?;
        let volley::Imported { text, notes } = imported;
        match output {
            None => print(text.trim_end())?,
            Some(path) => std::fs::write(path, text)
                .with_context(|| format!("cannot write {}", path.display()))?,
        }
        for note in notes {
            say(&format!("note: {note}"));
        }
        Ok(Exit::Done)
    }
}

/// The default name of the pipeline.
fn directory_of(file: &std::path::Path) -> String {
    let whole = file.canonicalize().unwrap_or_default();
    let directory = whole.parent().and_then(|parent| parent.file_name());
    directory.map_or_else(|| "imported".to_owned(), |name| name.to_string_lossy().into_owned())
}
