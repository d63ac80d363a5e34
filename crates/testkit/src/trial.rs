//! Tests of whole pipelines: [`Trial`] runs one on memory queues, with faults that [`TrialSetup`]
//! plans.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use brigade_core::{DeadLetter, Message};
use brigade_memory::{Memory, MemoryState};
use brigade_runtime::{
    CommandError, Pipeline, PipelineStatus, Running, StageState, StartError, Stopped, Supervisor,
    dead_letter_queue,
};

use crate::faults::{Fault, Faulty, Planned, Stalls, Unsteady};
use crate::kept::{Kept, What};
use crate::like::Like;
use crate::paused;

/// How often it is checked whether a pipeline has started: soon at first, then rarely.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// How long a trial may take to start: longer than any `init` that is not stuck.
const START_MAX: Duration = Duration::from_secs(300);
/// How long it may take at least, by the real clock.
const START_REAL: Duration = Duration::from_secs(3);

/// A whole pipeline on memory queues: send it messages, and look at what becomes of them.
///
/// ```no_run
/// # async fn trial(pipeline: brigade_runtime::Pipeline) -> Result<(), Box<dyn std::error::Error>> {
/// use brigade_core::Message;
/// let trial = brigade_testkit::Trial::start(pipeline).await?;
/// trial.send("orders", [Message::new("{\"total\": 10}")]);
/// trial.settle().await?;
/// assert_eq!(trial.outputs("invoices").len(), 1);
/// assert!(trial.dead_letters("bill").is_empty());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Trial {
    memory: Memory,
    state: Arc<MemoryState>,
    pipeline: String,
    /// The dead letters that were put on declared queues, and what was put on the queues of which
    /// everything is kept.
    kept: Arc<Kept>,
    /// The dead-letter queue that the file names for each stage, if any.
    declared: Vec<(String, Option<String>)>,
    /// The queues of the pipeline.
    queues: Vec<String>,
    running: Running,
}

/// A trial that is not started yet: faults can be planned.
pub struct TrialSetup {
    pipeline: Pipeline,
    faults: BTreeMap<String, Vec<Planned>>,
    outages: Vec<(String, RangeInclusive<u64>)>,
    stalls: BTreeMap<String, Stalls>,
    /// The queues of which everything is kept.
    keep: Vec<String>,
}

impl TrialSetup {
    /// Makes these calls of a stage's component go wrong, counted from 1 over all its workers; a
    /// retry is a call too, and a batch is one call.
    #[must_use]
    pub fn fault(mut self, stage: &str, calls: RangeInclusive<u64>, fault: Fault) -> Self {
        self.faults.entry(stage.to_owned()).or_default().push((calls, fault));
        self
    }

    /// Makes a queue refuse these batches of outputs, counted from 1; each attempt counts.
    #[must_use]
    pub fn outage(mut self, queue: &str, batches: RangeInclusive<u64>) -> Self {
        self.outages.push((queue.to_owned(), batches));
        self
    }

    /// Makes these pulls from a queue, counted from 1, fail like those of a stalled consumer, whose
    /// connection has to be reopened.
    #[must_use]
    pub fn stall(mut self, queue: &str, pulls: RangeInclusive<u64>) -> Self {
        self.stalls.entry(queue.to_owned()).or_default().planned.push(pulls);
        self
    }

    /// Keeps everything that stages put on a queue, for [`Trial::kept`]: what is on a queue that a
    /// stage reads says nothing of that. At most 100,000 messages are kept: the queue takes no more
    /// then.
    #[must_use]
    pub fn keep(mut self, queue: &str) -> Self {
        self.keep.push(queue.to_owned());
        self
    }

    /// Shortens back-offs before retries and restarts to a millisecond, whatever the file says;
    /// delays of messages and timeouts are unchanged. For trials whose lanes are threads; with
    /// [`paused`](crate::paused()) time no wait takes any time.
    #[must_use]
    pub fn without_back_off(self) -> Self {
        Self { pipeline: self.pipeline.without_back_off(), ..self }
    }

