//! Settling: outputs first, then the acks, in one transaction where they share a store.

use std::fmt;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use brigade_core::connector::{
    Acked, ConnectorError, Consumer, Failed, FailedReason, Hold, Receipt, Rejected,
};
use brigade_core::delivery::{GivenUp, Slot};
use brigade_core::flight::{Finished, Since};
use brigade_core::outcome::Outcome;
use brigade_core::state::StateStore;
use brigade_core::{Cause, CauseKind};
use tokio::sync::Notify;

use super::producer::Outlet;
use super::settlement::{Claimed, Output, Settlement};
use super::tries::{Told, Tries};
use crate::events::EventSender;
use crate::plan::{QueuePlan, StagePlan};
use crate::stats::Blocked;

/// Settles what became of one consumer's messages.
pub(crate) struct Settler {
    pub(crate) consumer: Arc<dyn Consumer>,
    pub(crate) input: Arc<QueuePlan>,
    /// The stages whose messages are settled here: the root first, then what it feeds directly.
    pub(crate) stages: Vec<Arc<StagePlan>>,
    /// The outlets to the queues they write.
    pub(crate) outlets: Vec<Arc<Outlet>>,
    pub(crate) state: Arc<dyn StateStore>,
    pub(crate) events: EventSender,
    pub(crate) ahead: Ahead,
    /// Those of its settlements that wait for a store or a queue that takes nothing.
    pub(crate) blocked: Blocked,
    pub(crate) told: Told,
}

/// How many messages have had their outcome counted, but have not been reported as settled yet.
#[derive(Debug, Default)]
pub(crate) struct Ahead(AtomicUsize);

impl Ahead {
    fn add(&self, messages: usize) {
        self.0.fetch_add(messages, Relaxed);
    }

    fn sub(&self, messages: usize) {
        self.0.fetch_sub(messages, Relaxed);
    }

    /// Returns and resets the count, which is that of settlements that were given up.
    pub(crate) fn take(&self) -> usize {
        self.0.swap(0, Relaxed)
    }
}

/// Why nothing can be settled any more: the stage fails, and nothing was acked.
#[derive(Debug)]
pub(crate) struct SettleError(String);

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a settlement has settled.
pub(crate) struct Settled {
    /// The slots that are free.
    pub(crate) slots: Vec<Slot>,
    /// How many messages have come to an outcome: as many as were counted as one kind of it.
    pub(crate) outcomes: usize,
    /// How many outputs there were, and how many have come to something.
    pub(crate) outputs: (u64, u64),
}

/// The result of one attempt to ack.
enum Try {
    /// These receipts were no longer valid; if the acks were together with something else, nothing
    /// was done then.
    Acked { fenced: Vec<Receipt>, together: bool },
    /// Outputs were refused and have become dead letters: start over.
    Refused,
}

impl Settler {
    /// The stage that the consumer's queue feeds.
    pub(super) fn root(&self) -> &StagePlan {
        &self.stages[0]
    }

    pub(super) fn stage(&self, index: u16) -> &StagePlan {
        let found = self.stages.iter().find(|stage| stage.index == index);
        found.expect("messages come only from the stages of this line")
    }

