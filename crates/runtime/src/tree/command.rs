//! Commands to a running pipeline.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use futures_util::future::{OptionFuture, join_all};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Tree;
use super::idle::{IdleAs, Marks};
use super::line::{ConsumerEntry, Line};
use super::start::StartFailure;
use super::stop::CLOSE;
use crate::actors::Mode;
use crate::status::{PipelineStatus, QueueDepth, StageState, Stopped};

/// How often it is checked whether a stage that is to be scaled has resolved what it has in flight.
const LOOK: Duration = Duration::from_millis(2);
/// How long a queue may take to report its depth: metrics requests must not wait long.
const ASK: Duration = Duration::from_secs(4);

/// A request, with the channel for its answer.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) enum Command {
    /// The current status.
    Status(oneshot::Sender<PipelineStatus>),
    /// How many messages wait in the queues.
    Depths(oneshot::Sender<Vec<QueueDepth>>),
    /// Stop pulling for a stage.
    Pause { stage: String, reply: Reply },
    /// Stop pulling for a stage, and answer when nothing of it is in flight.
    Drain { stage: String, reply: Reply },
    /// Like `Drain`, at most until the deadline; what is unresolved by then is given back, and its
    /// actors end.
    End { stage: String, deadline: Option<Duration>, reply: Reply },
    /// Pull again for a stage; start it again if it has ended.
    Resume { stage: String, reply: Reply },
    /// Change a stage's number of workers.
    Scale { stage: String, workers: usize, reply: Reply },
    /// Stop pulling, resolve everything, at most until a deadline, and end.
    Stop { deadline: Option<Duration>, reply: oneshot::Sender<Stopped> },
    /// Wait until nothing is left to do, within the run of an earlier such request, if there was one.
    Idle {
        quiet: Option<Duration>,
        run: Option<Marks>,
        reply: oneshot::Sender<Result<IdleAs, String>>,
    },
    /// Kill an actor of a stage, as if by a defect in Brigade.
    Crash { stage: String, actor: &'static str, reply: Reply },
    /// Make a stage do something wrong, once.
    #[cfg(feature = "sabotage")]
    Sabotage { stage: String, defect: u8, reply: Reply },
}

pub(crate) type Reply = oneshot::Sender<Result<(), String>>;

impl Handler<Command> for Tree {
    type Result = ();

    fn handle(&mut self, command: Command, ctx: &mut Self::Context) {
        let Some(command) = self.put_off(command) else { return };
        // The caller may be gone by the time of the answer; that is never an error here.
        match command {
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Depths(reply) => self.depths(reply, ctx),
            Command::Pause { stage, reply } => self.pause_and_tell(&stage, reply, ctx),
            Command::Drain { stage, reply } => self.drain(&stage, reply, ctx),
            Command::End { stage, deadline, reply } => self.end_stage(&stage, deadline, reply, ctx),
            Command::Resume { stage, reply } => drop(reply.send(self.resume(&stage, ctx))),
            Command::Scale { stage, workers, reply } => self.scale(&stage, workers, reply, ctx),
            Command::Stop { deadline, reply } => self.stop(deadline, reply, ctx),
            #[cfg(feature = "sabotage")]
            Command::Sabotage { stage, defect, reply } => {
                drop(reply.send(self.sabotage(&stage, defect)));
            }
            Command::Idle { quiet, run, reply } => self.wait_until_idle(quiet, run, reply, ctx),
            Command::Crash { actor: "supervisor", .. } => panic!("killed by a test"),
            Command::Crash { stage, actor, reply } => {
                let crashed = self.stage_number(&stage).and_then(|number| {
                    let line = self.lines.get(&self.root_of(number));
                    let crashed = line.is_some_and(|line| line.crash(number, actor));
                    crashed.then_some(()).ok_or_else(|| format!("stage `{stage}` has no {actor}"))
                });
                drop(reply.send(crashed));
            }
        }
    }
}

impl Command {
    /// The stage that it changes.
    fn stage(&self) -> Option<&str> {
        match self {
            Self::Pause { stage, .. }
            | Self::Drain { stage, .. }
            | Self::End { stage, .. }
            | Self::Resume { stage, .. }
            | Self::Scale { stage, .. }
            | Self::Crash { stage, .. } => Some(stage),
            _ => None,
        }
    }
}