    /// Starts the pipeline with a memory queue in place of each of its queues, and waits until it
    /// runs. Schemas, keys and event times are kept; settings and limits of the queues are not.
    ///
    /// # Errors
    /// It does not start, a stage fails before it runs or still starts after 5 minutes, a fault is
    /// planned for an unknown stage, an outage for a queue that no stage writes, a stall for one that
    /// no stage reads, or a queue is to be kept that the pipeline does not have.
    pub async fn start(self) -> Result<Trial, StartError> {
        let trial = self.launch().await?;
        let begun = std::time::Instant::now();
        while tokio::time::timeout(START_MAX, trial.until_started()).await.is_err() {
            // Paused time runs ahead while an `init` waits for something real.
            if begun.elapsed() < START_REAL {
                continue;
            }
            let starting = trial.starting().await.join(", ");
            return Err(StartError::new(format!("not started within {START_MAX:?}: {starting}")));
        }
        match trial.failed().await {
            Some(failed) => Err(StartError::new(failed)),
            None => Ok(trial),
        }
    }

    /// Like [`start`](TrialSetup::start), but returns at once: stages may still be starting, or fail
    /// before they run, see [`Trial::until_started`].
    ///
    /// # Errors
    /// See there, apart from what becomes of stages.
    pub async fn launch(self) -> Result<Trial, StartError> {
        let Self { mut pipeline, faults, outages, stalls, keep } = self;
        can_come(&pipeline, &outages, &stalls)?;
        can_be_kept(&pipeline, &keep)?;
        for (stage, faults) in faults {
            pipeline = pipeline.wrap(&stage, |inner| Box::new(Faulty::new(inner, faults)))?;
        }
        let (memory, state) = (Memory::new(), MemoryState::new());
        let (name, declared) = (pipeline.name().to_owned(), declared(&pipeline));
        let dead = declared.iter().filter_map(|(_, dead)| Some((dead.clone()?, What::DeadLetters)));
        let kept = Kept::of(dead.chain(keep.into_iter().map(|queue| (queue, What::All))));
        let connector =
            Like(Unsteady { memory: memory.clone(), outages, stalls, kept: Arc::clone(&kept) });
        let queues = pipeline.topology().queues.keys().map(ToString::to_string).collect();
        let pipeline = pipeline.on(Arc::new(connector)).state(state.clone());
        let supervisor = Supervisor::new().add(pipeline);
        let running = match paused::is() {
            true => supervisor.start_here().await?,
            false => supervisor.start().await?,
        };
        Ok(Trial { memory, state, pipeline: name, kept, declared, queues, running })
    }
}

impl fmt::Debug for TrialSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("TrialSetup");
        all.field("pipeline", &self.pipeline.name()).field("faults", &self.faults);
        all.field("outages", &self.outages).field("stalls", &self.stalls).finish()
    }
}

/// Reports faults that cannot happen: a trial with those would show nothing.
fn can_come(
    pipeline: &Pipeline,
    outages: &[(String, RangeInclusive<u64>)],
    stalls: &BTreeMap<String, Stalls>,
) -> Result<(), StartError> {
    let topology = pipeline.topology();
    let stages = || topology.stages.values();
    let written: BTreeSet<&str> = stages()
        .flat_map(|stage| stage.outputs.iter().chain(&stage.dead_letter))
        .map(|queue| &**queue)
        .collect();
    let read: BTreeSet<&str> =
        stages().flat_map(|stage| stage.input_queues()).map(|queue| &**queue).collect();
    let outages = outages.iter().map(|(queue, _)| ("an outage", queue, "written", &written));
    let stalls = stalls.keys().map(|queue| ("a stall", queue, "read", &read));
    for (what, queue, done, known) in outages.chain(stalls) {
        if !known.contains(queue.as_str()) {
            let known = listed(known.iter().copied());
            return Err(StartError::new(format!(
                "{what} is planned for `{queue}`, which is no queue that is {done} by a stage; such are {known}"
            )));
        }
    }
    Ok(())
}

