//! One settlement: what became of a batch of finished messages, laid out for writing.

use std::cell::Cell;
use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use brigade_core::component::Claim;
use brigade_core::connector::{Failed, FailedReason, Outgoing, Receipt};
use brigade_core::delivery::{Again, GivenUp, Made, Requeued};
use brigade_core::flight::{End, Finished};
use brigade_core::outcome::Outcome;
use brigade_core::state::StoreOp;
use brigade_core::{Cause, DeadLetter, Message, MessageId};

use super::settler::Settler;
use crate::clock::now;
use crate::edge::shortened;
use crate::plan::QueueKeeper;

/// A batch of messages on its way to be acked or given back.
#[derive(Default)]
pub(super) struct Settlement {
    /// Messages that are done, one way or the other.
    pub(super) units: Vec<Unit>,
    /// What has to be on its queues before or together with the acks.
    pub(super) outputs: Vec<Output>,
    /// What the outputs were made from, kept as long as they may be refused.
    pub(super) parents: Rc<Parents>,
    /// What goes back to the queue.
    pub(super) failed: Vec<Failed>,
    /// What became of the outputs so far, here and in what was split off.
    pub(super) tally: Rc<Tally>,
}

/// What became of a settlement's outputs, dead letters among them. At its end each that there was
/// has come to something.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Those that there were.
    emitted: Cell<u64>,
    /// Those that are on their queue, were refused, or went with a message that is another's now.
    ended: Cell<u64>,
}

impl Tally {
    fn emit(&self, outputs: usize) {
        self.emitted.set(self.emitted.get() + outputs as u64);
    }

    pub(super) fn end(&self, outputs: usize) {
        self.ended.set(self.ended.get() + outputs as u64);
    }

    /// How many there were, and how many have come to something.
    pub(super) fn get(&self) -> (u64, u64) {
        (self.emitted.get(), self.ended.get())
    }
}

type Parents = Vec<Parent>;

/// What became of a message in one stage.
pub(super) struct Parent {
    /// It comes in a box; unboxing would copy it.
    pub(super) made: Box<Made>,
    /// An output of it was refused, which makes it a dead letter: a single one, however many are
    /// refused.
    pub(super) refused: Cell<bool>,
}

/// The keys that a settlement's messages wrote: no other settlement stores values for them.
pub(super) struct Claimed(Rc<Parents>);

impl Drop for Claimed {
    fn drop(&mut self) {
        self.0.iter().for_each(|parent| parent.made.written.unclaim());
    }
}

/// A message that is done.
pub(super) struct Unit {
    pub(super) receipt: Receipt,
    pub(super) outcome: Outcome,
    /// The indices in `parents` of what it was in each stage.
    parents: Range<usize>,
}

/// An output on its way to a queue.
pub(super) struct Output {
    /// The unit it belongs to.
    pub(super) receipt: Receipt,
    pub(super) queue: u16,
    pub(super) outgoing: Outgoing,
    /// What it was made from, as an index in `parents`; a dead letter has none.
    pub(super) parent: Option<usize>,
}

impl Settlement {
    /// Separates what is done from what goes back to the queue.
    pub(super) fn of(batch: Vec<Finished>, settler: &Settler) -> Self {
        let mut settlement = Self::default();
        settlement.units.reserve(batch.len());
        settlement.outputs.reserve(batch.len());
        let mut parents = Vec::with_capacity(batch.len());
        for Finished { receipt, end, .. } in batch {
            settlement.add(receipt, end, &mut parents, settler);
        }
        settlement.parents = Rc::new(parents);
        settlement
    }

    fn add(&mut self, receipt: Receipt, end: End, parents: &mut Parents, settler: &Settler) {
        if end.released {
            let reason = FailedReason::Released;
            self.failed.push(Failed { receipt, reason, delay: Duration::ZERO });
            return;
        }
        if let Some(requeued) = end.requeued {
            let Requeued { attempts, error, again } = *requeued;
            let (reason, delay) = match again {
                Again::After(delay) => (FailedReason::Attempt { attempts, error }, delay),
                Again::Parked => (FailedReason::Parked { attempts, error }, Duration::ZERO),
            };
            self.failed.push(Failed { receipt, reason, delay });
            return;
        }
        let outcome = if !end.given_up.is_empty() {
            Outcome::DeadLettered
        } else if end.discarded {
            Outcome::Discarded
        } else if end.done.is_empty() {
            Outcome::Filtered
        } else {
            Outcome::Acked
        };
        let first = parents.len();
        for mut made in end.done {
            let parent = Some(parents.len());
            self.tally.emit(made.outputs.len());
            let outputs = made.outputs.drain(..);
            self.outputs.extend(outputs.map(|(queue, outgoing)| Output {
                receipt,
                queue,
                outgoing,
                parent,
            }));
            parents.push(Parent { made, refused: Cell::new(false) });
        }
        self.tally.emit(end.given_up.len());
        for given_up in end.given_up {
            self.outputs.push(settler.letter_of(receipt, *given_up));
        }
        let parents = first..parents.len();
        self.units.push(Unit { receipt, outcome, parents });
    }

