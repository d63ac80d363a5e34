//! Detects when a pipeline has nothing left to do.
//!
//! A stage is finished when its inputs are at their end or empty for every process, nothing of it
//! is in flight, and every stage that writes its inputs is finished. Stages that run in other
//! processes show this by a durable mark in the shared state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use actix::prelude::*;
use brigade_core::connector::{ConnectorError, ErrorKind, Lag};
use brigade_core::state::{StateStore, StoreOp};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Tree;
use super::line::ConsumerEntry;
use crate::plan::Plan;
use crate::status::StageState;

/// How often it is checked.
const LOOK: Duration = Duration::from_millis(25);
/// How long nothing must move before the missing stages are logged, and how often after that.
const TELL: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// How long it waits for a state that cannot be written.
const AWAY: Duration = Duration::from_millis(500);

/// The watch over a run that is to end when nothing is left.
struct Watch {
    plan: Arc<Plan>,
    /// For queues that cannot tell whether they are empty: how long nothing may have come.
    quiet: Option<Duration>,
    marks: Marks,
    /// The count at the last check, and since when it has not changed.
    counted: (u64, Instant),
    /// When the missing stages were last logged.
    told: Option<Instant>,
    reply: Option<oneshot::Sender<Result<IdleAs, String>>>,
}

/// Why a wait until nothing is left to do has ended.
pub(crate) enum IdleAs {
    /// Nothing is left; with the run in which that was so.
    Finished(Marks),
    /// What is left cannot be done: a stage has failed, or the pipeline is stopping.
    Hopeless,
}

impl Tree {
    /// Answers when nothing is left to do, or when that has become impossible; ends when nobody
    /// waits for the answer any more.
    pub(super) fn wait_until_idle(
        &mut self,
        quiet: Option<Duration>,
        run: Option<Marks>,
        reply: oneshot::Sender<Result<IdleAs, String>>,
        ctx: &mut Context<Self>,
    ) {
        if reply.is_closed() {
            return;
        }
        let plan = Arc::clone(&self.plan);
        let begin = async move {
            let marks = match &run {
                Some(run) => run.again().await,
                None => Marks::begin(&plan).await,
            };
            (marks, run, plan)
        };
        ctx.spawn(begin.into_actor(self).map(move |(marks, run, plan), tree, ctx| match marks {
            Err(error) if error.is_transient() => {
                ctx.run_later(AWAY, move |tree, ctx| tree.wait_until_idle(quiet, run, reply, ctx));
            }
            Err(error) => drop(reply.send(Err(error.to_string()))),
            Ok(marks) => {
                let counted = (0, Instant::now());
                let watch = Watch { plan, quiet, marks, counted, told: None, reply: Some(reply) };
                tree.look_whether_idle(watch, ctx);
            }
        }));
    }

    fn look_whether_idle(&mut self, mut watch: Watch, ctx: &mut Context<Self>) {
        if watch.reply.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return;
        }
        let failed = self.stages.iter().any(|stage| stage.state == StageState::Failed);
        if failed || self.stopping {
            // What is left cannot be done: the run ends, and its exit code says so.
            watch.answer(Ok(IdleAs::Hopeless));
            return;
        }
        let (count, started) = (self.plan.moved(), self.all_started());
        if watch.counted.0 != count {
            watch.counted = (count, Instant::now());
        }
        let entries: Vec<ConsumerEntry> =
            self.lines.values().flat_map(|line| line.consumers().cloned()).collect();
        let look = async move {
            let seen = watch.look(&entries, started).await;
            (seen, watch)
        };
        ctx.spawn(look.into_actor(self).map(move |(seen, mut watch), tree, ctx| match seen {
            // The observations of all queues, made one after the other, held at one and the same
            // time.
            Ok(Some(seen)) if tree.plan.moved() == count => {
                watch.tell(&seen.missing);
                tree.keep_what_is_finished(seen, watch, ctx);
            }
            Ok(_) => {
                ctx.run_later(LOOK, move |tree, ctx| tree.look_whether_idle(watch, ctx));
            }
            Err(error) => watch.answer(Err(error)),
        }));
    }

    fn keep_what_is_finished(&mut self, seen: Seen, watch: Watch, ctx: &mut Context<Self>) {
        let all = seen.finished.len() == self.plan.stages.len();
        let keep = async move { (watch.marks.write(&seen).await, watch) };
        ctx.spawn(keep.into_actor(self).map(move |(kept, mut watch), _, ctx| match kept {
            Ok(()) if all => {
                let run = watch.marks.clone();
                watch.answer(Ok(IdleAs::Finished(run)));
            }
            Err(error) if !error.is_transient() => watch.answer(Err(error.to_string())),
            _ => {
                ctx.run_later(LOOK, move |tree, ctx| tree.look_whether_idle(watch, ctx));
            }
        }));
    }

    fn all_started(&self) -> bool {
        let started = |state| !matches!(state, StageState::Starting | StageState::Draining);
        self.scaling.is_empty() && self.stages.iter().all(|stage| started(stage.state))
    }
}

