//! The way in: pipelines are added, started, watched and stopped.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use brigade_core::connector::Producer;
use futures_util::future::{join_all, select_all, try_join_all};
use tokio::sync::{oneshot, watch};
use tokio::task::LocalSet;

use crate::events::{EventSender, Events};
use crate::lane::Home;
use crate::pipeline::{Pipeline, StartError};
use crate::plan::{Plan, QueueKeeper, StagePlan};
use crate::states::UsedState;
use crate::status::{PipelineStatus, QueueDepth, QueueTimes, StageState, StageStatus, Stopped};
use crate::tree::{Command, IdleAs, Marks, Tree};

/// Starts pipelines, on threads of its own, so that it can be embedded in any program: one with a
/// tokio or actix runtime, another runtime, or none.
///
/// ```no_run
/// # async fn example(pipeline: brigade_runtime::Pipeline) -> Result<(), brigade_runtime::StartError> {
/// use brigade_runtime::Supervisor;
/// let running = Supervisor::new().add(pipeline).start().await?;
/// running.drain().await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Supervisor {
    pipelines: Vec<Pipeline>,
}

impl Supervisor {
    /// A supervisor without pipelines.
    ///
    /// A program with `panic = "abort"` does not compile with it, since a component's panic would
    /// then end the program.
    pub fn new() -> Self {
        const {
            assert!(
                cfg!(panic = "unwind"),
                "Brigade needs `panic = \"unwind\"`: remove `panic = \"abort\"` from the profile"
            );
        }
        Self::default()
    }

    /// Adds a pipeline.
    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "pipelines are added to a supervisor")]
    pub fn add(mut self, pipeline: Pipeline) -> Self {
        self.pipelines.push(pipeline);
        self
    }

    /// Starts all pipelines. Returns while their actors are being started: connections and `init`
    /// may still be under way, see [`Running::status`].
    ///
    /// If the call is dropped before it returns, nothing is started, or what was started is stopped
    /// at once.
    ///
    /// # Errors
    /// No pipeline was added, two have the same name, or a pipeline's state cannot be opened.
    pub async fn start(self) -> Result<Running, StartError> {
        let lanes: usize = self.pipelines.iter().map(|p| p.topology().lanes.max(1)).sum();
        room_for_threads(lanes + 1)?;
        let (launch, alive, launched) = self.launch(Home::Threads)?;
        std::thread::Builder::new()
            .name("brigade".to_owned())
            .spawn(move || {
                let system = System::new();
                system.block_on(launch.run());
                let_go(system, alive);
            })
            .map_err(|error| StartError::new(format!("no thread to be had: {error}")))?;
        launched.running().await
    }

    /// Like [`start`](Supervisor::start), but in the calling thread's `LocalSet`, so that a test
    /// can pause time for everything. For the testkit.
    #[doc(hidden)]
    pub async fn start_here(self) -> Result<Running, StartError> {
        let (launch, alive, launched) = self.launch(Home::Here)?;
        tokio::task::spawn_local(async move {
            launch.run().await;
            drop(alive);
        });
        launched.running().await
    }

    /// What to run, what to drop when all actors are gone, and the owner's handle.
    fn launch(self, home: Home) -> Result<(Launch, oneshot::Sender<()>, Launched), StartError> {
        let mut names: Vec<&str> = self.pipelines.iter().map(Pipeline::name).collect();
        if names.is_empty() {
            return Err(StartError::new("no pipeline to start: `add` one before `start`"));
        }
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(StartError::new(format!("two pipelines are named `{}`", twice[0])));
        }
        let (ready, started) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (alive, ended) = oneshot::channel();
        let events = EventSender::new();
        let launched = Launched { started, stop, ended, events: events.clone() };
        let pipelines = self.pipelines;
        Ok((Launch { pipelines, home, events, ready, stopped }, alive, launched))
    }
}

/// How long shutting down waits for what still blocks a thread.
const BLOCKED: Duration = Duration::from_secs(2);

/// What the supervisor is about to do.
struct Launch {
    pipelines: Vec<Pipeline>,
    home: Home,
    events: EventSender,
    ready: Ready,
    stopped: oneshot::Receiver<()>,
}

impl Launch {
    /// Supervises. All actors are gone when this ends, and not later: dropping an actor that has
    /// not started starts it, which needs the runtime.
    async fn run(self) {
        LocalSet::new().run_until(self.supervise()).await;
    }
}

