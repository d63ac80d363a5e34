use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{
    ConnectorError, Features, Outgoing, Produced, Producer, QueueSpec, Rejected, Staged, WhenFull,
};
use brigade_core::state::{StateStore, StoreId, StoreOp};

use crate::connector::features;
use crate::rows::{Target, enqueue, is_full};
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
    pub(crate) fn open(store: &Store, queue: &QueueSpec) -> Result<Self, ConnectorError> {
        let (name, target) = store.enter(queue)?;
        Ok(Self {
            requests: store.requests().clone(),
            store: store.store_id(),
            name,
            target,
            _open: store.hold(),
        })
    }

    fn refuses(&self) -> bool {
        self.target.limit.when_full == WhenFull::Refuse
    }
}

#[async_trait]
impl Producer for EmbeddedProducer {
    fn features(&self) -> Features {
        features(&self.target.settings)
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let mut outcomes = Vec::with_capacity(batch.len());
        if batch.is_empty() {
            return Ok(outcomes);
        }
        let (owned, target) = (batch.to_vec(), Arc::clone(&self.target));
        let whole = self.requests.ask(move |work| enqueue(work, &target, &owned)).await;
        if whole.is_ok() {
            outcomes.resize_with(batch.len(), || Produced::Confirmed);
            return Ok(outcomes);
        }
        let limited = self.target.limit.messages.is_some() || self.target.limit.bytes.is_some();
        if !limited || batch.len() == 1 && !self.refuses() {
            return whole.map(|()| Vec::new());
        }
        // The whole does not fit: as many as do, one after the other.
        for outgoing in batch {
            let (one, target) = ([outgoing.clone()], Arc::clone(&self.target));
            let put = self.requests.ask(move |work| enqueue(work, &target, &one)).await;
            outcomes.push(match put {
                Ok(()) => Produced::Confirmed,
                Err(error) if is_full(&error) && self.refuses() => {
                    let (kind, message) = (CauseKind::Refused, error.to_string());
                    Produced::Rejected(Rejected { kind, message })
                }
                Err(error) => Produced::Failed(error),
            });
        }
        Ok(outcomes)
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        let enqueue = |outgoing: &Outgoing| StoreOp::Enqueue {
            queue: Arc::clone(&self.name),
            outgoing: outgoing.clone(),
        };
        Ok(Staged { ops: batch.iter().map(enqueue).collect(), rejected: Vec::new(), hold: None })
    }

    fn store(&self) -> Option<StoreId> {
        // What a full queue refuses has to be known before the transaction.
        (!self.refuses()).then(|| self.store.clone())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}
