//! Queues whose payloads' schemas are in a registry: around the connector's consumers and producers,
//! payloads are read and written.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{
    Acked, Connector, ConnectorEnv, ConnectorError, Consumer, Defect, Failed, Features, Format,
    Formats, Incoming, Lag, Outgoing, Problem, Produced, Producer, QueueAdmin, QueuePlace,
    QueueSpec, Reader, Receipt, Rejected, Staged, Used, Want,
};
use brigade_core::state::{StoreId, StoreOp};
use serde_json::Value;

/// A connector whose queues may have a `registry`.
pub(crate) struct Formatted {
    pub(crate) inner: Arc<dyn Connector>,
    pub(crate) formats: Arc<dyn Formats>,
}

#[async_trait]
impl Connector for Formatted {
    fn type_name(&self) -> &'static str {
        self.inner.type_name()
    }

    fn features(&self, settings: &Value) -> Features {
        self.inner.features(settings)
    }

    fn store_name(&self, settings: &Value) -> String {
        self.inner.store_name(settings)
    }

    fn place(&self, queue: &QueueSpec) -> QueuePlace {
        self.inner.place(queue)
    }

    fn schema(&self) -> Value {
        self.inner.schema()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        self.inner.check(queue)
    }

    fn conflict(&self, one: Used<'_>, other: Used<'_>) -> Option<Problem> {
        self.inner.conflict(one, other)
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let inner = self.inner.consumer(queue, reader, env).await?;
        let Some(registry) = &queue.registry else { return Ok(inner) };
        let format = self.formats.open(queue, registry, false).await?;
        Ok(Arc::new(FormattedConsumer { inner, format, unread: Mutex::default() }))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        let inner = self.inner.producer(queue, env).await?;
        let Some(registry) = &queue.registry else { return Ok(inner) };
        let format = self.formats.open(queue, registry, true).await?;
        Ok(Arc::new(FormattedProducer { inner, format }))
    }

    async fn reach(&self, queue: &QueueSpec, env: &ConnectorEnv) -> Result<(), ConnectorError> {
        self.inner.reach(queue, env).await?;
        match &queue.registry {
            Some(registry) => self.formats.open(queue, registry, false).await.map(drop),
            None => Ok(()),
        }
    }

    async fn admin(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        self.inner.admin(queue, env).await
    }
}

struct FormattedConsumer {
    inner: Arc<dyn Consumer>,
    format: Arc<dyn Format>,
    /// Taken from the queue, and not handed out: the registry was away, or nobody waited any more.
    unread: Mutex<VecDeque<Incoming>>,
}

impl FormattedConsumer {
    fn unread(&self) -> MutexGuard<'_, VecDeque<Incoming>> {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first that are unread, as many as are wanted.
    fn peek(&self, want: Want) -> Vec<Incoming> {
        let (mut peeked, mut bytes) = (Vec::new(), 0);
        for incoming in self.unread().iter().take(want.messages) {
            if bytes >= want.bytes {
                break;
            }
            bytes += incoming.message.size();
            peeked.push(incoming.clone());
        }
        peeked
    }

    async fn read(&self, incoming: &mut Incoming) -> Result<(), ConnectorError> {
        let Some(payload) = incoming.message.payload.clone() else { return Ok(()) };
        if incoming.defect.is_some() {
            return Ok(());
        }
        match self.format.read(&payload).await? {
            Ok(json) => incoming.message.payload = Some(json),
            Err(message) => {
                let defect = Defect { kind: CauseKind::Decode, message, truncated: None };
                incoming.defect = Some(Box::new(defect));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Consumer for FormattedConsumer {
    fn features(&self) -> Features {
        self.inner.features()
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        if self.unread().is_empty() {
            let taken = self.inner.consume(want).await?;
            if taken.is_empty() {
                return Ok(taken);
            }
            self.unread().extend(taken);
        }
        // They leave the line when all are read: whoever waits may be gone before.
        let mut taken = self.peek(want);
        for incoming in &mut taken {
            self.read(incoming).await?;
        }
        self.unread().drain(..taken.len());
        Ok(taken)
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        self.inner.ack(receipts, ops).await
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        self.inner.on_fail(failed).await
    }

    fn lease(&self) -> Option<Duration> {
        self.inner.lease()
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<(), ConnectorError> {
        let unread: Vec<Receipt> = self.unread().iter().map(|unread| unread.receipt).collect();
        self.inner.extend(&[receipts, &unread].concat()).await
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        self.inner.lag().await
    }

    fn locate(&self, receipt: Receipt) -> String {
        self.inner.locate(receipt)
    }

    fn store(&self) -> Option<StoreId> {
        self.inner.store()
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.unread().clear();
        self.inner.shutdown().await
    }
}

struct FormattedProducer {
    inner: Arc<dyn Producer>,
    format: Arc<dyn Format>,
}

/// A batch, with what can be written of it.
struct Written {
    batch: Vec<Outgoing>,
    /// The places that these have in the batch as it came.
    places: Vec<usize>,
    rejected: Vec<(usize, Rejected)>,
}

impl FormattedProducer {
    async fn write(&self, batch: &[Outgoing]) -> Result<Written, ConnectorError> {
        let (mut places, mut rejected) = (Vec::with_capacity(batch.len()), Vec::new());
        let mut written = Vec::with_capacity(batch.len());
        for (at, outgoing) in batch.iter().enumerate() {
            let mut outgoing = outgoing.clone();
            if let Some(json) = &outgoing.message.payload {
                match self.format.write(json).await? {
                    Ok(payload) => outgoing.message.payload = Some(payload),
                    Err(message) => {
                        rejected.push((at, Rejected { kind: CauseKind::Refused, message }));
                        continue;
                    }
                }
            }
            places.push(at);
            written.push(outgoing);
        }
        Ok(Written { batch: written, places, rejected })
    }
}

#[async_trait]
impl Producer for FormattedProducer {
    fn features(&self) -> Features {
        self.inner.features()
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let Written { batch: written, places, rejected } = self.write(batch).await?;
        let produced = self.inner.produce(&written).await?;
        let mut all: Vec<(usize, Produced)> = places.into_iter().zip(produced).collect();
        all.extend(rejected.into_iter().map(|(at, why)| (at, Produced::Rejected(why))));
        all.sort_unstable_by_key(|(at, _)| *at);
        Ok(all.into_iter().map(|(_, produced)| produced).collect())
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        let Written { batch: written, places, rejected } = self.write(batch).await?;
        let mut staged = self.inner.stage(&written).await?;
        for (at, _) in &mut staged.rejected {
            *at = places[*at];
        }
        staged.rejected.extend(rejected);
        staged.rejected.sort_unstable_by_key(|(at, _)| *at);
        Ok(staged)
    }

    fn store(&self) -> Option<StoreId> {
        self.inner.store()
    }

    fn stage_order(&self) -> &str {
        self.inner.stage_order()
    }

    async fn flush(&self) -> Result<(), ConnectorError> {
        self.inner.flush().await
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.inner.shutdown().await
    }
}