/// Reports queues that are to be kept and do not exist.
fn can_be_kept(pipeline: &Pipeline, keep: &[String]) -> Result<(), StartError> {
    let queues = &pipeline.topology().queues;
    match keep.iter().find(|queue| !queues.contains_key(queue.as_str())) {
        None => Ok(()),
        Some(queue) => {
            let known = listed(queues.keys().map(|name| &**name));
            let text = format!("queue `{queue}` is to be kept, which the pipeline does not have");
            Err(StartError::new(format!("{text}; it has {known}")))
        }
    }
}

/// Names, listed as in a sentence.
fn listed<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The dead-letter queue that the file names for each stage, if any.
fn declared(pipeline: &Pipeline) -> Vec<(String, Option<String>)> {
    let stages = pipeline.topology().stages.values();
    let declared = stages.map(|stage| {
        let dead = stage.dead_letter.as_ref().map(|queue| queue.to_string());
        (stage.name.to_string(), dead)
    });
    declared.collect()
}

/// Which stage has failed, and why.
fn failed(pipeline: &PipelineStatus) -> Option<String> {
    let failed = pipeline.stages.iter().find(|stage| stage.state == StageState::Failed)?;
    let why = failed.error.as_deref().unwrap_or_default();
    Some(format!("stage `{}` failed: {why}", failed.stage))
}

impl Trial {
    /// A trial of this pipeline, for which faults can be planned before it starts.
    ///
    /// ```no_run
    /// # async fn trial(pipeline: brigade_runtime::Pipeline) -> Result<(), Box<dyn std::error::Error>> {
    /// use brigade_core::Message;
    /// use brigade_testkit::{Fault, Trial};
    /// let trial = Trial::of(pipeline)
    ///     .fault("bill", 2..=3, Fault::Error("the service is away".into()))
    ///     .fault("bill", 5..=5, Fault::Panic)
    ///     .outage("invoices", 1..=4)
    ///     .without_back_off()
    ///     .start()
    ///     .await?;
    /// trial.send("orders", (0..10).map(|n| Message::new(format!("{{\"total\": {n}}}"))));
    /// trial.settle().await?;
    /// assert_eq!(trial.outputs("invoices").len(), 10);
    /// # Ok(()) }
    /// ```
    pub fn of(pipeline: Pipeline) -> TrialSetup {
        TrialSetup {
            pipeline,
            faults: BTreeMap::new(),
            outages: Vec::new(),
            stalls: BTreeMap::new(),
            keep: Vec::new(),
        }
    }

    /// Starts a trial without faults; see [`of`](Trial::of).
    ///
    /// # Errors
    /// See [`TrialSetup::start`].
    pub async fn start(pipeline: Pipeline) -> Result<Self, StartError> {
        Self::of(pipeline).start().await
    }

    /// Waits, however long it takes, until every stage runs or one has failed: for trials that were
    /// only [launched](TrialSetup::launch).
    pub async fn until_started(&self) {
        let mut wait = LOOK.0;
        let is_over = |pipeline: &PipelineStatus| pipeline.is_ready() || failed(pipeline).is_some();
        // A pipeline whose supervisor has died is not among them.
        while !self.running.status().await.iter().all(is_over) {
            tokio::time::sleep(wait).await;
            wait = LOOK.1.min(wait * 2);
        }
    }

    /// The stages that have not started yet, each in a sentence with what went wrong so far, if
    /// anything.
    pub async fn starting(&self) -> Vec<String> {
        let stages = self.running.status().await.into_iter().flat_map(|pipeline| pipeline.stages);
        let starting = stages.filter(|stage| stage.state == StageState::Starting);
        let sentence = starting.map(|stage| match stage.error {
            Some(error) => format!("stage `{}` is still starting: {error}", stage.stage),
            None => format!("stage `{}` is still starting", stage.stage),
        });
        sentence.collect()
    }

    async fn failed(&self) -> Option<String> {
        self.running.status().await.iter().find_map(failed)
    }

    /// Puts messages on a queue.
    ///
    /// # Panics
    /// If the pipeline has no such queue.
    #[track_caller]
    pub fn send(&self, queue: &str, messages: impl IntoIterator<Item = Message>) {
        self.assert_queue(queue);
        self.memory.put(&self.pipeline, queue, messages);
    }