/// The result of one check.
struct Seen {
    /// The stages of this process that are finished, if nothing has moved meanwhile.
    finished: BTreeSet<Arc<str>>,
    /// Those that were already marked.
    marked: BTreeSet<String>,
    /// Unfinished stages of other processes that all stages here wait for.
    missing: BTreeSet<Arc<str>>,
}

impl Watch {
    /// Checks all queues; `None` if the state cannot be read now.
    async fn look(&self, entries: &[ConsumerEntry], started: bool) -> Result<Option<Seen>, String> {
        // First the marks of others, then the queues: what they wrote before their mark is seen.
        let marked = match self.marks.read().await {
            Ok(marked) => marked,
            Err(error) => return not_yet(&error).map(|_| None),
        };
        let mut idle = BTreeSet::new();
        for stage in &self.plan.stages {
            let own = entries.iter().filter(|entry| entry.stage == stage.index);
            let mut own_idle = started || marked.contains(&*stage.name);
            for entry in own {
                own_idle = own_idle && self.is_idle(entry).await?;
            }
            if own_idle {
                idle.insert(Arc::clone(&stage.name));
            }
        }
        let here = |name: &Arc<str>| self.plan.stages.iter().any(|stage| stage.name == *name);
        let upstream = idle.iter().flat_map(|stage| self.plan.upstream_of(stage));
        let missing = upstream.filter(|up| !here(up) && !marked.contains(&***up));
        let missing = match idle.len() == self.plan.stages.len() {
            true => missing.cloned().collect(),
            false => BTreeSet::new(),
        };
        Ok(Some(Seen { finished: self.finished(idle, &marked), marked, missing }))
    }

    /// The stages it waits for may not be running anywhere: logs them when nothing has moved for
    /// some time.
    fn tell(&mut self, missing: &BTreeSet<Arc<str>>) {
        let due = self.told.map_or(self.counted.1 + TELL.0, |told| told + TELL.1);
        if missing.is_empty() || Instant::now() < due {
            return;
        }
        self.told = Some(Instant::now());
        let pipeline = &self.plan.pipeline;
        let stages = missing.iter().map(|stage| &**stage).collect::<Vec<_>>().join(", ");
        tracing::info!(
            %pipeline,
            "nothing is left to do here; waiting until stages {stages} are finished, in other processes"
        );
    }

    async fn is_idle(&self, entry: &ConsumerEntry) -> Result<bool, String> {
        if entry.control.in_flight.load(Relaxed) > 0 {
            return Ok(false);
        }
        if entry.control.ended.load(Relaxed) {
            return Ok(true);
        }
        let lag = match entry.consumer.lag().await {
            Ok(lag) => lag,
            // It is being reopened.
            Err(error) if error.kind() == ErrorKind::Closed => return Ok(false),
            Err(error) => return not_yet(&error),
        };
        let Lag { ready, delayed, in_flight, at_end, .. } = lag;
        if at_end {
            return Ok(in_flight.unwrap_or(0) == 0 && delayed.unwrap_or(0) == 0);
        }
        match (ready, self.quiet) {
            (Some(ready), _) => {
                Ok(ready == 0 && delayed.unwrap_or(0) == 0 && in_flight.unwrap_or(0) == 0)
            }
            // It will come to its end by itself.
            (None, _) if entry.consumer.features().finite => Ok(false),
            (None, Some(quiet)) => Ok(self.counted.1.elapsed() >= quiet),
            (None, None) => Err(format!(
                "a queue of stage `{}` cannot tell whether it is empty: give a quiet time, as in \
                 `--until-idle=5s`",
                self.plan.stages[usize::from(entry.stage)].name
            )),
        }
    }

