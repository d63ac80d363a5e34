//! A pipeline's supervisor: the actor that only starts, watches, restarts and stops others.

mod books;
mod command;
mod idle;
mod line;
mod start;
mod stop;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use actix::prelude::*;
use brigade_core::books::Books;
use brigade_core::outcome::Outcome;
use brigade_core::restart::{Restart, RestartBudget};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::events::{Event, EventSender};
use crate::lane::{Home, Lanes};
use crate::plan::Plan;
use crate::status::{PipelineStatus, QueueTimes, StageState, StageStatus, Unaccounted};

pub(crate) use command::Command;
pub(crate) use idle::{IdleAs, Marks};
use line::{ConsumerEntry, Line, Producers};

/// What the actors report to their supervisor.
#[derive(Message)]
#[rtype(result = "()")]
enum Told {
    /// An actor has ended unexpectedly.
    Died { who: Who, life: u64 },
    /// A stage cannot go on.
    Failed { stage: u16, error: String },
}

/// An actor, by what it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Who {
    /// The worker with this number, of a stage.
    Worker { stage: u16, index: usize },
    /// The consumer of a queue for a stage, on a lane.
    Consumer { stage: u16, queue: u16, lane: usize },
    /// The producer of a queue for a line, on a lane.
    Producer { root: u16, queue: u16, lane: usize },
}

impl Who {
    /// The stage it works for; for a producer, the first stage of its line.
    fn stage(self) -> u16 {
        match self {
            Self::Worker { stage, .. }
            | Self::Consumer { stage, .. }
            | Self::Producer { root: stage, .. } => stage,
        }
    }
}

/// How actors reach their supervisor.
#[derive(Clone)]
pub(crate) struct Report(Addr<Tree>);

impl Report {
    /// Reports that the stage cannot go on.
    pub(crate) fn failed(&self, stage: u16, error: String) {
        self.0.do_send(Told::Failed { stage, error });
    }

    /// A guard for a new actor.
    pub(crate) fn exit(&self, who: Who, life: u64) -> Exit {
        Exit { report: self.clone(), who, life, expected: false }
    }
}

/// In each actor: informs the supervisor when it has ended, whatever happened.
pub(crate) struct Exit {
    report: Report,
    who: Who,
    /// The life of the actor; late reports from an earlier one are ignored.
    life: u64,
    expected: bool,
}

impl Exit {
    /// The actor ends by itself; there is nothing to report.
    pub(crate) fn expected(&mut self) {
        self.expected = true;
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        if !self.expected {
            self.report.0.do_send(Told::Died { who: self.who, life: self.life });
        }
    }
}

/// A stage as the supervisor sees it.
struct StageEntry {
    state: StageState,
    error: Option<String>,
    budget: RestartBudget,
    workers: usize,
}

pub(crate) struct Tree {
    plan: Arc<Plan>,
    lanes: Option<Lanes>,
    stages: Vec<StageEntry>,
    /// The lines, by their roots.
    lines: HashMap<u16, Line>,
    /// Consumers of stages that were stopped whose lanes are stuck in a call: they end when it does.
    left: Vec<ConsumerEntry>,
    producers: Arc<Producers>,
    events: EventSender,
    /// Actors that died while the line they belong to was not in `lines`.
    early_deaths: Vec<(Who, u64)>,
    lives: Arc<AtomicU64>,
    /// Lines whose number of workers is being changed, by their roots, with commands deferred until
    /// that is done. They are not in `lines` during that time.
    scaling: HashMap<u16, Vec<Command>>,
    /// Actors that were to be restarted while their line's workers were being changed.
    late_revivals: Vec<(Who, u64)>,
    /// Callers that wait for a line to start, by its root.
    awaited: HashMap<u16, command::Reply>,
    books: Books<(u16, books::Party)>,
    unaccounted: Vec<Unaccounted>,
    /// Nothing new is started; what is in flight is waited for.
    stopping: bool,
    /// Nothing is waited for any more.
    closing: bool,
    /// Dropped with it, which tells that it is gone.
    _alive: watch::Sender<()>,
}