    /// Writes what became of a batch of messages and acks them; waits as long as a store or a queue
    /// does not take it.
    pub(crate) async fn settle(&self, batch: Vec<Finished>) -> Result<Settled, SettleError> {
        let slots = batch.iter().map(|finished| finished.slot).collect();
        let since: Vec<Since> = batch.iter().filter_map(|finished| finished.since).collect();
        #[cfg(feature = "sabotage")]
        let first = batch.first().map(|finished| finished.receipt);
        let mut settlement = Settlement::of(batch, self);
        let failed = std::mem::take(&mut settlement.failed);
        let tally = Rc::clone(&settlement.tally);
        #[cfg(feature = "sabotage")]
        if !settlement.outputs.is_empty()
            && self.root().sabotage.strike(crate::sabotage::DROP_OUTPUT)
        {
            settlement.outputs.pop();
        }
        let mut outcomes = 0;
        if !settlement.units.is_empty() {
            self.produce_elsewhere(&mut settlement).await?;
            self.write_elsewhere(&settlement).await?;
            self.ack(settlement, &mut outcomes).await?;
        }
        if !failed.is_empty() {
            self.give_back(failed, &mut outcomes).await?;
        }
        self.root().settled(&since);
        #[cfg(feature = "sabotage")]
        if let Some(receipt) =
            first.filter(|_| self.root().sabotage.strike(crate::sabotage::ACK_TWICE))
        {
            let _ = self.consumer.ack(vec![receipt], Vec::new()).await;
            self.tell(Outcome::Acked, 1, &mut outcomes);
        }
        self.ahead.sub(outcomes);
        Ok(Settled { slots, outcomes, outputs: tally.get() })
    }

    /// Counts messages that have come to an outcome of one kind, and adds them to `outcomes`.
    fn tell(&self, outcome: Outcome, messages: usize, outcomes: &mut usize) {
        #[cfg(feature = "sabotage")]
        let messages = match messages {
            0 => 0,
            n => n - usize::from(self.root().sabotage.strike(crate::sabotage::NO_OUTCOME)),
        };
        self.root().stats.from_queues.add(outcome, messages as u64);
        self.ahead.add(messages);
        *outcomes += messages;
    }

    /// Whether a queue's outputs are written in the transaction of the acks.
    fn together(&self, outlet: &Outlet) -> bool {
        outlet.store.is_some() && outlet.store == self.consumer.store()
    }

    /// Puts outputs on queues that do not share the consumer's store: they go first.
    async fn produce_elsewhere(&self, settlement: &mut Settlement) -> Result<(), SettleError> {
        // What one queue refuses becomes a dead letter for another; that one cannot be refused
        // again.
        loop {
            let elsewhere = self.outlets.iter().find(|outlet| {
                let wanted = |output: &Output| output.queue == outlet.queue.index;
                !self.together(outlet) && settlement.outputs.iter().any(wanted)
            });
            let Some(outlet) = elsewhere else { return Ok(()) };
            let mut outputs = settlement.take_outputs(outlet.queue.index);
            let outgoing = |output: &mut Output| std::mem::take(&mut output.outgoing);
            let batch = outputs.iter_mut().map(outgoing).collect();
            let (parents, tally) = (Rc::clone(&settlement.parents), Rc::clone(&settlement.tally));
            let stand = |places: &[usize]| {
                self.count_outputs(&parents, &tally, places.iter().map(|at| &outputs[*at]));
            };
            let rejected = outlet.produce(batch, self, stand).await.map_err(SettleError)?;
            for (at, why) in rejected {
                self.refuse(settlement, &outputs[at], &why)?;
            }
        }
    }

    /// Writes the stages' own state first if it does not share the consumer's store.
    async fn write_elsewhere(&self, settlement: &Settlement) -> Result<(), SettleError> {
        if self.stores_together() || !settlement.has_writes() {
            return Ok(());
        }
        let mut tries = Tries::default();
        loop {
            let turn = self.turn(settlement).await;
            match self.state.commit(settlement.writes(self)).await {
                Ok(()) => {
                    settlement.stored();
                    return Ok(());
                }
                Err(error) => {
                    drop(turn);
                    self.wait_after(&error, &mut tries).await?;
                }
            }
        }
    }

