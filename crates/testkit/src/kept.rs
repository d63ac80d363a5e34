//! What was put on queues of a trial, whatever has read it since.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{ConnectorError, Outgoing, Produced, Producer};
use brigade_core::{DeadLetter, Message};
use parking_lot::Mutex;

use crate::like::{Like, LikeProducer};

/// How many messages of a queue are kept: as many as a memory queue holds if nothing reads it.
const KEPT_MAX: usize = 100_000;

/// What was put on some of the queues. A stage may read a queue, so what is left on it proves
/// nothing.
#[derive(Debug)]
pub(crate) struct Kept(Mutex<BTreeMap<String, KeptOf>>);

/// What was put on a queue, in order of arrival.
#[derive(Debug)]
struct KeptOf {
    what: What,
    messages: Vec<Message>,
}

/// What is kept of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// Its dead letters. Anything else on it is an output.
    DeadLetters,
    /// Every message.
    All,
}

impl Kept {
    /// Keeps this of these queues; of one that is named twice, the latter.
    pub(crate) fn of(queues: impl IntoIterator<Item = (String, What)>) -> Arc<Self> {
        let queues = queues.into_iter();
        let queues = queues.map(|(queue, what)| (queue, KeptOf { what, messages: Vec::new() }));
        Arc::new(Self(Mutex::new(queues.collect())))
    }

    /// The dead letters that were put on a queue.
    pub(crate) fn letters(&self, queue: &str) -> Vec<DeadLetter> {
        let queues = self.0.lock();
        let messages = queues.get(queue).into_iter().flat_map(|kept| &kept.messages);
        messages.filter_map(letter).collect()
    }

    /// Everything that was put on a queue; `None` if not everything is kept.
    pub(crate) fn messages(&self, queue: &str) -> Option<Vec<Message>> {
        let queues = self.0.lock();
        let kept = queues.get(queue).filter(|kept| kept.what == What::All)?;
        Some(kept.messages.clone())
    }

    fn is_full(&self, queue: &str) -> bool {
        self.0.lock().get(queue).is_some_and(|kept| kept.messages.len() >= KEPT_MAX)
    }

    /// A producer that keeps what its queue takes, if this is one of the queues; otherwise the
    /// producer unchanged.
    pub(crate) fn keeping(
        self: &Arc<Self>,
        queue: &str,
        inner: Arc<dyn Producer>,
    ) -> Arc<dyn Producer> {
        if !self.0.lock().contains_key(queue) {
            return inner;
        }
        let (queue, kept) = (queue.to_owned(), Arc::clone(self));
        Arc::new(Like(Keeping { inner, queue, kept }))
    }
}

fn letter(message: &Message) -> Option<DeadLetter> {
    DeadLetter::from_json(message.payload.as_deref()?).ok()
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
        if self.kept.is_full(&self.queue) {
            let queue = &self.queue;
            let text = format!("a trial keeps no more than {KEPT_MAX} messages of queue `{queue}`");
            return Err(ConnectorError::transient(text));
        }
        let produced = self.inner.produce(batch).await?;
        let taken = batch.iter().zip(&produced);
        let taken = taken.filter(|(_, produced)| matches!(produced, Produced::Confirmed));
        let taken = taken.map(|(outgoing, _)| &outgoing.message);
        if let Some(kept) = self.kept.0.lock().get_mut(&self.queue) {
            let is_kept = |message: &&Message| kept.what == What::All || letter(message).is_some();
            kept.messages.extend(taken.filter(is_kept).cloned());
        }
        Ok(produced)
    }
}