    /// Keeps the first `n` units, with their outputs, and returns the rest.
    pub(super) fn split_off(&mut self, n: usize) -> Self {
        let units = self.units.split_off(n);
        let rest: HashSet<Receipt> = units.iter().map(|unit| unit.receipt).collect();
        let outputs = self.outputs.extract_if(.., |output| rest.contains(&output.receipt));
        let outputs = outputs.collect();
        let (parents, tally) = (Rc::clone(&self.parents), Rc::clone(&self.tally));
        Self { units, outputs, parents, tally, ..Self::default() }
    }

    /// Puts back what was split off.
    pub(super) fn append(&mut self, mut rest: Self) {
        self.units.append(&mut rest.units);
        self.outputs.append(&mut rest.outputs);
    }

    /// Removes and returns the outputs for one queue.
    pub(super) fn take_outputs(&mut self, queue: u16) -> Vec<Output> {
        if self.outputs.iter().all(|output| output.queue == queue) {
            return std::mem::take(&mut self.outputs);
        }
        self.outputs.extract_if(.., |output| output.queue == queue).collect()
    }

    /// Removes and returns the output with this id.
    pub(super) fn take_output(&mut self, id: MessageId) -> Option<Output> {
        let at = self.outputs.iter().position(|output| output.outgoing.message.id == id)?;
        Some(self.outputs.remove(at))
    }

    /// The indices of the outputs for one queue.
    pub(super) fn places(&self, queue: u16) -> Vec<usize> {
        let numbered = self.outputs.iter().enumerate();
        numbered.filter(|(_, output)| output.queue == queue).map(|(at, _)| at).collect()
    }

    /// Lends out the outputs at `places` until they are [taken back](Self::take_back).
    pub(super) fn lend(&mut self, places: &[usize]) -> Arc<Vec<Outgoing>> {
        let lend = |at: &usize| std::mem::take(&mut self.outputs[*at].outgoing);
        Arc::new(places.iter().map(lend).collect())
    }

    /// Takes back what was lent.
    pub(super) fn take_back(&mut self, places: &[usize], lent: Arc<Vec<Outgoing>>) {
        // The borrower may have died without having released it yet.
        let lent = Arc::try_unwrap(lent).unwrap_or_else(|lent| Vec::clone(&lent));
        for (at, outgoing) in places.iter().zip(lent) {
            self.outputs[*at].outgoing = outgoing;
        }
    }

    pub(super) fn receipts(&self) -> Vec<Receipt> {
        self.units.iter().map(|unit| unit.receipt).collect()
    }

    /// Forgets fenced units and what became of them: they belong to another consumer now. Returns
    /// how many there were: a server that lost its latest writes may have handed the same message
    /// out twice under one receipt.
    pub(super) fn forget(&mut self, fenced: &[Receipt]) -> usize {
        let (before, outputs) = (self.units.len(), self.outputs.len());
        self.units.retain(|unit| !fenced.contains(&unit.receipt));
        self.outputs.retain(|output| !fenced.contains(&output.receipt));
        self.tally.end(outputs - self.outputs.len());
        before - self.units.len()
    }

    /// Adds the dead letter that a message becomes of which an output was refused.
    pub(super) fn add_letter(&mut self, letter: Output) {
        self.mark_dead_lettered(letter.receipt);
        self.tally.emit(1);
        self.outputs.push(letter);
    }

    /// What became of its messages in the stages that wrote to their states.
    fn writing(&self) -> impl Iterator<Item = &Parent> {
        let parents = self.units.iter().flat_map(|unit| &self.parents[unit.parents.clone()]);
        parents.filter(|parent| !parent.made.written.writes.is_empty())
    }

    /// Whether its messages wrote to the states of its stages.
    pub(super) fn has_writes(&self) -> bool {
        self.writing().next().is_some()
    }

    /// Claims the keys that its messages wrote, unless another settlement is storing a value for
    /// one of them.
    pub(super) fn claim(&self) -> Option<Claimed> {
        let claim = Claim::new();
        // If one key is not free, the claims made before it are released with this.
        let claimed = Claimed(Rc::clone(&self.parents));
        self.writing().all(|parent| parent.made.written.claim(claim)).then_some(claimed)
    }

    /// What is to be written to the states of its stages, in the order in which the messages were
    /// handled: with direct edges they finish in a different order. A value stored in the meantime
    /// by a message that was handled later is kept.
    pub(super) fn writes(&self, settler: &Settler) -> Vec<StoreOp> {
        let writes = self.writing().flat_map(|parent| {
            let space = &settler.stage(parent.made.stage).context.state_space;
            parent.made.written.waiting().map(move |(number, write)| {
                let (space, key) = (Arc::clone(space), write.key.clone());
                let op = match write.value.clone() {
                    Some(value) => StoreOp::Put { space, key, value },
                    None => StoreOp::Delete { space, key },
                };
                (number, op)
            })
        });
        let mut writes: Vec<(u64, StoreOp)> = writes.collect();
        writes.sort_by_key(|(number, _)| *number);
        writes.into_iter().map(|(_, op)| op).collect()
    }