impl Tree {
    /// The supervisor of a pipeline; `alive` is dropped with it, also if a panic ends it.
    pub(crate) fn new(
        plan: Arc<Plan>,
        events: EventSender,
        home: Home,
        alive: watch::Sender<()>,
    ) -> Self {
        let stages = plan.stages.iter().map(|stage| StageEntry {
            state: StageState::Starting,
            error: None,
            budget: RestartBudget::new(plan.restart),
            workers: stage.workers,
        });
        let producers = Producers::new(plan.queues.len());
        Self {
            stages: stages.collect(),
            lanes: Some(Lanes::start(plan.lanes, home)),
            lines: HashMap::new(),
            left: Vec::new(),
            producers,
            plan,
            events,
            early_deaths: Vec::new(),
            lives: Arc::default(),
            scaling: HashMap::new(),
            late_revivals: Vec::new(),
            awaited: HashMap::new(),
            books: Books::default(),
            unaccounted: Vec::new(),
            stopping: false,
            closing: false,
            _alive: alive,
        }
    }

    fn set_state(&mut self, stage: u16, state: StageState, error: Option<String>) {
        let entry = &mut self.stages[usize::from(stage)];
        if entry.state == state && entry.error == error {
            return;
        }
        let plan = &self.plan.stages[usize::from(stage)];
        let (name, pipeline, stats) = (&plan.name, &self.plan.pipeline, &plan.stats);
        match (state, &error) {
            (StageState::Failed, Some(error)) => {
                tracing::error!(%pipeline, stage = %name, %error, "failed");
            }
            (StageState::Running, None) => tracing::info!(%pipeline, stage = %name, "running"),
            (StageState::Stopped, _) => tracing::info!(
                %pipeline, stage = %name, received = stats.received(),
                acked = stats.count(Outcome::Acked),
                dead_letters = stats.count(Outcome::DeadLettered), "done"
            ),
            _ => tracing::debug!(%pipeline, stage = %name, %state, "state"),
        }
        (entry.state, entry.error) = (state, error.clone());
        self.events.send(Event::State {
            pipeline: self.plan.pipeline.to_string(),
            stage: name.to_string(),
            state,
            error,
        });
    }

    /// The root of the line that a stage belongs to.
    fn root_of(&self, stage: u16) -> u16 {
        let upstream = |stage: &u16| self.plan.stages[usize::from(*stage)].upstream;
        std::iter::successors(Some(stage), upstream).last().expect("the stage itself")
    }

    /// Whether an actor that has died is restarted: while what is in flight is waited for, only
    /// actors that handle it or put its outputs are.
    fn is_needed(&self, who: Who) -> bool {
        match who {
            Who::Consumer { .. } => !self.stopping,
            Who::Worker { .. } | Who::Producer { .. } => !self.closing,
        }
    }

    /// Asks the stage's budget whether, and when, something is restarted.
    fn ask_budget(&mut self, stage: u16) -> Restart {
        self.stages[usize::from(stage)].budget.failed(Instant::now().into_std())
    }

    /// Marks a stage as failed, and with it everything that is joined to it without a queue
    /// in between.
    fn fail(&mut self, stage: u16, error: String) {
        let root = self.root_of(stage);
        if self.stages[usize::from(stage)].state == StageState::Failed {
            return;
        }
        let name = Arc::clone(&self.plan.stages[usize::from(stage)].name);
        for member in self.plan.line(root) {
            let text = if member == stage {
                error.clone()
            } else {
                format!("stage `{name}`, joined to it by direct edges, has failed")
            };
            self.set_state(member, StageState::Failed, Some(text));
        }
        if let Some(line) = self.lines.get_mut(&root) {
            line.halt();
            // An actor that died last can no longer close its connection: without this, what it
            // held would be unavailable to others as long as the rest runs.
            actix::spawn(line.close_deserted());
        }
        self.tell_who_waits(root, Err(error));
    }

    /// Notifies the caller that waits for a line to start that it has, or never will.
    fn tell_who_waits(&mut self, root: u16, answer: Result<(), String>) {
        if let Some(reply) = self.awaited.remove(&root) {
            // The caller may be gone.
            let _ = reply.send(answer);
        }
    }

