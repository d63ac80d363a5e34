//! `brigade check`: checks a pipeline file without running it.

use std::sync::Arc;

use brigade_core::connector::ConnectorEnv;
use brigade_pipeline::{Queue, Topology};
use brigade_runtime::Registry;
use clap::Args;
use futures_util::future::join_all;

use crate::Exit;
use crate::common::{FileArguments, Opened, complain, print};

/// Check a pipeline file without running it.
#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    file: FileArguments,
    /// Also check that every queue can be reached; no messages are taken.
    #[arg(long)]
    connect: bool,
}

impl Check {
    pub(crate) async fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let topology = self.file.load(registry)?.topology;
        let (queues, stages) = (topology.queues.len(), topology.stages.len());
        let several = |n: usize| if n == 1 { "" } else { "s" };
        print(&format!(
            "{}: pipeline `{}` is good: {queues} queue{}, {stages} stage{}",
            self.file.file.display(),
            topology.pipeline,
            several(queues),
            several(stages)
        ))?;
        match self.connect {
            true => self.reach(topology, registry).await,
            false => Ok(Exit::Done),
        }
    }

    async fn reach(&self, topology: Topology, registry: &Registry) -> anyhow::Result<Exit> {
        let opened = Opened::of(self.file.with_code(topology, registry)?).await?;
        let reached = reached(&opened, registry).await;
        opened.close_after(reached).await
    }
}

/// Queries all queues concurrently, so that the delays of several that are away do not add up.
async fn reached(opened: &Opened, registry: &Registry) -> anyhow::Result<Exit> {
    let queues = &opened.pipeline.topology().queues;
    let env = ConnectorEnv { state: Arc::clone(&opened.state) };
    let asked = queues.values().map(|queue| {
        let connector = registry.connector_of(&queue.type_name);
        let env = &env;
        async move {
            match connector {
                Some(connector) => connector.reach(&queue.spec, env).await,
                None => Ok(()),
            }
        }
    });
    let mut exit = Exit::Done;
    for (queue, reached) in queues.values().zip(join_all(asked).await) {
        let Queue { spec, type_name, .. } = queue;
        match reached {
            Ok(()) => print(&format!("queue `{}` ({type_name}): reached", spec.name))?,
            Err(error) => {
                complain(&anyhow::Error::new(error));
                exit = Exit::Usage;
            }
        }
    }
    Ok(exit)
}