/// What the supervisor's owner keeps.
struct Launched {
    started: oneshot::Receiver<Result<Vec<TreeHandle>, StartError>>,
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
    events: EventSender,
}

impl Launched {
    async fn running(self) -> Result<Running, StartError> {
        let Self { started, stop, ended, events } = self;
        let started = started.await;
        let trees = started.map_err(|_| StartError::new("the supervisor did not start"))??;
        Ok(Running { trees, events, stop, ended })
    }
}

/// Drops the runtime, which waits for whatever blocks one of its threads, such as a request to a
/// server that is away. Callers that wait for the end wait no longer than [`BLOCKED`] for that.
fn let_go(system: SystemRunner, alive: oneshot::Sender<()>) {
    let (gone, is_gone) = std::sync::mpsc::channel::<()>();
    let tell = move || {
        // Nothing is ever sent: the runtime is gone, or it takes too long.
        let _ = is_gone.recv_timeout(BLOCKED);
        drop(alive);
    };
    // If no thread can be started, the end is reported at once.
    let _ = std::thread::Builder::new().name("brigade-end".to_owned()).spawn(tell);
    drop(system);
    drop(gone);
}

/// Actor threads panic if they cannot open file handles: better to report that before they start.
fn room_for_threads(threads: usize) -> Result<(), StartError> {
    /// What one thread opens: for its timers and wake-ups, and for signals.
    const HANDLES: usize = 6;
    let open = |_| std::fs::File::open("/dev/null");
    let opened: std::io::Result<Vec<_>> = (0..threads * HANDLES).map(open).collect();
    opened.map(drop).map_err(|error| {
        let advice = "raise the limit of open files (`ulimit -n`), or set fewer `lanes`";
        StartError::new(format!("{threads} threads cannot be started: {error}: {advice}"))
    })
}

type Ready = oneshot::Sender<Result<Vec<TreeHandle>, StartError>>;

impl Launch {
    /// Runs until it is told to stop.
    async fn supervise(self) {
        let Self { pipelines, home, events, ready, stopped } = self;
        let mut trees: Vec<TreeHandle> = Vec::new();
        let mut states: Vec<UsedState> = Vec::new();
        for pipeline in pipelines {
            match pipeline.into_plan().await {
                Ok(plan) => {
                    let (name, deadline) = (plan.pipeline.to_string(), plan.stop_deadline);
                    states.push(UsedState::new(Arc::clone(&plan.env.state)));
                    let plan = Arc::new(plan);
                    let (alive, gone) = watch::channel(());
                    let addr = Tree::new(Arc::clone(&plan), events.clone(), home, alive).start();
                    trees.push(TreeHandle { name, deadline, addr, plan, gone });
                }
                Err(error) => {
                    stop_at_once(&trees).await;
                    // The caller of `start` is waiting for exactly this.
                    let _ = ready.send(Err(error));
                    return;
                }
            }
        }
        let watched = trees.clone();
        match ready.send(Ok(trees)) {
            // The caller no longer waits for what has started.
            Err(Ok(trees)) => stop_at_once(&trees).await,
            // Ends by a message, or when the handle is dropped.
            _ => tokio::select! {
                biased;
                _ = stopped => {}
                () = tell_of_the_dead(&watched) => {}
            },
        }
        for state in states {
            if let Err(error) = state.end().await {
                tracing::warn!(%error, "the state did not shut down cleanly");
            }
        }
    }
}

/// Logs each supervisor of a pipeline that dies; never returns.
async fn tell_of_the_dead(trees: &[TreeHandle]) {
    let each = trees.iter().map(async |tree| {
        tree.until_dead().await;
        tracing::error!(pipeline = %tree.name, "{DIED}");
    });
    join_all(each).await;
    std::future::pending().await
}

/// Ends pipelines for which there is no handle.
async fn stop_at_once(trees: &[TreeHandle]) {
    for tree in trees {
        tree.ask(|reply| Command::Stop { deadline: Some(Duration::ZERO), reply }).await;
    }
}

/// The way to one pipeline's supervisor.
#[derive(Clone)]
struct TreeHandle {
    name: String,
    deadline: Duration,
    addr: Addr<Tree>,
    plan: Arc<Plan>,
    /// Never changes; it is closed when the supervisor is gone.
    gone: watch::Receiver<()>,
}

