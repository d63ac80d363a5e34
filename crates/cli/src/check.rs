use brigade_runtime::Registry;
use clap::Args;

use crate::Exit;
use crate::common::{FileArguments, print};

/// Check a pipeline file without running it.
#[derive(Debug, Args)]
pub(crate) struct Check {
    #[command(flatten)]
    file: FileArguments,
}

impl Check {
    pub(crate) fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let topology = self.file.load(registry)?.topology;
        let (queues, stages) = (topology.queues.len(), topology.stages.len());
        let several = |n: usize| if n == 1 { "" } else { "s" };
        print(&format!(
            "{}: pipeline `{}` is good: {queues} queue{}, {stages} stage{}",
            self.file.file.display(),
            topology.pipeline,
            several(queues),
            several(stages)
        ));
        Ok(Exit::Done)
    }
}
