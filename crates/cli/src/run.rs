//! `brigade run`: runs a pipeline until it is stopped or idle.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use brigade_core::Period;
use brigade_pipeline::{MetricNames, Topology};
use brigade_runtime::{
    PipelineStatus, Registry, Running, StageState, StageStatus, Stopped, Supervisor, Watcher,
};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tokio::sync::mpsc;

use crate::common::{FileArguments, complain, say, table};
use crate::progress::Progress;
use crate::{Exit, log};

/// Run a pipeline until it is stopped, or until nothing is left to do.
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    file: FileArguments,
    /// Run only these stages; the others run in other processes.
    #[arg(long, value_name = "STAGES", value_delimiter = ',')]
    stage: Vec<String>,
    /// End when nothing is left to do. The quiet time is for queues that cannot tell whether they
    /// are empty.
    #[arg(long, value_name = "QUIET", num_args = 0..=1, require_equals = true)]
    until_idle: Option<Option<Period>>,
    /// Serve metrics and health at this address, whatever the file says; port 0 takes a free one.
    #[cfg(feature = "watch")]
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<std::net::SocketAddr>,
}

/// Why a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Idle,
    /// A stage has failed; the others may have messages in flight.
    StageFailed,
    Signal,
    /// It cannot be determined whether anything is left to do.
    Failed,
}

impl Run {
    pub(crate) async fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        // First of all: a run that is told to end while it starts drains too.
        let mut signals = signals()?;
        let mut pipeline = self.file.pipeline(registry)?;
        if !self.stage.is_empty() {
            pipeline = pipeline.stages(&self.stage)?;
        }
        let topology = pipeline.topology();
        let progress = Progress::new();
        log::set_up(topology.log_format, topology.log_level.as_deref(), &progress)?;
        // Before anything counts, and while nothing runs that would have to be drained.
        let listening = self.listen(topology)?;
        let (stats, names) = (topology.log_stats, topology.metric_names);
        let running = Supervisor::new().add(pipeline).start().await?;
        let _server = self.serve(listening, names, &running)?;
        let _stats = stats.map(|every| tokio::spawn(tell_stats(running.watcher(), every)));
        let finite = self.until_idle.is_some();
        let telling = tokio::spawn(progress.clone().tell(running.watcher(), finite));
        let idle = async {
            match &self.until_idle {
                Some(quiet) => running.until_idle(quiet.map(|quiet| quiet.0)).await,
                None => std::future::pending().await,
            }
        };
        let ending = tokio::select! {
            idle = idle => match idle {
                Ok(()) => idle_or_failed(&running.status().await),
                Err(error) => {
                    progress.aside(|| complain(&error.into()));
                    Ending::Failed
                }
            },
            () = running.until_dead() => Ending::Failed,
            _ = signals.recv() => Ending::Signal,
        };
        let watcher = running.watcher();
        match ending {
            Ending::Idle => tokio::select! {
                () = crate::parked::tell(&watcher, &progress) => {}
                // There is nothing to abort: it only ends the asking.
                _ = signals.recv() => {}
            },
            Ending::StageFailed => tracing::info!("a stage has failed: draining; a signal aborts"),
            Ending::Signal => tracing::info!("draining; a second signal aborts"),
            Ending::Failed => tracing::info!("draining; a signal aborts"),
        }
        let stopped = tokio::select! {
            stopped = running.stop(ending.deadline()) => stopped,
            _ = signals.recv() => {
                progress.end();
                say("aborted: what was in flight is handled again at the next start");
                return Ok(Exit::Aborted);
            }
        };
        telling.abort();
        progress.end();
        summary(&stopped);
        Ok(exit(&stopped, &ending))
    }
}

#[cfg(feature = "watch")]
impl Run {
    /// Takes the address where metrics are to be served, if any.
    fn listen(&self, topology: &Topology) -> anyhow::Result<Option<brigade_watch::Listening>> {
        let address = self.metrics.or(topology.metrics);
        Ok(address.map(brigade_watch::listen).transpose()?)
    }

    fn serve(
        &self,
        listening: Option<brigade_watch::Listening>,
        names: MetricNames,
        running: &Running,
    ) -> anyhow::Result<Option<brigade_watch::Server>> {
        let Some(listening) = listening else { return Ok(None) };
        let server = listening.serve(running.watcher(), names)?;
        tracing::info!("metrics at http://{}/metrics", server.address());
        Ok(Some(server))
    }
}

#[cfg(not(feature = "watch"))]
impl Run {
    fn listen(&self, topology: &Topology) -> anyhow::Result<Option<()>> {
        match topology.metrics {
            None => Ok(None),
            Some(_) => anyhow::bail!("`metrics`: this program was built without `watch`"),
        }
    }