impl Tree {
    /// Defers commands that would change a line whose workers are being replaced: until that is
    /// done, there is no actor to receive them.
    fn put_off(&mut self, command: Command) -> Option<Command> {
        let stage = command.stage().and_then(|name| self.stage_number(name).ok());
        match stage.and_then(|stage| self.scaling.get_mut(&self.root_of(stage))) {
            Some(waiting) => {
                waiting.push(command);
                None
            }
            None => Some(command),
        }
    }

    pub(super) fn stage_number(&self, name: &str) -> Result<u16, String> {
        let found = self.plan.stages.iter().find(|stage| *stage.name == *name);
        found.map(|stage| stage.index).ok_or_else(|| {
            let names: Vec<_> = self.plan.stages.iter().map(|stage| stage.name.as_ref()).collect();
            format!("no stage `{name}` here; there are: {}", names.join(", "))
        })
    }

    #[cfg(feature = "sabotage")]
    fn sabotage(&self, name: &str, defect: u8) -> Result<(), String> {
        let stage = self.stage_number(name)?;
        self.plan.stages[usize::from(stage)].sabotage.order(defect);
        let line = self.lines.get(&self.root_of(stage)).ok_or("it has not started")?;
        for (_, port) in line.ports_of_all().filter(|(of, _)| *of == stage) {
            port.sabotage.order(defect);
        }
        Ok(())
    }

    /// The number of a stage, if it is in one of these states and not about to leave it.
    fn in_state(&self, name: &str, states: &[StageState]) -> Result<u16, String> {
        let stage = self.stage_number(name)?;
        let state = self.stages[usize::from(stage)].state;
        if self.stopping || !states.contains(&state) {
            let wanted: Vec<_> = states.iter().map(ToString::to_string).collect();
            let wanted = wanted.join(" or ");
            return Err(format!("stage `{name}` is {state}; for this it has to be {wanted}"));
        }
        Ok(stage)
    }

    /// The numbers of a stage and its root, if the stage may be paused, resumed or scaled now.
    fn startable(&self, name: &str, states: &[StageState]) -> Result<(u16, u16), String> {
        let stage = self.in_state(name, states)?;
        let root = self.root_of(stage);
        if root != stage && states.contains(&StageState::Paused) {
            let upstream = &self.plan.stages[usize::from(root)].name;
            tracing::debug!(%name, %upstream, "a stage fed directly goes with its line");
        }
        Ok((stage, root))
    }

    /// Stops pulling for the line of a stage; returns its root.
    fn pause(&mut self, name: &str) -> Result<u16, String> {
        let (_, root) = self.startable(name, &[StageState::Running, StageState::Paused])?;
        if let Some(line) = self.lines.get(&root) {
            line.set_mode(Mode::Paused);
        }
        for member in self.plan.line(root) {
            self.set_state(member, StageState::Paused, None);
        }
        Ok(root)
    }

    /// Queries each queue once per stage; one that cannot be queried is left out.
    fn depths(&self, reply: oneshot::Sender<Vec<QueueDepth>>, ctx: &mut Context<Self>) {
        let entries = self.lines.values().flat_map(Line::consumers);
        let mut asked = std::collections::BTreeMap::new();
        for entry in entries {
            asked.entry((entry.stage, entry.place().0)).or_insert_with(|| entry.clone());
        }
        let plan = Arc::clone(&self.plan);
        let ask = async move {
            let plan = &plan;
            let depth = |((stage, queue), entry): ((u16, u16), ConsumerEntry)| async move {
                let lag = tokio::time::timeout(ASK, entry.consumer.lag()).await.ok()?.ok()?;
                Some(QueueDepth {
                    pipeline: plan.pipeline.to_string(),
                    queue: plan.queues[usize::from(queue)].spec.name.to_string(),
                    stage: plan.stages[usize::from(stage)].name.to_string(),
                    lag,
                })
            };
            // Concurrently: a server that does not answer does not delay the others.
            let depths =
                join_all(asked.into_iter().map(depth)).await.into_iter().flatten().collect();
            // The caller may be gone.
            let _ = reply.send(depths);
        };
        ctx.spawn(ask.into_actor(self));
    }