/// What is told of a pipeline's supervisor that has died. Nothing but its owner is left to tell it.
const DIED: &str = "its supervisor has died, and all its stages with it: the log has the panic; this is a defect of \
                    Brigade, please report it. What was in flight is handled again at the next start";

impl TreeHandle {
    /// Waits until it has ended, which it does early only if it panics.
    async fn until_dead(&self) {
        let mut gone = self.gone.clone();
        while gone.changed().await.is_ok() {}
    }

    /// What is known of a pipeline whose supervisor can no longer say how it ended.
    fn dead(&self) -> Stopped {
        let Plan { stages, queues, pipeline, .. } = &*self.plan;
        let error = || Some(DIED.to_owned());
        let status = |stage: &Arc<StagePlan>| {
            StageStatus::of(&self.plan, stage, stage.workers, StageState::Failed, error(), 0)
        };
        Stopped {
            status: PipelineStatus {
                pipeline: pipeline.to_string(),
                stages: stages.iter().map(status).collect(),
                queues: queues.iter().map(|queue| QueueTimes::of(queue)).collect(),
                unaccounted: Vec::new(),
            },
            failed: stages.iter().map(|stage| (stage.name.to_string(), DIED.to_owned())).collect(),
            dead_letters: self.plan.dead_letters(),
            given_back: 0,
            took: Duration::ZERO,
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.addr.do_send(command(reply));
        answer.await.ok()
    }

    /// Sends a request that may be refused.
    async fn order<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Command,
    ) -> Result<T, CommandError> {
        match self.ask(command).await {
            Some(answer) => answer.map_err(CommandError),
            None => Err(CommandError(format!("pipeline `{}` has stopped", self.name))),
        }
    }
}

/// Running pipelines. Dropping it stops them at once, as a crash would: nothing is lost, and what
/// was in flight is handled again at the next start. Call [`drain`](Running::drain) or
/// [`stop`](Running::stop) instead.
pub struct Running {
    trees: Vec<TreeHandle>,
    events: EventSender,
    stop: oneshot::Sender<()>,
    /// Completes when the supervisor has ended.
    ended: oneshot::Receiver<()>,
}

/// Why a request to a running pipeline was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CommandError(String);

impl CommandError {
    /// An error with this explanation.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// Observes running pipelines without keeping them running; cheap to clone.
#[derive(Clone)]
pub struct Watcher {
    trees: Vec<TreeHandle>,
}

impl Watcher {
    /// The current status of the pipelines; those that have stopped are left out.
    pub async fn status(&self) -> Vec<PipelineStatus> {
        let mut all = Vec::with_capacity(self.trees.len());
        for tree in &self.trees {
            all.extend(tree.ask(Command::Status).await);
        }
        all
    }

    /// Whether every stage of every pipeline is running.
    pub async fn is_ready(&self) -> bool {
        let all = self.status().await;
        all.len() == self.trees.len() && all.iter().all(PipelineStatus::is_ready)
    }

    /// How many messages wait in the queues that the stages in this process read.
    pub async fn depths(&self) -> Vec<QueueDepth> {
        let depths = self.trees.iter().map(|tree| tree.ask(Command::Depths));
        join_all(depths).await.into_iter().flatten().flatten().collect()
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.trees.iter().map(|tree| &tree.name);
        f.debug_set().entries(names).finish()
    }
}

impl Running {
    /// The current status of the pipelines.
    pub async fn status(&self) -> Vec<PipelineStatus> {
        self.watcher().status().await
    }

    /// Whether every stage of every pipeline is running.
    pub async fn is_ready(&self) -> bool {
        self.watcher().is_ready().await
    }

    /// Observes the pipelines from elsewhere, such as a metrics endpoint.
    pub fn watcher(&self) -> Watcher {
        Watcher { trees: self.trees.clone() }
    }

    /// The events from now on.
    pub fn events(&self) -> Events {
        self.events.subscribe()
    }