    fn serve(&self, _: Option<()>, _: MetricNames, _: &Running) -> anyhow::Result<Option<()>> {
        Ok(None)
    }
}

/// Logs each stage's counts periodically.
async fn tell_stats(watcher: Watcher, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        for pipeline in watcher.status().await {
            for stage in &pipeline.stages {
                tracing::info!(
                    pipeline = %pipeline.pipeline, stage = %stage.stage, state = %stage.state,
                    received = stage.received, acked = stage.acked, filtered = stage.filtered,
                    dead_letters = stage.dead_lettered, in_flight = stage.in_flight,
                    failed_attempts = stage.failed_attempts, restarts = stage.restarts, "STATS"
                );
            }
        }
    }
}

/// Why a run that waits until nothing is left to do has ended: also since a stage has failed.
fn idle_or_failed(pipelines: &[PipelineStatus]) -> Ending {
    let mut stages = pipelines.iter().flat_map(|pipeline| &pipeline.stages);
    match stages.any(|stage| stage.state == StageState::Failed) {
        true => Ending::StageFailed,
        false => Ending::Idle,
    }
}

impl Ending {
    /// After which time what is in flight is given back; `None` for the pipeline's `stop_deadline`.
    fn deadline(self) -> Option<Duration> {
        match self {
            // Nothing is in flight; this closes connections.
            Self::Idle => Some(Duration::from_secs(10)),
            Self::StageFailed | Self::Signal | Self::Failed => None,
        }
    }
}

fn exit(stopped: &[Stopped], ending: &Ending) -> Exit {
    for (stage, error) in stopped.iter().flat_map(|stopped| &stopped.failed) {
        say(&format!("error: stage `{stage}` failed: {error}"));
    }
    let failed = stopped.iter().any(|stopped| !stopped.failed.is_empty());
    if failed || matches!(ending, Ending::Failed) {
        Exit::Failed
    } else if stopped.iter().any(|stopped| stopped.dead_letters > 0) {
        Exit::DeadLetters
    } else {
        Exit::Done
    }
}

/// Prints what each stage did.
fn summary(pipelines: &[Stopped]) {
    let header = [
        "stage",
        "calls",
        "received",
        "acked",
        "filtered",
        "dead letters",
        "discarded",
        "requeued",
        "released",
        "in flight",
        "put on queues",
    ];
    let mut rows = table(&header);
    let stages = || pipelines.iter().flat_map(|stopped| &stopped.status.stages);
    for stage in stages() {
        rows.add_row([
            stage.stage.clone(),
            stage.calls.to_string(),
            stage.received.to_string(),
            stage.acked.to_string(),
            stage.filtered.to_string(),
            stage.dead_lettered.to_string(),
            stage.discarded.to_string(),
            stage.requeued.to_string(),
            stage.released.to_string(),
            stage.in_flight.to_string(),
            outputs(stage),
        ]);
    }
    for wrong in pipelines.iter().flat_map(|stopped| &stopped.status.unaccounted) {
        say(&format!(
            "error: stage `{}`, {}: {} messages are not accounted for; please report it",
            wrong.stage, wrong.place, wrong.messages
        ));
    }
    for stage in stages() {
        let messages = stage.without_outcome();
        // A message stuck in a component has no outcome yet, and an actor that died may have
        // counted twice.
        if messages != 0 && stage.in_flight == 0 && stage.restarts == 0 {
            say(&format!(
                "error: stage `{}`: {messages} messages have no outcome; please report it",
                stage.stage
            ));
        }
    }
    // Standard output may be an output of the pipeline.
    say(&rows.to_string());
    if pipelines.iter().all(|stopped| stopped.status.closes()) {
        let received: u64 = stages().map(|stage| stage.from_queues.received).sum();
        say(&format!("the books close: {received} messages received, each has an outcome"));
    }
}

/// How much a stage put on which queues.
fn outputs(stage: &StageStatus) -> String {
    let mut queues: BTreeMap<&str, u64> = BTreeMap::new();
    for outputs in &stage.outputs {
        *queues.entry(&outputs.output).or_default() += outputs.messages;
    }
    let each: Vec<String> =
        queues.iter().map(|(queue, messages)| format!("{queue} {messages}")).collect();
    each.join(", ")
}

/// A signal this soon after the first is the same one: a program and its process group may both be
/// signalled, as `timeout` does.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// Signals as messages: the first drains, the second aborts.
fn signals() -> anyhow::Result<mpsc::UnboundedReceiver<i32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("brigade-signals".to_owned()).spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in signals.forever() {
            if first.is_some_and(|at| at.elapsed() < SAME_SIGNAL) {
                continue;
            }
            first.get_or_insert_with(Instant::now);
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
