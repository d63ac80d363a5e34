//! The producer of embedded queues.

use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{
    ConnectorError, Features, Outgoing, Produced, Producer, QueueSpec, Rejected, Staged, WhenFull,
};
use brigade_core::state::{StateStore, StoreId, StoreOp};

use crate::connector::features;
use crate::readers::Readers;
use crate::rows::{MadeOf, Target, enqueue, is_full, without_room};
use crate::store::Store;
use crate::thread::Requests;

/// Puts messages on an embedded queue.
pub(crate) struct EmbeddedProducer {
    requests: Requests,
    store: StoreId,
    /// The queue's name in operations.
    name: Arc<str>,
    target: Arc<Target>,
    _open: Arc<Store>,
}

impl EmbeddedProducer {
    /// A producer for a stage: what the queue held for the only reader of before is shared out
    /// among those that read it now, so that it comes before what is put.
    pub(crate) async fn open(store: &Store, queue: &QueueSpec) -> Result<Self, ConnectorError> {
        let producer = Self::enter(store, queue)?;
        producer.share_out().await?;
        Ok(producer)
    }

    /// The same for one that may put nothing: see [`share_out`](Self::share_out).
    pub(crate) fn enter(store: &Store, queue: &QueueSpec) -> Result<Self, ConnectorError> {
        let (name, target) = store.enter(queue)?;
        Ok(Self {
            requests: store.requests().clone(),
            store: store.store_id(),
            name,
            target,
            _open: store.hold(),
        })
    }

    /// Shares out what is there for the only reader of before.
    pub(crate) async fn share_out(&self) -> Result<(), ConnectorError> {
        let readers = Readers::of(&self.target);
        if readers.are_several() {
            self.requests.ask(move |work| Ok(readers.share_first(work)?)).await?;
        }
        Ok(())
    }

    pub(crate) fn target(&self) -> &Arc<Target> {
        &self.target
    }

    fn refuses(&self) -> bool {
        self.target.limit.when_full == WhenFull::Refuse
    }

    /// The messages that the queue never takes, by index.
    fn never(&self, batch: &[Outgoing]) -> Vec<(usize, Rejected)> {
        let Target { limit, name, .. } = &*self.target;
        let never = |(at, outgoing): (usize, &Outgoing)| {
            Some((at, limit.never_takes(name, &outgoing.message)?))
        };
        batch.iter().enumerate().filter_map(never).collect()
    }

    /// Puts messages that the queue may take.
    async fn put(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let mut outcomes = Vec::with_capacity(batch.len());
        if batch.is_empty() {
            return Ok(outcomes);
        }
        let (owned, target) = (batch.to_vec(), Arc::clone(&self.target));
        let whole =
            self.requests.ask(move |work| enqueue(work, &target, &owned, MadeOf::Any)).await;
        match whole {
            Ok(()) => {
                outcomes.resize_with(batch.len(), || Produced::Confirmed);
                return Ok(outcomes);
            }
            Err(error) if !is_full(&error) || batch.len() == 1 && !self.refuses() => {
                return Err(error);
            }
            Err(_) => {}
        }
        // The whole batch does not fit: puts as many as do, one after the other.
        for outgoing in batch {
            let (one, target) = ([outgoing.clone()], Arc::clone(&self.target));
            let put =
                self.requests.ask(move |work| enqueue(work, &target, &one, MadeOf::Any)).await;
            let outcome = match put {
                Ok(()) => Produced::Confirmed,
                Err(error) if is_full(&error) && self.refuses() => {
                    Produced::Rejected(refused(error.to_string()))
                }
                Err(error) => {
                    let (told, left) = (error.to_string(), batch.len() - outcomes.len() - 1);
                    outcomes.push(Produced::Failed(error));
                    // Putting later messages would change the order: they are retried together with
                    // this one.
                    let after = || Produced::Failed(ConnectorError::transient(told.as_str()));
                    outcomes.extend(std::iter::repeat_with(after).take(left));
                    return Ok(outcomes);
                }
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }
}

#[async_trait]
impl Producer for EmbeddedProducer {
    fn features(&self) -> Features {
        features(&self.target.settings)
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let never = self.never(batch);
        if never.is_empty() {
            return self.put(batch).await;
        }
        let mut outcomes = self.put(&without(batch, &never)).await?;
        // In ascending order, so that each lands at its original index.
        for (at, why) in never {
            outcomes.insert(at, Produced::Rejected(why));
        }
        Ok(outcomes)
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        let mut rejected = self.never(batch);
        // What a full queue refuses must be known before the transaction. If there is less room by
        // then, the transaction fails, and this is called again. The rest is staged again without
        // what was refused.
        if rejected.is_empty() && self.refuses() && !batch.is_empty() {
            let (owned, target) = (batch.to_vec(), Arc::clone(&self.target));
            let full = self.requests.ask(move |work| without_room(work, &target, &owned)).await?;
            rejected.extend(full.into_iter().map(|(at, message)| (at, refused(message))));
        }
        let enqueue =
            |outgoing: Outgoing| StoreOp::Enqueue { queue: Arc::clone(&self.name), outgoing };
        let ops = without(batch, &rejected).into_iter().map(enqueue).collect();
        Ok(Staged { ops, rejected, hold: None })
    }

    fn store(&self) -> Option<StoreId> {
        Some(self.store.clone())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}

/// A batch without the refused messages, whose indices are sorted.
fn without(batch: &[Outgoing], refused: &[(usize, Rejected)]) -> Vec<Outgoing> {
    let taken = |(at, _): &(usize, &Outgoing)| refused.binary_search_by_key(at, |r| r.0).is_err();
    batch.iter().enumerate().filter(taken).map(|(_, outgoing)| outgoing.clone()).collect()
}

/// A message for which there is no room.
fn refused(message: String) -> Rejected {
    Rejected { kind: CauseKind::Refused, message }
}