    /// A producer for a queue that the pipeline file declares, for the program's own messages.
    /// Queues are named `queue` or, if several pipelines run, `pipeline/queue`. Their `schema` and
    /// `key` are not applied here.
    ///
    /// # Errors
    /// There is no such queue, or it cannot be opened.
    ///
    /// # Panics
    /// Outside a Tokio runtime, if the queue's connector needs one: the producer runs on the
    /// caller's runtime.
    pub async fn producer(&self, queue: &str) -> Result<Arc<dyn Producer>, CommandError> {
        let (tree, name) = self.find(queue)?;
        let declared = tree.plan.queues.iter().find(|queue| *queue.spec.name == *name);
        let Some((queue, QueueKeeper::Connector(connector))) =
            declared.map(|queue| (queue, &queue.keeper))
        else {
            let known: Vec<_> = tree.plan.queues.iter().map(|queue| &*queue.spec.name).collect();
            let (known, pipeline) = (known.join(", "), &tree.name);
            let error = format!("no queue `{name}` in pipeline `{pipeline}`; it has: {known}");
            return Err(CommandError(error));
        };
        let producer = connector.producer(&queue.spec, &tree.plan.env).await;
        producer.map_err(|error| CommandError(format!("queue `{name}`: {error}")))
    }

    /// Stops pulling for a stage; what is in flight goes on. A stage that is fed directly is paused
    /// together with the stages it is joined to. Stages are named `stage` or, if several pipelines
    /// run, `pipeline/stage`.
    ///
    /// # Errors
    /// There is no such stage, or it is not running; or it is resumed, is stopped or fails before it has
    /// paused.
    pub async fn pause(&self, stage: &str) -> Result<(), CommandError> {
        let (tree, stage) = self.find(stage)?;
        tree.order(|reply| Command::Pause { stage, reply }).await
    }

    /// Like [`pause`](Running::pause), but waits until nothing of the stage is in flight.
    ///
    /// # Errors
    /// There is no such stage, or it is not running; or it is resumed, is stopped or fails meanwhile.
    pub async fn drain_stage(&self, stage: &str) -> Result<(), CommandError> {
        let (tree, stage) = self.find(stage)?;
        tree.order(|reply| Command::Drain { stage, reply }).await
    }

    /// Stops pulling for a stage, waits until nothing of it is in flight (at most until the
    /// deadline), gives back the rest, and ends its actors. A call that has not ended 10 s later is
    /// left to itself, and what its consumer holds is given back, within another 10 s.
    /// [`resume`](Running::resume) starts the stage again.
    ///
    /// # Errors
    /// There is no such stage, or it is not running.
    pub async fn stop_stage(
        &self,
        stage: &str,
        deadline: Option<Duration>,
    ) -> Result<(), CommandError> {
        let (tree, stage) = self.find(stage)?;
        tree.order(|reply| Command::End { stage, deadline, reply }).await
    }

    /// Resumes pulling for a stage that was paused or drained; starts one that was stopped.
    ///
    /// # Errors
    /// There is no such stage, or it is starting, draining or failed.
    pub async fn resume(&self, stage: &str) -> Result<(), CommandError> {
        let (tree, stage) = self.find(stage)?;
        tree.order(|reply| Command::Resume { stage, reply }).await
    }

    /// Changes a stage's number of workers, 1 to 1,024. Its line pulls nothing until what is in
    /// flight is resolved, so that keys stay in order. Returns once the new workers are there; if a
    /// queue is away by then, that includes waiting for it.
    ///
    /// # Errors
    /// There is no such stage, it is not running, its order allows only one worker, or it has
    /// failed.
    pub async fn scale(&self, stage: &str, workers: usize) -> Result<(), CommandError> {
        let (tree, stage) = self.find(stage)?;
        tree.order(|reply| Command::Scale { stage, workers, reply }).await
    }

    /// Waits until nothing is left to do: finite inputs are at their end, queues are empty for
    /// every process, nothing is in flight, and every upstream stage, in whichever process, has
    /// finished. `quiet` is for queues that cannot tell whether they are empty: they count as empty
    /// when nothing has come for this long. Several pipelines have nothing left when all of them have
    /// not at the same time. Also returns when a stage has failed. A stage that was
    /// stopped is not waited for, whatever is on its queues; one that is paused is.
    ///
    /// # Errors
    /// A queue cannot tell whether it is empty, and no `quiet` is given; or the state cannot be
    /// read.
    pub async fn until_idle(&self, quiet: Option<Duration>) -> Result<(), CommandError> {
        let moved = || self.trees.iter().map(|tree| tree.plan.moved()).collect::<Vec<_>>();
        let mut runs: Vec<Option<Marks>> = vec![None; self.trees.len()];
        // One may give work to another after that was found idle: all are if each was found so while
        // nothing moved in any.
        loop {
            let before = moved();
            let asked = self.trees.iter().zip(&mut runs).map(|(tree, run)| {
                let run = run.take();
                tree.order(move |reply| Command::Idle { quiet, run, reply })
            });
            let answers = try_join_all(asked.collect::<Vec<_>>()).await?;
            for (run, idle) in runs.iter_mut().zip(answers) {
                if let IdleAs::Finished(finished) = idle {
                    *run = Some(finished);
                }
            }
            let hopeless = runs.iter().any(Option::is_none);
            if hopeless || self.trees.len() == 1 || moved() == before {
                return Ok(());
            }
        }
    }

