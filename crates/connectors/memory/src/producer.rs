//! The producer of memory queues.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::connector::{
    ConnectorError, Features, Limit, Outgoing, Produced, Producer, QueueSpec, Rejected, WhenFull,
};
use brigade_core::retry::DELAY_MAX;
use brigade_core::{CauseKind, Message};
use tokio::time::Instant;

use crate::Group;
use crate::connector::{FEATURES, Memory, Queue, limit};

/// How long a producer waits for room before it reports that there is none.
const ROOM_MAX: Duration = Duration::from_secs(1);

/// Puts messages on a memory queue.
pub(crate) struct MemoryProducer {
    name: Arc<str>,
    queue: Arc<Queue>,
    limit: Limit,
}

impl MemoryProducer {
    pub(crate) fn open(memory: &Memory, queue: &QueueSpec) -> Self {
        let opened = memory.queue(&queue.pipeline, &queue.name);
        let mut groups = opened.groups();
        for group in &queue.groups {
            groups.entry(Arc::clone(group)).or_default();
        }
        if groups.is_empty() {
            groups.entry("".into()).or_default();
        }
        drop(groups);
        Self { name: Arc::clone(&queue.name), queue: opened, limit: limit(queue) }
    }

    fn has_room(&self, group: &Group, bytes: u64) -> bool {
        let messages = self.limit.messages.is_none_or(|max| (group.stored() as u64) < max);
        messages && self.limit.bytes.is_none_or(|max| group.bytes() + bytes <= max.0)
    }

    /// Puts as many messages as there is room for, from the front; returns how many.
    fn put_what_fits(&self, batch: &[&Outgoing]) -> usize {
        let now = Instant::now();
        let mut groups = self.queue.groups();
        let mut put = 0;
        for outgoing in batch {
            let size = outgoing.message.size() as u64;
            if !groups.values().all(|group| self.has_room(group, size)) {
                break;
            }
            let at = outgoing.delay.map(|delay| now + delay.min(DELAY_MAX));
            let id = self.queue.id_of(&outgoing.message);
            for group in groups.values_mut() {
                group.put(Message { id, ..outgoing.message.clone() }, at);
            }
            put += 1;
        }
        drop(groups);
        if put > 0 {
            self.queue.filled.notify_waiters();
        }
        put
    }

    /// Puts messages that the queue may take; with `when_full: wait` it waits for room.
    async fn put(&self, batch: &[&Outgoing]) -> Vec<Produced> {
        let deadline = Instant::now() + ROOM_MAX;
        let mut put = 0;
        loop {
            let emptied = self.queue.emptied.notified();
            tokio::pin!(emptied);
            emptied.as_mut().enable();
            put += self.put_what_fits(&batch[put..]);
            let refuse = self.limit.when_full == WhenFull::Refuse;
            if put == batch.len() || refuse {
                break;
            }
            if tokio::time::timeout_at(deadline, emptied).await.is_err() {
                break;
            }
        }
        let full = || format!("queue `{}` is full", self.name);
        let outcome = |at: usize| match self.limit.when_full {
            _ if at < put => Produced::Confirmed,
            WhenFull::Wait => Produced::Failed(ConnectorError::transient(full())),
            WhenFull::Refuse => {
                Produced::Rejected(Rejected { kind: CauseKind::Refused, message: full() })
            }
        };
        (0..batch.len()).map(outcome).collect()
    }
}

#[async_trait]
impl Producer for MemoryProducer {
    fn features(&self) -> Features {
        FEATURES
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let mut never = Vec::new();
        let mut may = Vec::with_capacity(batch.len());
        for (at, outgoing) in batch.iter().enumerate() {
            match self.limit.never_takes(&self.name, &outgoing.message) {
                Some(why) => never.push((at, why)),
                None => may.push(outgoing),
            }
        }
        let mut outcomes = self.put(&may).await;
        // In ascending order, so that each lands at its original index.
        for (at, why) in never {
            outcomes.insert(at, Produced::Rejected(why));
        }
        Ok(outcomes)
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}
