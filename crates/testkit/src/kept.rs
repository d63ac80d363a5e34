//! The dead letters of a trial as they were put, whatever has read them since.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use brigade_core::DeadLetter;
use brigade_core::connector::{ConnectorError, Outgoing, Produced, Producer};

use crate::like::{Like, LikeProducer};

/// How many dead letters of a queue are kept: as many as a memory queue holds if nothing reads it.
const KEPT_MAX: usize = 100_000;

/// The dead letters that were put on the queues that stages name for them. A stage may read a queue
/// of dead letters, so what is left on it proves nothing.
#[derive(Debug)]
pub(crate) struct Kept(Mutex<BTreeMap<String, Vec<DeadLetter>>>);

impl Kept {
    /// Keeps the dead letters of these queues.
    pub(crate) fn of(queues: impl IntoIterator<Item = String>) -> Arc<Self> {
        let queues = queues.into_iter().map(|queue| (queue, Vec::new()));
        Arc::new(Self(Mutex::new(queues.collect())))
    }

    /// What was put on a queue, in order of arrival.
    pub(crate) fn letters(&self, queue: &str) -> Vec<DeadLetter> {
        self.queues().get(queue).cloned().unwrap_or_default()
    }

    fn count(&self, queue: &str) -> usize {
        self.queues().get(queue).map_or(0, Vec::len)
    }

    /// A producer that keeps what its queue takes, if this is one of the queues; otherwise the
    /// producer unchanged.
    pub(crate) fn keeping(
        self: &Arc<Self>,
        queue: &str,
        inner: Arc<dyn Producer>,
    ) -> Arc<dyn Producer> {
        if !self.queues().contains_key(queue) {
            return inner;
        }
        let (queue, kept) = (queue.to_owned(), Arc::clone(self));
        Arc::new(Like(Keeping { inner, queue, kept }))
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<String, Vec<DeadLetter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Keeping {
    inner: Arc<dyn Producer>,
    queue: String,
    kept: Arc<Kept>,
}

#[async_trait]
impl LikeProducer for Keeping {
    fn inner(&self) -> &dyn Producer {
        &*self.inner
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        if self.kept.count(&self.queue) >= KEPT_MAX {
            let queue = &self.queue;
            let text =
                format!("a trial keeps no more than {KEPT_MAX} dead letters of queue `{queue}`");
            return Err(ConnectorError::transient(text));
        }
        let produced = self.inner.produce(batch).await?;
        let taken = batch.iter().zip(&produced);
        let taken = taken.filter(|(_, produced)| matches!(produced, Produced::Confirmed));
        // Anything that is not a dead letter is an output, and is on the queue.
        let letters = taken.filter_map(|(outgoing, _)| {
            DeadLetter::from_json(outgoing.message.payload.as_deref()?).ok()
        });
        self.kept.queues().entry(self.queue.clone()).or_default().extend(letters);
        Ok(produced)
    }
}