    /// Waits until the supervisor of one of the pipelines has died, which is a defect of Brigade: the
    /// stages of that pipeline are gone then, and [`stop`](Running::stop) reports them as failed.
    pub async fn until_dead(&self) {
        select_all(self.trees.iter().map(|tree| Box::pin(tree.until_dead()))).await;
    }

    /// Stops pulling, resolves everything in flight however long it takes, flushes, and ends. What
    /// still blocks a thread 2 s later, such as a request to a server that does not answer, may
    /// outlive this call.
    pub async fn drain(self) -> Vec<Stopped> {
        self.end(|_| None).await
    }

    /// Like [`drain`](Running::drain), but gives back what is not resolved by the deadline: by
    /// default the pipeline's `stop_deadline`.
    pub async fn stop(self, deadline: Option<Duration>) -> Vec<Stopped> {
        self.end(|own| Some(deadline.unwrap_or(own))).await
    }

    /// Kills an actor of a stage, as if by a defect in Brigade: `worker`, `consumer`, `producer` or `supervisor`.
    /// For tests.
    ///
    /// # Errors
    /// There is no such stage or actor.
    #[doc(hidden)]
    pub async fn crash(&self, stage: &str, actor: &'static str) -> Result<(), CommandError> {
        let (tree, stage) = self.find(stage)?;
        tree.order(|reply| Command::Crash { stage, actor, reply }).await
    }

    /// Makes a stage do something wrong, once: `leak`, `ack_twice`, `lose`, `no_outcome` or
    /// `drop_output`. For testing the books.
    ///
    /// # Errors
    /// There is no such stage or defect.
    #[doc(hidden)]
    #[cfg(feature = "sabotage")]
    pub async fn sabotage(&self, stage: &str, defect: &str) -> Result<(), CommandError> {
        let defect = match defect {
            "leak" => crate::sabotage::LEAK,
            "ack_twice" => crate::sabotage::ACK_TWICE,
            "lose" => crate::sabotage::LOSE,
            "no_outcome" => crate::sabotage::NO_OUTCOME,
            "drop_output" => crate::sabotage::DROP_OUTPUT,
            other => return Err(CommandError(format!("no defect `{other}`"))),
        };
        let (tree, stage) = self.find(stage)?;
        tree.order(|reply| Command::Sabotage { stage, defect, reply }).await
    }

    async fn end(self, deadline: impl Fn(Duration) -> Option<Duration>) -> Vec<Stopped> {
        let mut asked = Vec::new();
        for tree in &self.trees {
            let (reply, answer) = oneshot::channel();
            tree.addr.do_send(Command::Stop { deadline: deadline(tree.deadline), reply });
            asked.push(answer);
        }
        let mut all = Vec::new();
        for (tree, answer) in self.trees.iter().zip(asked) {
            all.push(answer.await.unwrap_or_else(|_| tree.dead()));
        }
        drop(self.stop);
        // Nothing is ever sent.
        let _ = self.ended.await;
        all
    }

    fn find(&self, stage: &str) -> Result<(&TreeHandle, String), CommandError> {
        if let Some((pipeline, stage)) = stage.split_once('/') {
            let tree = self.trees.iter().find(|tree| tree.name == pipeline);
            let tree = tree.ok_or_else(|| {
                let known: Vec<_> = self.trees.iter().map(|tree| tree.name.as_str()).collect();
                let known = known.join(", ");
                CommandError(format!("no pipeline `{pipeline}` here; there are: {known}"))
            })?;
            return Ok((tree, stage.to_owned()));
        }
        match &self.trees[..] {
            [tree] => Ok((tree, stage.to_owned())),
            _ => Err(CommandError(format!("several pipelines run: write `pipeline/{stage}`"))),
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.trees.iter().map(|tree| &tree.name);
        f.debug_set().entries(names).finish()
    }
}
