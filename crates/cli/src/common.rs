//! What the commands share: loading a file, printing.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;

use brigade_core::connector::{
    ConnectorEnv, ConnectorError, ErrorKind as ConnectorErrorKind, QueueAdmin, QueueSpec,
};
use brigade_core::state::StateStore;
use brigade_pipeline::{Loaded, Overrides, PipelineFile, Topology};
use brigade_runtime::{Pipeline, Registry, dead_letter_queue, redrive_queue};
use clap::Args;
use comfy_table::{Table, TableStyle};

use crate::absent::Absent;

/// A pipeline file, and what overrides its keys.
#[derive(Debug, Clone, Args)]
pub(crate) struct FileArguments {
    /// The pipeline file: .yaml, .toml or .json.
    pub(crate) file: PathBuf,
    /// Set a key, as in `--set stages.check.workers=4`; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The directory of the pipeline's state, whatever the file says.
    #[arg(long, value_name = "PATH")]
    state: Option<PathBuf>,
}

impl FileArguments {
    /// Loads and checks the file; warnings are printed.
    pub(crate) fn load(&self, registry: &Registry) -> anyhow::Result<Loaded> {
        let overrides = Overrides { sets: self.set.clone(), ..Overrides::from_env() };
        let loaded = PipelineFile::load(&self.file, &overrides, registry)?;
        for warning in &loaded.warnings {
            say(&format!("{warning}\n"));
        }
        Ok(loaded)
    }

    /// The pipeline with its code.
    pub(crate) fn pipeline(&self, registry: &Registry) -> anyhow::Result<Pipeline> {
        self.with_code(self.load(registry)?.topology, registry)
    }

    /// The pipeline of a loaded file.
    pub(crate) fn with_code(
        &self,
        topology: Topology,
        registry: &Registry,
    ) -> anyhow::Result<Pipeline> {
        let pipeline = Pipeline::new(topology, registry)?;
        Ok(match &self.state {
            Some(path) => pipeline.state_path(path),
            None => pipeline,
        })
    }

    /// The pipeline, with its state opened, created if it does not exist.
    pub(crate) async fn open(&self, registry: &Registry) -> anyhow::Result<Opened> {
        Opened::of(self.pipeline(registry)?).await
    }

    /// The same for commands that need existing messages: a missing state is not created.
    pub(crate) async fn look(&self, registry: &Registry) -> anyhow::Result<Opened> {
        let pipeline = self.pipeline(registry)?;
        let directory = pipeline.state_directory()?;
        let empty = std::fs::read_dir(&directory).map(|mut found| found.next().is_none());
        let absent = match empty {
            Ok(empty) => empty,
            Err(error) => error.kind() == ErrorKind::NotFound,
        };
        if !absent {
            return Opened::of(pipeline).await;
        }
        anyhow::ensure!(
            self.state.is_none(),
            "there is no state in {}: nothing has run there; look at `--state`",
            directory.display()
        );
        Ok(Opened { pipeline, state: Arc::new(Absent { directory }) })
    }
}

/// A pipeline whose queues are inspected.
pub(crate) struct Opened {
    pub(crate) pipeline: Pipeline,
    pub(crate) state: Arc<dyn StateStore>,
}

impl Opened {
    /// Opens a pipeline's state, created if it does not exist.
    pub(crate) async fn of(pipeline: Pipeline) -> anyhow::Result<Self> {
        let state = pipeline.open_state().await?;
        Ok(Self { pipeline, state })
    }

    /// A queue of the file, or one that the state keeps.
    pub(crate) async fn queue(
        &self,
        name: &str,
        registry: &Registry,
    ) -> anyhow::Result<Arc<dyn QueueAdmin>> {
        let topology = self.pipeline.topology();
        if let Some(queue) = topology.queues.get(name) {
            let connector = registry.connector_of(&queue.type_name);
            let kind = &queue.type_name;
            let connector = connector.ok_or_else(|| {
                anyhow::anyhow!("queue `{name}`: no connector of type `{kind}` here")
            })?;
            let env = ConnectorEnv { state: Arc::clone(&self.state) };
            return Ok(connector.admin(&queue.spec, &env).await?);
        }
        let kept = self.kept_names().await?;
        anyhow::ensure!(
            kept.iter().any(|kept| kept == name),
            "no queue `{name}` in {}; there are: {}",
            topology.pipeline,
            match name.starts_with('~') {
                true => kept.join(", "),
                false => topology
                    .queues
                    .keys()
                    .map(|name| name.to_string())
                    .collect::<Vec<_>>()
                    .join(", "),
            }
        );
        let spec = QueueSpec::new(&topology.pipeline, name, serde_json::json!({}));
        Ok(self.state.queue_admin(&spec).await?)
    }

    /// The same for a queue that messages are put on: what does not exist is made, as for a stage.
    pub(crate) async fn queue_to_fill(
        &self,
        name: &str,
        registry: &Registry,
    ) -> anyhow::Result<Arc<dyn QueueAdmin>> {
        let error = match self.queue(name, registry).await {
            Ok(queue) => return Ok(queue),
            Err(error) => error,
        };
        let why = error.downcast_ref::<ConnectorError>().map(ConnectorError::kind);
        let queue = self.pipeline.topology().queues.get(name);
        let connector = queue.and_then(|queue| registry.connector_of(&queue.type_name));
        let (Some(ConnectorErrorKind::Permanent), Some(queue), Some(connector)) =
            (why, queue, connector)
        else {
            return Err(error);
        };
        let env = ConnectorEnv { state: Arc::clone(&self.state) };
        let _makes_it = connector.producer(&queue.spec, &env).await?;
        self.queue(name, registry).await
    }

    /// The queues that the state keeps, or will keep, in addition to those of the file.
    async fn kept_names(&self) -> anyhow::Result<Vec<String>> {
        let topology = self.pipeline.topology();
        let stages = topology.stages.values();
        let redrive = stages.clone().map(|stage| redrive_queue(&stage.name));
        let dead = stages.filter(|stage| stage.dead_letter.is_none());
        let mut names: Vec<String> =
            redrive.chain(dead.map(|stage| dead_letter_queue(&stage.name))).collect();
        for kept in self.state.queue_names(&topology.pipeline).await? {
            if !names.contains(&kept) && !topology.queues.contains_key(kept.as_str()) {
                names.push(kept);
            }
        }
        Ok(names)
    }

    /// Closes what was opened, whatever came of the work with it; returns what did.
    pub(crate) async fn close_after<T>(self, done: anyhow::Result<T>) -> anyhow::Result<T> {
        let closed = self.state.shutdown().await;
        let done = done?;
        closed?;
        Ok(done)
    }
}

/// Prints to standard output; a reader that went away is not an error, a full disk is.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n"));
    match printed.and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::anyhow!("standard output cannot be written: {error}"))
        }
        _ => Ok(()),
    }
}

/// Prints a note to standard error; if nobody can read it, that is ignored.
pub(crate) fn say(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.write_all(b"\n"));
}

/// Prints an error with its whole chain of causes.
pub(crate) fn complain(error: &anyhow::Error) {
    let text = format!("{error:#}");
    match text.starts_with("error") {
        true => say(&text),
        false => say(&format!("error: {text}")),
    }
}

/// A table for a terminal.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(header.to_vec());
    table
}

/// A number that may not be known.
pub(crate) fn number(number: Option<u64>) -> String {
    number.map_or_else(|| "?".to_owned(), |number| number.to_string())
}