    /// Waits until nothing is left to do, including retries.
    ///
    /// # Errors
    /// The pipeline has stopped, or a stage has failed: then what is left is not done. To allow for
    /// that, use [`running`](Trial::running) and [`Running::until_idle`].
    pub async fn settle(&self) -> Result<(), CommandError> {
        self.running.until_idle(None).await?;
        match self.failed().await {
            None => Ok(()),
            Some(failed) => Err(CommandError::new(failed)),
        }
    }

    /// Like [`settle`](Trial::settle), but for at most `period`; returns whether it settled in that
    /// time.
    ///
    /// # Errors
    /// See there.
    pub async fn settle_within(&self, period: Duration) -> Result<bool, CommandError> {
        match tokio::time::timeout(period, self.settle()).await {
            Ok(settled) => settled.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// What is on a queue, in order of arrival.
    ///
    /// # Panics
    /// If the pipeline has no such queue.
    #[track_caller]
    pub fn outputs(&self, queue: &str) -> Vec<Message> {
        self.assert_queue(queue);
        self.memory.messages(&self.pipeline, queue)
    }

    /// What stages have put on a queue, in order of arrival and whatever has read it since.
    ///
    /// # Panics
    /// If it was not to be kept: see [`TrialSetup::keep`].
    #[track_caller]
    pub fn kept(&self, queue: &str) -> Vec<Message> {
        let kept = self.kept.messages(queue);
        kept.unwrap_or_else(|| panic!("queue `{queue}` was not to be kept: see `TrialSetup::keep`"))
    }

    /// The dead letters of a stage, including those that another stage has read. Stages that share
    /// a dead-letter queue get only their own. For a declared queue at most 100,000 are kept: it
    /// takes no more then.
    ///
    /// # Panics
    /// If the pipeline has no such stage.
    #[track_caller]
    pub fn dead_letters(&self, stage: &str) -> Vec<DeadLetter> {
        let declared = self.declared.iter().find(|(name, _)| name == stage);
        let Some((_, queue)) = declared else {
            let known = listed(self.declared.iter().map(|(name, _)| name.as_str()));
            panic!("pipeline `{}` has no stage `{stage}`; it has {known}", self.pipeline);
        };
        let mut letters = match queue {
            Some(queue) => self.kept.letters(queue),
            None => {
                let queue = dead_letter_queue(stage);
                let messages = self.state.queues().messages(&self.pipeline, &queue);
                let payloads = messages.iter().filter_map(|message| message.payload.as_deref());
                payloads.filter_map(|payload| DeadLetter::from_json(payload).ok()).collect()
            }
        };
        letters.retain(|letter| letter.stage == stage);
        letters
    }

    #[track_caller]
    fn assert_queue(&self, queue: &str) {
        let is_there = self.queues().any(|name| name == queue);
        let (pipeline, known) = (&self.pipeline, || listed(self.queues()));
        assert!(is_there, "pipeline `{pipeline}` has no queue `{queue}`; it has {}", known());
    }

    /// The queues of the pipeline.
    pub fn queues(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().map(String::as_str)
    }

    /// The current status of the pipeline.
    pub async fn status(&self) -> PipelineStatus {
        self.running.status().await.remove(0)
    }

    /// The running pipeline: to pause, scale or kill parts of it.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Resolves what is in flight, and ends.
    pub async fn end(self) -> Vec<Stopped> {
        self.running.drain().await
    }

    /// Ends; what is not resolved by the deadline goes back to its queue.
    pub async fn stop(self, deadline: Duration) -> Vec<Stopped> {
        self.running.stop(Some(deadline)).await
    }

    /// Like [`end`](Trial::end), but also returns the queues, for inspection.
    pub async fn end_with_queues(self) -> (Memory, Vec<Stopped>) {
        (self.memory.clone(), self.end().await)
    }

    /// Like [`stop`](Trial::stop), but also returns the queues, for inspection.
    pub async fn stop_with_queues(self, deadline: Duration) -> (Memory, Vec<Stopped>) {
        (self.memory.clone(), self.stop(deadline).await)
    }
}
