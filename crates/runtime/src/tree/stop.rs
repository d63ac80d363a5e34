//! Draining and stopping: consumers first, then what is in flight, then producers, then the rest.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use actix::prelude::*;
use brigade_core::connector::Producer;
use brigade_core::outcome::Outcome;
use futures_util::future::{join, join_all};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Tree;
use super::line::{ConsumerEntry, Line};
use crate::actors::Mode;
use crate::status::{StageState, Stopped};

/// How often a stop checks whether it is done.
const LOOK: Duration = Duration::from_millis(2);
/// How often it logs which stages are late.
const TELL: Duration = Duration::from_secs(5);
/// How long consumers and producers may take to close once nothing is in flight.
pub(super) const CLOSE: Duration = Duration::from_secs(10);

/// A stop under way.
struct Stop {
    begun: Instant,
    /// When what is in flight is given back; `None` means never.
    deadline: Option<Instant>,
    told: Instant,
    given_back: u64,
    reply: Option<oneshot::Sender<Stopped>>,
}

impl Tree {
    /// Stops pulling, lets everything in flight be resolved, at most until the deadline, and ends.
    pub(super) fn stop(
        &mut self,
        deadline: Option<Duration>,
        reply: oneshot::Sender<Stopped>,
        ctx: &mut Context<Self>,
    ) {
        self.stopping = true;
        for line in self.lines.values() {
            line.keep_paused();
        }
        for stage in 0..self.plan.stages.len() {
            let stage = u16::try_from(stage).expect("stages are numbered with 16 bits");
            if self.stages[usize::from(stage)].state != StageState::Failed {
                self.set_state(stage, StageState::Draining, None);
            }
        }
        let begun = Instant::now();
        let deadline = deadline.and_then(|deadline| begun.checked_add(deadline));
        let stop = Stop { begun, deadline, told: begun, given_back: 0, reply: Some(reply) };
        self.wait_for_messages(stop, ctx);
    }

    /// First: everything in flight is resolved and settled.
    fn wait_for_messages(&mut self, mut stop: Stop, ctx: &mut Context<Self>) {
        // A line that is missing here is about to come back, with new workers and nothing in
        // flight.
        let here = self.scaling.is_empty() || stop.begun.elapsed() >= CLOSE;
        let quiet = here && self.lines.values().all(|line| line.is_quiet());
        let late = stop.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if quiet || late {
            self.closing = true;
            for (stage, in_flight) in self.unresolved() {
                stop.given_back += in_flight as u64;
                tracing::warn!(%stage, in_flight, "not resolved by the deadline: given back");
            }
            for line in self.lines.values_mut() {
                line.set_mode(Mode::Stopping);
            }
            let closing = Instant::now();
            return self.wait_for_consumers(stop, closing, ctx);
        }
        if stop.told.elapsed() >= TELL {
            stop.told = Instant::now();
            for (stage, in_flight) in self.unresolved() {
                tracing::info!(%stage, in_flight, "still draining");
            }
        }
        ctx.run_later(LOOK, move |tree, ctx| tree.wait_for_messages(stop, ctx));
    }

    /// Second: the consumers have given back what they still held.
    fn wait_for_consumers(&mut self, stop: Stop, closing: Instant, ctx: &mut Context<Self>) {
        if self.open().count() > 0 && closing.elapsed() < CLOSE {
            ctx.run_later(LOOK, move |tree, ctx| tree.wait_for_consumers(stop, closing, ctx));
            return;
        }
        let producers = self.producers.opened();
        let open: Vec<_> = self.lines.values().map(Line::close_open).collect();
        let close = async move {
            // Concurrently, so that the time does not depend on how many do not answer. What an
            // unresponsive consumer holds comes again when its hold ends.
            let open = tokio::time::timeout(CLOSE, join_all(open));
            let _ = join(open, join_all(producers.iter().map(close_producer))).await;
        };
        ctx.spawn(close.into_actor(self).map(move |(), tree, _| tree.end(stop)));
    }

    /// Last: the lanes end.
    fn end(&mut self, mut stop: Stop) {
        for entry in self.open() {
            // Its lane is stuck in a call, or its queue does not answer.
            let (stage, held) =
                (&self.plan.stages[usize::from(entry.stage)], entry.control.page().held);
            stage.stats.from_queues.add(Outcome::Released, held);
            tracing::warn!(
                stage = %stage.name, held,
                "a call has not ended, or a queue does not answer: what is held comes again"
            );
        }
        for line in self.lines.values_mut() {
            line.halt();
        }
        self.lines.clear();
        self.left.clear();
        drop(self.lanes.take());
        let mut failed = Vec::new();
        for stage in 0..self.plan.stages.len() {
            let entry = &self.stages[stage];
            if entry.state == StageState::Failed {
                let name = self.plan.stages[stage].name.to_string();
                failed.push((name, entry.error.clone().unwrap_or_default()));
            } else {
                let stage = u16::try_from(stage).expect("stages are numbered with 16 bits");
                self.set_state(stage, StageState::Stopped, None);
            }
        }
        let stopped = Stopped {
            status: self.last_status(),
            failed,
            dead_letters: self.plan.dead_letters(),
            given_back: stop.given_back,
            took: stop.begun.elapsed(),
        };
        if let Some(reply) = stop.reply.take() {
            // The caller may be gone.
            let _ = reply.send(stopped);
        }
    }

    /// The consumers that have not ended.
    fn open(&self) -> impl Iterator<Item = &ConsumerEntry> {
        let all = self.lines.values().flat_map(|line| line.consumers());
        all.chain(&self.left).filter(|entry| entry.is_open())
    }

    /// The stages with messages in flight, and how many.
    fn unresolved(&self) -> Vec<(Arc<str>, usize)> {
        let lines = self.lines.values().flat_map(|line| line.consumers());
        let counts = lines.map(|entry| {
            let name = Arc::clone(&self.plan.stages[usize::from(entry.stage)].name);
            (name, entry.control.in_flight.load(Relaxed))
        });
        counts.filter(|(_, in_flight)| *in_flight > 0).collect()
    }
}

async fn close_producer(producer: &Arc<dyn Producer>) {
    let close = async {
        producer.flush().await?;
        producer.shutdown().await
    };
    match tokio::time::timeout(CLOSE, close).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a producer did not shut down cleanly"),
        Err(_) => tracing::warn!(after = ?CLOSE, "a producer did not shut down in time"),
    }
}
