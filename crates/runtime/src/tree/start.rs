//! Starting lines, and restarting what died.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use brigade_core::connector::{ConnectorError, ErrorKind};
use brigade_core::restart::Restart;
use brigade_core::retry::doubled;

use super::line::{Ground, Line, Opened, close_consumer};
use super::{Report, Tree, Who};
use crate::status::StageState;

/// Back-off while something that a line needs is not there yet.
const AWAY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// Why a line did not start.
pub(super) struct StartFailure {
    /// The stage to blame.
    pub(super) stage: u16,
    pub(super) error: String,
    pub(super) kind: StartFailureKind,
}

/// What to do about a line that did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StartFailureKind {
    /// Something is not there yet (a server): wait for it, however long it takes.
    Away,
    /// `init` failed: retry within the budget.
    Init,
    /// Retrying is of no use.
    Permanent,
}

impl StartFailure {
    /// A queue could not be opened.
    pub(super) fn connection(stage: u16, error: &ConnectorError) -> Self {
        let kind = match error.kind() {
            ErrorKind::Transient => StartFailureKind::Away,
            _ => StartFailureKind::Permanent,
        };
        Self { stage, error: error.to_string(), kind }
    }
}

impl Tree {
    /// Starts a line; `tried` counts the attempts since something was missing.
    pub(super) fn start_line(&mut self, root: u16, tried: u32, ctx: &mut Context<Self>) {
        let Some(lanes) = &self.lanes else { return };
        let ground = Ground {
            plan: Arc::clone(&self.plan),
            lanes: lanes.all(),
            producers: Arc::clone(&self.producers),
            report: Report(ctx.address()),
            events: self.events.clone(),
            workers: self.stages.iter().map(|stage| stage.workers).collect(),
            lives: Arc::clone(&self.lives),
        };
        let start = Line::start(root, ground).into_actor(self);
        ctx.spawn(start.map(move |result, tree, ctx| match result {
            Ok(line) => tree.line_started(root, line, ctx),
            Err(failure) => tree.line_not_started(root, failure, tried + 1, ctx),
        }));
    }

    fn line_started(&mut self, root: u16, mut line: Line, ctx: &mut Context<Self>) {
        let answer = match self.stopping {
            true => Err("the pipeline is stopping".to_owned()),
            false => Ok(()),
        };
        if self.stopping {
            line.halt();
        }
        let members = self.plan.line(root);
        self.lines.insert(root, line);
        for stage in members {
            if self.stages[usize::from(stage)].state == StageState::Starting {
                self.set_state(stage, StageState::Running, None);
            }
        }
        self.tell_who_waits(root, answer);
        self.hear_of_early_deaths(ctx);
    }

    pub(super) fn hear_of_early_deaths(&mut self, ctx: &mut Context<Self>) {
        for (who, life) in std::mem::take(&mut self.early_deaths) {
            self.died(who, life, ctx);
        }
    }

    pub(super) fn line_not_started(
        &mut self,
        root: u16,
        failure: StartFailure,
        tried: u32,
        ctx: &mut Context<Self>,
    ) {
        if self.stopping {
            // It may have failed only because its lane has ended; it is not started again anyway.
            return self.tell_who_waits(root, Err("the pipeline is stopping".to_owned()));
        }
        let StartFailure { stage, error, kind } = failure;
        let again = match kind {
            StartFailureKind::Permanent => Restart::GiveUp,
            StartFailureKind::Init => self.ask_budget(stage),
            StartFailureKind::Away => Restart::After(doubled(AWAY.0, AWAY.1, tried)),
        };
        match again {
            Restart::GiveUp => self.fail(stage, error),
            Restart::After(back_off) => {
                self.plan.stages[usize::from(stage)].stats.restarts.add(1);
                let name = Arc::clone(&self.plan.stages[usize::from(stage)].name);
                tracing::warn!(
                    pipeline = %self.plan.pipeline, stage = %name, %error, ?back_off,
                    "not started; trying again"
                );
                self.set_state(stage, StageState::Starting, Some(error));
                ctx.run_later(back_off, move |tree, ctx| {
                    if !tree.stopping {
                        tree.start_line(root, tried, ctx);
                    }
                });
            }
        }
    }

    /// Restarts an actor that died in this life, unless it has been replaced.
    pub(super) fn revive(&mut self, who: Who, life: u64, ctx: &mut Context<Self>) {
        let stage = who.stage();
        let root = self.root_of(stage);
        if !self.is_needed(who) || self.stages[usize::from(stage)].state == StageState::Failed {
            return;
        }
        let Some(line) = self.lines.get_mut(&root) else {
            if self.scaling.contains_key(&root) {
                self.late_revivals.push((who, life));
            }
            return;
        };
        if !line.is_current(who, life) {
            return;
        }
        match who {
            Who::Worker { .. } => line.start_worker(who),
            Who::Producer { .. } => line.start_producer(who),
            Who::Consumer { .. } => {
                let Some(reopen) = line.reopen(who) else { return };
                ctx.spawn(reopen.into_actor(self).map(move |opened, tree, ctx| {
                    tree.reopened(who, life, opened, ctx);
                }));
            }
        }
    }

    /// Called when a consumer that died has been reopened; ignored if it has been replaced.
    fn reopened(&mut self, who: Who, life: u64, opened: Opened, ctx: &mut Context<Self>) {
        let Who::Consumer { stage, .. } = who else { return };
        let root = self.root_of(stage);
        let line = self.lines.get_mut(&root);
        let line = line.filter(|line| line.is_current(who, life));
        match (opened, line) {
            (Ok(consumer), Some(line)) => line.replace_consumer(who, consumer),
            (Ok(consumer), None) => {
                let close = async move { close_consumer(&*consumer).await };
                ctx.spawn(close.into_actor(self));
            }
            (Err(_), None) => {}
            (Err(error), Some(_)) if error.is_transient() => {
                tracing::warn!(%error, "a consumer is not back yet; trying again");
                ctx.run_later(AWAY.1 / 10, move |tree, ctx| tree.revive(who, life, ctx));
            }
            (Err(error), Some(_)) => self.fail(stage, error.to_string()),
        }
    }
}