    /// Answers when no more is pulled.
    fn pause_and_tell(&mut self, name: &str, reply: Reply, ctx: &mut Context<Self>) {
        match self.pause(name) {
            Ok(_) => self.tell_when_paused(name.to_owned(), Line::has_heard, reply, ctx),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn drain(&mut self, name: &str, reply: Reply, ctx: &mut Context<Self>) {
        match self.pause(name) {
            Ok(_) => self.tell_when_paused(name.to_owned(), Line::is_quiet, reply, ctx),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Answers once the line of a paused stage fulfils a condition; or that it is paused no longer, as
    /// another call has resumed or stopped it, or it has failed: the condition may never be met then.
    fn tell_when_paused(
        &mut self,
        name: String,
        is_so: fn(&Line) -> bool,
        reply: Reply,
        ctx: &mut Context<Self>,
    ) {
        let line = |stage: u16| self.lines.get(&self.root_of(stage));
        let answer = match self.in_state(&name, &[StageState::Paused]) {
            Ok(stage) if line(stage).is_none_or(is_so) => Ok(()),
            Ok(_) => {
                ctx.run_later(LOOK, move |tree, ctx| {
                    tree.tell_when_paused(name, is_so, reply, ctx);
                });
                return;
            }
            Err(error) => Err(error),
        };
        // The caller may be gone.
        let _ = reply.send(answer);
    }

    fn end_stage(
        &mut self,
        name: &str,
        deadline: Option<Duration>,
        reply: Reply,
        ctx: &mut Context<Self>,
    ) {
        let root = match self.pause(name) {
            Ok(root) => root,
            Err(error) => return drop(reply.send(Err(error))),
        };
        for member in self.plan.line(root) {
            self.set_state(member, StageState::Draining, None);
        }
        let until = deadline.and_then(|deadline| Instant::now().checked_add(deadline));
        self.when(root, until, Line::is_quiet, ctx, move |tree, ctx| {
            if let Some(line) = tree.lines.get(&root) {
                line.set_mode(Mode::Stopping);
            }
            tree.end_when_closed(root, Instant::now(), reply, ctx);
        });
    }

    /// Ends the actors of a line once its consumers have ended, at most [`CLOSE`] after `closing`: one
    /// whose lane is stuck in a call does not.
    fn end_when_closed(
        &mut self,
        root: u16,
        closing: Instant,
        reply: Reply,
        ctx: &mut Context<Self>,
    ) {
        if self.stages[usize::from(root)].state == StageState::Failed {
            let name = &self.plan.stages[usize::from(root)].name;
            return drop(reply.send(Err(format!("stage `{name}` is {}", StageState::Failed))));
        }
        let open = self.lines.get(&root).is_some_and(|line| !line.is_closed());
        if open && closing.elapsed() < CLOSE {
            ctx.run_later(LOOK, move |tree, ctx| tree.end_when_closed(root, closing, reply, ctx));
            return;
        }
        let close = self.lines.remove(&root).map(|line| {
            let close = line.close_open();
            self.left.retain(ConsumerEntry::is_open);
            self.left.extend(line.consumers().filter(|entry| entry.is_open()).cloned());
            line.end();
            tokio::time::timeout(CLOSE, close)
        });
        if open {
            let name = &self.plan.stages[usize::from(root)].name;
            tracing::warn!(
                stage = %name,
                "a call has not ended, or a queue does not answer: what is held comes again"
            );
        }
        let close = OptionFuture::from(close).into_actor(self);
        ctx.spawn(close.map(move |_, tree, _| {
            for member in tree.plan.line(root) {
                tree.set_state(member, StageState::Stopped, None);
            }
            drop(reply.send(Ok(())));
        }));
    }

    /// Continues once a line fulfils a condition, or the deadline has passed.
    fn when(
        &mut self,
        root: u16,
        until: Option<Instant>,
        is_so: fn(&Line) -> bool,
        ctx: &mut Context<Self>,
        then: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
    ) {
        let late = until.is_some_and(|until| Instant::now() >= until);
        if late || self.lines.get(&root).is_none_or(is_so) {
            then(self, ctx);
        } else {
            ctx.run_later(LOOK, move |tree, ctx| tree.when(root, until, is_so, ctx, then));
        }
    }

    fn resume(&mut self, name: &str, ctx: &mut Context<Self>) -> Result<(), String> {
        let states = [StageState::Running, StageState::Paused, StageState::Stopped];
        let (stage, root) = self.startable(name, &states)?;
        if self.stages[usize::from(stage)].state == StageState::Stopped {
            for member in self.plan.line(root) {
                self.set_state(member, StageState::Starting, None);
            }
            self.start_line(root, 0, ctx);
            return Ok(());
        }
        if self.stages[usize::from(stage)].state == StageState::Paused {
            if let Some(line) = self.lines.get(&root) {
                line.set_mode(Mode::Running);
            }
            for member in self.plan.line(root) {
                self.set_state(member, StageState::Running, None);
            }
        }
        Ok(())
    }

    fn scale(&mut self, name: &str, workers: usize, reply: Reply, ctx: &mut Context<Self>) {
        const WORKERS_MAX: usize = 1024;
        let (stage, root) = match self.startable(name, &[StageState::Running]) {
            Ok(found) => found,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let plan = &self.plan.stages[usize::from(stage)];
        let one = plan.order == brigade_core::connector::Order::Queue;
        if workers == 0 || workers > WORKERS_MAX || (one && workers != 1) {
            let range =
                if one { "1, for its order".to_owned() } else { format!("1 to {WORKERS_MAX}") };
            return drop(reply.send(Err(format!("stage `{name}` may have {range} workers"))));
        }
        self.scale_when_empty(Scale { name: name.to_owned(), stage, root, workers, reply }, ctx);
    }

    fn scale_when_empty(&mut self, scale: Scale, ctx: &mut Context<Self>) {
        // Another change of the same line goes first.
        if !self.scaling.contains_key(&scale.root) {
            // It may have been paused or stopped since, or have failed.
            if let Err(error) = self.startable(&scale.name, &[StageState::Running]) {
                return drop(scale.reply.send(Err(error)));
            }
            let Some(line) = self.lines.get(&scale.root) else {
                let error =
                    format!("stage `{}` is being started: try again when it runs", scale.name);
                return drop(scale.reply.send(Err(error)));
            };
            line.keep_paused();
            if line.is_quiet() {
                line.set_mode(Mode::Stopping);
                self.scaling.insert(scale.root, Vec::new());
                return self.scale_when_closed(scale, ctx);
            }
        }
        ctx.run_later(LOOK, move |tree, ctx| tree.scale_when_empty(scale, ctx));
    }

    fn scale_when_closed(&mut self, scale: Scale, ctx: &mut Context<Self>) {
        let closed = self.lines.get(&scale.root).is_none_or(|line| line.is_closed());
        if !closed {
            ctx.run_later(LOOK, move |tree, ctx| tree.scale_when_closed(scale, ctx));
            return;
        }
        let Some(mut line) = self.lines.remove(&scale.root) else {
            self.scaled(scale, Err("the pipeline is stopping".to_owned()), ctx);
            return;
        };
        let (stage, root, workers) = (scale.stage, scale.root, scale.workers);
        let scaled = async move { (line.scale(stage, workers).await, line) };
        ctx.spawn(scaled.into_actor(self).map(move |(result, line), tree, ctx| {
            tree.stages[usize::from(stage)].workers = workers;
            match result {
                Ok(()) => {
                    tree.lines.insert(root, line);
                    tree.scaled(scale, Ok(()), ctx);
                }
                Err(failure) => tree.not_scaled(scale, line, failure, ctx),
            }
        }));
    }

    /// A line whose workers could not be replaced has none: it is started like a new one, and the
    /// caller is answered once it is up.
    fn not_scaled(
        &mut self,
        scale: Scale,
        line: Line,
        failure: StartFailure,
        ctx: &mut Context<Self>,
    ) {
        let root = scale.root;
        ctx.spawn(line.close_deserted().into_actor(self));
        line.end();
        if self.stopping || self.stages[usize::from(root)].state == StageState::Failed {
            return self.scaled(scale, Err(failure.error), ctx);
        }
        for member in self.plan.line(root) {
            self.set_state(member, StageState::Starting, None);
        }
        self.awaited.insert(root, scale.reply);
        self.line_not_started(root, failure, 1, ctx);
        self.hear_what_was_put_off(root, ctx);
    }

    /// The line is back, and gets the commands that were deferred.
    fn scaled(&mut self, scale: Scale, answer: Result<(), String>, ctx: &mut Context<Self>) {
        let failed = self.stages[usize::from(scale.root)].state == StageState::Failed;
        if let Some(line) = self.lines.get_mut(&scale.root)
            && (failed || self.stopping)
        {
            line.halt();
        }
        // The caller may be gone.
        let _ = scale.reply.send(answer);
        self.hear_of_early_deaths(ctx);
        self.hear_what_was_put_off(scale.root, ctx);
    }

    fn hear_what_was_put_off(&mut self, root: u16, ctx: &mut Context<Self>) {
        let commands = self.scaling.remove(&root).unwrap_or_default();
        for (who, life) in std::mem::take(&mut self.late_revivals) {
            self.revive(who, life, ctx);
        }
        for command in commands {
            self.handle(command, ctx);
        }
    }
}

/// A change of a stage's number of workers that waits for the stage to be empty.
struct Scale {
    name: String,
    stage: u16,
    root: u16,
    workers: usize,
    reply: Reply,
}
