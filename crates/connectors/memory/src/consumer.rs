//! The consumer of memory queues.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use brigade_core::connector::{
    Acked, ConnectorError, Consumer, Failed, Features, Incoming, Lag, Order, QueueSpec, Reader,
    Receipt, Want,
};
use brigade_core::state::StoreOp;
use tokio::time::Instant;

use crate::Group;
use crate::connector::{FEATURES, Memory, Queue};

/// Takes messages from a memory queue.
pub(crate) struct MemoryConsumer {
    name: Arc<str>,
    queue: Arc<Queue>,
    group: Arc<str>,
    order: Order,
    /// Identifies its leases, to give them back when it is dropped.
    number: u64,
    closed: AtomicBool,
}

impl MemoryConsumer {
    pub(crate) fn open(memory: &Memory, queue: &QueueSpec, reader: &Reader) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let opened = memory.queue(&queue.pipeline, &queue.name);
        opened.groups().entry(Arc::clone(&reader.group)).or_default();
        Self {
            name: Arc::clone(&queue.name),
            queue: opened,
            group: Arc::clone(&reader.group),
            order: reader.order,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            closed: AtomicBool::new(false),
        }
    }

    fn with<T>(&self, run: impl FnOnce(&mut Group) -> T) -> T {
        run(self.queue.groups().entry(Arc::clone(&self.group)).or_default())
    }

    fn give_back(&self) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        self.with(|group| group.give_back(self.number, Instant::now()));
        self.queue.filled.notify_waiters();
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    fn features(&self) -> Features {
        FEATURES
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            let filled = self.queue.filled.notified();
            tokio::pin!(filled);
            filled.as_mut().enable();
            let now = Instant::now();
            if self.closed.load(Ordering::Relaxed) {
                return Err(ConnectorError::closed(&self.name));
            }
            let (taken, due, ended) = self.with(|group| {
                let taken = group.take(want, self.order, self.number, now);
                (taken, group.due(), group.closed && group.stored() == 0)
            });
            if !taken.is_empty() {
                return Ok(taken);
            }
            if ended {
                return Ok(taken);
            }
            match due {
                None => filled.await,
                Some(due) => {
                    let _ = tokio::time::timeout_at(due, filled).await;
                }
            }
        }
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        if !ops.is_empty() {
            return Err(ConnectorError::unsupported("memory queues take no other writes"));
        }
        let mut fenced = Vec::new();
        self.with(|group| {
            for receipt in receipts {
                if !group.done(receipt) {
                    fenced.push(receipt);
                }
            }
        });
        self.queue.filled.notify_waiters();
        self.queue.emptied.notify_waiters();
        Ok(fenced.into())
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        let now = Instant::now();
        let fenced: Vec<Receipt> = self.with(|group| {
            let lost = failed.iter().rev().filter(|failed| !group.fail(failed, now));
            lost.map(|failed| failed.receipt).collect()
        });
        self.queue.filled.notify_waiters();
        Ok(fenced.into())
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let (ready, delayed, in_flight) = self.with(|group| group.counts());
        let at_end = self.with(|group| group.closed && group.stored() == 0);
        Ok(Lag {
            ready: Some(ready),
            delayed: Some(delayed),
            in_flight: Some(in_flight),
            bytes: Some(self.with(|group| group.bytes())),
            at_end,
            ..Lag::default()
        })
    }

    fn locate(&self, receipt: Receipt) -> String {
        format!("{}#{}", self.name, receipt.position)
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.give_back();
        Ok(())
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.give_back();
    }
}