    fn status(&self) -> PipelineStatus {
        let numbered = self.plan.stages.iter().zip(&self.stages);
        let stages = numbered.map(|(stage, entry)| {
            let line = self.lines.get(&self.root_of(stage.index));
            let left = self.left.iter();
            let left = left.filter(|entry| entry.stage == stage.index && entry.is_open());
            let left: usize = left.map(|entry| entry.control.in_flight.load(Relaxed)).sum();
            let in_flight = left + line.map_or(0, |line| line.in_flight(stage.index));
            let (workers, error) = (entry.workers, entry.error.clone());
            StageStatus::of(&self.plan, stage, workers, entry.state, error, in_flight)
        });
        PipelineStatus {
            pipeline: self.plan.pipeline.to_string(),
            stages: stages.collect(),
            queues: self.plan.queues.iter().map(|queue| QueueTimes::of(queue)).collect(),
            unaccounted: self.unaccounted.clone(),
        }
    }

    /// The status once nothing runs any more. What came to a stage over a direct edge may still be in
    /// a call that does not end: it has been given back with the message that it came from. (That
    /// nothing vanishes on the way, the books of the workers show.)
    fn last_status(&self) -> PipelineStatus {
        let mut status = self.status();
        for stage in status.stages.iter_mut().filter(|stage| stage.fed_by.is_some()) {
            let left = stage.without_outcome();
            stage.released += u64::try_from(left).unwrap_or_default();
        }
        status
    }

    fn died(&mut self, who: Who, life: u64, ctx: &mut Context<Self>) {
        let stage = who.stage();
        let root = self.root_of(stage);
        let state = self.stages[usize::from(stage)].state;
        let failed = state == StageState::Failed;
        if !failed && !self.lines.contains_key(&root) {
            // A stopped line has no actors to restart.
            if state != StageState::Stopped {
                self.early_deaths.push((who, life));
            }
            return;
        }
        let current = self.lines.get(&root).is_some_and(|line| line.is_current(who, life));
        if failed && let Some(line) = self.lines.get(&root) {
            // Makes what it held available to others.
            actix::spawn(line.close_deserted());
        }
        if failed || !current || !self.is_needed(who) {
            return;
        }
        let name = Arc::clone(&self.plan.stages[usize::from(stage)].name);
        match self.ask_budget(stage) {
            Restart::GiveUp => {
                let policy = &self.plan.restart;
                let error = format!(
                    "its actors died more than {} times in {:?}: the log has why; `restart.max_restarts` and \
                     `restart.period` set how often they may",
                    policy.max_restarts, policy.period
                );
                self.fail(stage, error);
            }
            Restart::After(back_off) => {
                self.plan.stages[usize::from(stage)].stats.restarts.add(1);
                tracing::warn!(
                    pipeline = %self.plan.pipeline, stage = %name, ?who, ?back_off,
                    "an actor died; it is started again"
                );
                self.events.send(Event::Restart {
                    pipeline: self.plan.pipeline.to_string(),
                    stage: name.to_string(),
                    actor: who.kind().to_owned(),
                });
                ctx.run_later(back_off, move |tree, ctx| tree.revive(who, life, ctx));
            }
        }
    }
}

impl Who {
    fn kind(self) -> &'static str {
        match self {
            Self::Worker { .. } => "worker",
            Self::Consumer { .. } => "consumer",
            Self::Producer { .. } => "producer",
        }
    }
}

impl Actor for Tree {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let roots = self.plan.stages.iter().filter(|stage| stage.upstream.is_none());
        for root in roots.map(|stage| stage.index).collect::<Vec<_>>() {
            self.start_line(root, 0, ctx);
        }
        self.close_books(ctx);
    }
}

impl Handler<Told> for Tree {
    type Result = ();

    fn handle(&mut self, told: Told, ctx: &mut Self::Context) {
        match told {
            Told::Died { who, life } => self.died(who, life, ctx),
            Told::Failed { stage, error } => self.fail(stage, error),
        }
    }
}