    /// Those of the idle stages whose upstream stages are all finished: the largest such set, so
    /// that stages in a circle of queues finish together.
    fn finished(&self, idle: BTreeSet<Arc<str>>, others: &BTreeSet<String>) -> BTreeSet<Arc<str>> {
        let mut finished = idle;
        loop {
            let before = finished.len();
            let all = finished.clone();
            finished.retain(|stage| {
                let upstream = self.plan.upstream_of(stage);
                upstream.iter().all(|up| all.contains(up) || others.contains(&**up))
            });
            if finished.len() == before {
                return finished;
            }
        }
    }

    fn answer(&mut self, answer: Result<IdleAs, String>) {
        if let Some(reply) = self.reply.take() {
            // The caller may be gone.
            let _ = reply.send(answer);
        }
    }
}

/// A state that cannot be read or written now is tried again; any other error ends the watch.
fn not_yet(error: &ConnectorError) -> Result<bool, String> {
    if error.is_transient() { Ok(false) } else { Err(error.to_string()) }
}

/// The durable marks of finished stages, for one run over all processes that share the state.
///
/// A run begins with the first process that starts after the last run has finished as a whole; its
/// number is one higher. A mark is the number of the run in which the stage finished. A process
/// that starts removes the marks of its own stages: another live process that had written them
/// writes them again, and those of a process that has ended say nothing about what has come since.
#[derive(Clone)]
pub(crate) struct Marks {
    state: Arc<dyn StateStore>,
    space: Arc<str>,
    run: u64,
}

const RUN: &str = "~run";

/// The number of a run, as it is kept.
fn number(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

impl Marks {
    async fn begin(plan: &Plan) -> Result<Self, ConnectorError> {
        let state = Arc::clone(&plan.env.state);
        let space: Arc<str> = format!("finished/{}", plan.pipeline).into();
        let kept = state.scan(&space, "").await?;
        let run = kept.iter().find(|(name, _)| name == RUN).and_then(|(_, n)| number(n));
        let run = match run {
            None => 1,
            Some(run) => {
                let finished = |stage: &Arc<str>| {
                    kept.iter().any(|(name, n)| **name == **stage && number(n) == Some(run))
                };
                if plan.all_stages.keys().all(finished) { run + 1 } else { run }
            }
        };
        let value = run.to_string().into();
        let put = StoreOp::Put { space: Arc::clone(&space), key: RUN.to_owned(), value };
        let mark = |name: String| StoreOp::Delete { space: Arc::clone(&space), key: name };
        let own = plan.stages.iter().map(|stage| mark(stage.name.to_string()));
        state.commit(own.chain([put]).collect()).await?;
        Ok(Self { state, space, run })
    }

    /// The same for another look of who has begun this run, or the one after it, if that has begun by
    /// now: finished as it may be, it does not begin another one.
    async fn again(&self) -> Result<Self, ConnectorError> {
        let kept = self.state.load(&self.space, RUN).await?;
        let run = kept.and_then(|bytes| number(&bytes)).unwrap_or(self.run);
        Ok(Self { run, ..self.clone() })
    }

    /// The stages that are marked as finished in this run, by any process.
    async fn read(&self) -> Result<BTreeSet<String>, ConnectorError> {
        let run = self.run.to_string();
        let kept = self.state.scan(&self.space, "").await?;
        let marked = kept.into_iter().filter(|(name, n)| name != RUN && **n == *run.as_bytes());
        Ok(marked.map(|(name, _)| name).collect())
    }

    /// Marks the finished stages that are not marked yet.
    async fn write(&self, seen: &Seen) -> Result<(), ConnectorError> {
        let fresh = seen.finished.iter().filter(|stage| !seen.marked.contains(&***stage));
        let fresh: Vec<&Arc<str>> = fresh.collect();
        if fresh.is_empty() {
            return Ok(());
        }
        let put = |stage: &Arc<str>| StoreOp::Put {
            space: Arc::clone(&self.space),
            key: stage.to_string(),
            value: self.run.to_string().into(),
        };
        self.state.commit(fresh.into_iter().map(put).collect()).await
    }
}