    /// Records that what its messages wrote is stored: from now on the state has the current
    /// values.
    pub(super) fn stored(&self) {
        for unit in &self.units {
            let parents = &self.parents[unit.parents.clone()];
            parents.iter().for_each(|parent| parent.made.written.stored());
        }
    }

    /// Records that the message is a dead letter now.
    fn mark_dead_lettered(&mut self, receipt: Receipt) {
        if let Some(unit) = self.units.iter_mut().find(|unit| unit.receipt == receipt) {
            unit.outcome = Outcome::DeadLettered;
        }
    }
}

impl Settler {
    /// Counts outputs that are on their queues; the stages' counts have no dead letters, which are
    /// counted separately.
    pub(super) fn count_outputs<'o>(
        &self,
        parents: &Parents,
        tally: &Tally,
        outputs: impl Iterator<Item = &'o Output>,
    ) {
        let mut put: Vec<((u16, u16), u64)> = Vec::new();
        for output in outputs {
            tally.end(1);
            let Some(parent) = output.parent.map(|at| &parents[at].made) else { continue };
            let edge = (parent.stage, output.queue);
            match put.iter_mut().find(|(known, _)| *known == edge) {
                Some((_, count)) => *count += 1,
                None => put.push((edge, 1)),
            }
        }
        for ((stage, queue), count) in put {
            let outputs = &self.stage(stage).stats.outputs;
            let mut outputs = outputs.lock();
            *outputs.entry((self.input.index, queue)).or_default() += count;
        }
    }

    /// Makes the dead letter of a message that was given up on.
    pub(super) fn letter_of(&self, receipt: Receipt, mut given_up: GivenUp) -> Output {
        given_up.cause = shortened_cause(given_up.cause);
        let stage = self.stage(given_up.stage);
        tracing::debug!(
            pipeline = %stage.context.pipeline, stage = %stage.name, id = %given_up.delivery.message.id,
            cause = given_up.cause.kind.as_str(), attempts = given_up.delivery.attempts, "dead letter"
        );
        self.events.dead_letter(stage, &given_up);
        let kind = given_up.cause.kind.as_str();
        let mut causes = stage.stats.causes.lock();
        *causes.entry(kind).or_default() += 1;
        drop(causes);
        let now = now();
        let mut delivery = given_up.delivery;
        let message = std::mem::take(&mut delivery.message);
        let key = message.key.clone();
        let id = self.letter_id(&message, &stage.name, receipt);
        let letter = DeadLetter {
            message,
            codec: delivery.codec,
            cause: given_up.cause,
            pipeline: stage.context.pipeline.to_string(),
            stage: stage.name.to_string(),
            queue: stage.context.queues[usize::from(delivery.belongs_to)].to_string(),
            position: self.consumer.locate(receipt),
            attempts: delivery.attempts,
            first_at: delivery.first_failed_at.unwrap_or(now),
            last_at: now,
            truncated: given_up.truncated,
        };
        // Its event time is in the JSON only: a queue may refuse what is of tomorrow, or soon delete
        // what is of last week, and a letter is for exactly what goes wrong.
        let payload = Some(letter.to_json());
        let message = Message { id, key, payload, ..Message::default() };
        Output { receipt, queue: stage.dead_letters, outgoing: message.into(), parent: None }
    }

    /// The id of a message's dead letter. A redriven message that is given up on again has the same
    /// id as before, but its letter is a different one: a queue that deduplicates must accept it.
    fn letter_id(&self, message: &Message, stage: &str, receipt: Receipt) -> MessageId {
        match self.input.keeper {
            QueueKeeper::Connector(_) => message.id.output(stage, DEAD_LETTER, 0),
            QueueKeeper::State => {
                let (queue, position) = (&self.input.spec.name, receipt.position);
                message.id.output(stage, &format!("{DEAD_LETTER}{queue}.{position}"), 0)
            }
        }
    }
}

/// Error texts may contain what they are about, even the whole message: a letter that contains it
/// several times would be too large for its queue and block everything behind it.
fn shortened_cause(cause: Cause) -> Cause {
    /// More than anybody reads; with a chain of 16 causes, 68 KiB, which is little compared to the
    /// megabyte that brokers accept.
    const BYTES_MAX: usize = 4 * 1024;
    let Cause { kind, message, chain } = cause;
    let chain = chain.into_iter().map(|inner| shortened(inner, BYTES_MAX)).collect();
    Cause { kind, message: shortened(message, BYTES_MAX), chain }
}

/// Used as the output name in the id of a dead letter, followed by the redrive queue and the
/// position there if the message was redriven; no queue can have this name.
const DEAD_LETTER: &str = "~dead";