    /// Waits until no other settlement is storing a value for the keys that this settlement's
    /// messages wrote.
    async fn turn(&self, settlement: &Settlement) -> Turn<'_> {
        let ended = &self.root().stored;
        loop {
            // Settlements that end from here on wake this.
            let mut next = pin!(ended.notified());
            next.as_mut().enable();
            if let Some(claimed) = settlement.claim() {
                return Turn { claimed: Some(claimed), ended };
            }
            next.await;
        }
    }

    /// Whether the state of the stages is written in the transaction of the acks.
    fn stores_together(&self) -> bool {
        self.consumer.store() == Some(self.state.store_id())
    }

    /// Acks what is left of a settlement; adds to `outcomes` how many messages have come to one.
    /// What cannot be written as a whole is written in smaller parts: all of it may be more than a
    /// queue with a limit ever holds.
    async fn ack(&self, settlement: Settlement, outcomes: &mut usize) -> Result<(), SettleError> {
        let (mut left, mut tries) = (settlement, Tries::default());
        let mut part = left.units.len();
        while !left.units.is_empty() {
            let rest = left.split_off(part.min(left.units.len()));
            match self.ack_part(&mut left, outcomes).await {
                Ok(()) => {
                    left = rest;
                    (part, tries) = (part.saturating_mul(2), Tries::default());
                }
                Err(TryError::Fatal(error)) => return Err(error),
                Err(TryError::Connector(error)) => {
                    part = (left.units.len() / 2).max(1);
                    left.append(rest);
                    self.wait_after(&error, &mut tries).await?;
                }
            }
        }
        Ok(())
    }

    /// Acks units in one transaction; those whose leases were lost are left out. Counts each
    /// outcome as soon as it is final: units that were left out stay so when the rest has to be
    /// retried.
    async fn ack_part(&self, part: &mut Settlement, outcomes: &mut usize) -> Result<(), TryError> {
        while !part.units.is_empty() {
            match self.try_ack(part).await? {
                // What became of refused outputs also goes first, if it goes elsewhere.
                Try::Refused => self.produce_elsewhere(part).await?,
                Try::Acked { fenced, together } => {
                    let lost = part.forget(&fenced);
                    if lost > 0 {
                        self.tell(Outcome::Released, lost, outcomes);
                        tracing::warn!(
                            queue = %self.input.spec.name, count = lost,
                            "leases were lost before the ack: these messages are handled again, unless an ack \
                             whose answer was lost has settled them"
                        );
                    }
                    if fenced.is_empty() || !together {
                        break;
                    }
                }
            }
        }
        self.count(part, outcomes);
        Ok(())
    }

    /// Acks once, with all outputs and writes that share the consumer's store.
    async fn try_ack(&self, settlement: &mut Settlement) -> Result<Try, TryError> {
        let (mut ops, mut holds) = (Vec::new(), Vec::<Box<dyn Hold>>::new());
        for outlet in &self.outlets {
            let places = settlement.places(outlet.queue.index);
            if places.is_empty() {
                continue;
            }
            let batch = settlement.lend(&places);
            let staged = outlet.stage(Arc::clone(&batch)).await;
            settlement.take_back(&places, batch);
            let staged = staged?;
            if !staged.rejected.is_empty() {
                // Highest index first, so that the other indices stay valid.
                for (at, why) in staged.rejected.iter().rev() {
                    let output = settlement.outputs.remove(places[*at]);
                    self.refuse(settlement, &output, why)?;
                }
                return Ok(Try::Refused);
            }
            ops.extend(staged.ops);
            holds.extend(staged.hold);
        }
        let _turn = match self.stores_together() && settlement.has_writes() {
            true => Some(self.turn(settlement).await),
            false => None,
        };
        ops.extend(settlement.writes(self));
        let together = !ops.is_empty();
        let begun = Instant::now();
        let Acked { fenced, refused } = self.consumer.ack(settlement.receipts(), ops).await?;
        self.input.times.ack.done_since(begun);
        if !refused.is_empty() {
            for (id, why) in &refused {
                if let Some(output) = settlement.take_output(*id) {
                    self.refuse(settlement, &output, why)?;
                }
            }
            return Ok(Try::Refused);
        }
        if fenced.is_empty() || !together {
            holds.into_iter().for_each(|hold| hold.commit());
            settlement.stored();
        }
        Ok(Try::Acked { fenced, together })
    }

    /// An output was refused for good: its message becomes a dead letter. Whatever else became of
    /// the message stands.
    fn refuse(
        &self,
        settlement: &mut Settlement,
        output: &Output,
        why: &Rejected,
    ) -> Result<(), SettleError> {
        let queue = self.outlets.iter().find(|outlet| outlet.queue.index == output.queue);
        let queue = queue.map_or("?", |outlet| {
            outlet.queue.times.failed.add(1);
            &outlet.queue.spec.name
        });
        let Some(parent) = output.parent.map(|at| &settlement.parents[at]) else {
            return Err(SettleError(format!(
                "a dead letter was refused by queue `{queue}`: {}; nothing was acked",
                why.message
            )));
        };
        settlement.tally.end(1);
        if parent.refused.replace(true) {
            return Ok(());
        }
        let parent = &parent.made;
        let kind = if why.kind == CauseKind::TooLarge { why.kind } else { CauseKind::Refused };
        let cause = Cause::new(kind, format!("refused by queue `{queue}`: {}", why.message));
        let given_up = GivenUp {
            stage: parent.stage,
            delivery: parent.delivery.copy_without_duty(),
            cause,
            truncated: None,
        };
        settlement.add_letter(self.letter_of(output.receipt, given_up));
        Ok(())
    }

    /// Gives messages back to their queue. If that cannot be done the stage stops: what is neither
    /// acked nor given back comes again when the consumer's hold on it ends.
    async fn give_back(
        &self,
        failed: Vec<Failed>,
        outcomes: &mut usize,
    ) -> Result<(), SettleError> {
        let mut tries = Tries::default();
        loop {
            match self.consumer.on_fail(failed.clone()).await {
                Ok(_) => break,
                Err(error) => self.wait_after(&error, &mut tries).await?,
            }
        }
        let is_released = |failed: &&Failed| matches!(failed.reason, FailedReason::Released);
        let released = failed.iter().filter(is_released).count();
        self.tell(Outcome::Released, released, outcomes);
        self.tell(Outcome::Requeued, failed.len() - released, outcomes);
        Ok(())
    }

    /// Waits before the next attempt after a transient error; any other error ends the stage.
    async fn wait_after<'s>(
        &'s self,
        error: &ConnectorError,
        tries: &mut Tries<'s>,
    ) -> Result<(), SettleError> {
        let (stage, queue) = (self.root(), &self.input.spec.name);
        if !error.is_transient() {
            return Err(SettleError(format!("cannot settle messages of queue `{queue}`: {error}")));
        }
        if self.told.is_due() {
            tracing::warn!(stage = %stage.name, %queue, %error, "cannot settle; trying again");
        }
        tries.wait(self).await;
        Ok(())
    }

    fn count(&self, settlement: &Settlement, outcomes: &mut usize) {
        let Settlement { parents, tally, .. } = settlement;
        self.count_outputs(parents, tally, settlement.outputs.iter());
        // Those that were written with the acks; the producers count the others.
        for queue in self.outlets.iter().map(|outlet| &outlet.queue) {
            let here = settlement.outputs.iter().filter(|output| output.queue == queue.index);
            match here.count() {
                0 => {}
                written => queue.times.written.add(written),
            }
        }
        for outcome in Outcome::DONE {
            let messages = settlement.units.iter().filter(|unit| unit.outcome == outcome).count();
            self.tell(outcome, messages, outcomes);
        }
    }
}

/// The right to store what a settlement's messages wrote, until it is dropped.
struct Turn<'s> {
    claimed: Option<Claimed>,
    ended: &'s Notify,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.claimed = None;
        self.ended.notify_waiters();
    }
}

/// Why an attempt to ack went wrong.
enum TryError {
    Connector(ConnectorError),
    Fatal(SettleError),
}

impl From<ConnectorError> for TryError {
    fn from(error: ConnectorError) -> Self {
        Self::Connector(error)
    }
}

impl From<SettleError> for TryError {
    fn from(error: SettleError) -> Self {
        Self::Fatal(error)
    }
}
