//! Queues with a schema registry: wraps the connector's consumers and producers to decode and
//! encode payloads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{
    Acked, Connector, ConnectorEnv, ConnectorError, Consumer, Defect, Failed, FailedReason,
    Features, Format, Formats, Incoming, Lag, Outgoing, Problem, Produced, Producer, QueueAdmin,
    QueuePlace, QueueSpec, Reader, Receipt, Rejected, Staged, Used, Want,
};
use brigade_core::state::{StoreId, StoreOp};
use parking_lot::Mutex;
use serde_json::Value;

use crate::actors::{one_for_each, only_of_the_batch};

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
        let (unread, returning) = <(Mutex<_>, Mutex<_>)>::default();
        Ok(Arc::new(FormattedConsumer { inner, format, unread, returning }))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        let inner = self.inner.producer(queue, env).await?;
        let Some(registry) = &queue.registry else { return Ok(inner) };
        let format = self.formats.open(queue, registry, true).await?;
        let (queue, kind) = (Arc::clone(&queue.name), self.inner.type_name());
        Ok(Arc::new(FormattedProducer { inner, format, queue, kind }))
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
    /// Taken from the queue but not handed out: the registry was away, or the caller had stopped
    /// waiting.
    unread: Mutex<VecDeque<Incoming>>,
    /// Those of them that are to be given back, until it is known that they have been.
    returning: Mutex<Vec<Failed>>,
}

impl FormattedConsumer {
    async fn give_back(&self) -> Result<(), ConnectorError> {
        let failed = self.returning.lock().clone();
        if !failed.is_empty() {
            self.inner.on_fail(failed).await?;
            self.returning.lock().clear();
        }
        Ok(())
    }

    /// The first of the unread messages, as many as are wanted.
    fn peek(&self, want: Want) -> Vec<Incoming> {
        let (mut peeked, mut bytes) = (Vec::new(), 0);
        for incoming in self.unread.lock().iter().take(want.messages) {
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
        // Left by a `put_back` that was dropped.
        self.give_back().await?;
        if self.unread.lock().is_empty() {
            let taken = self.inner.consume(want).await?;
            if taken.is_empty() {
                return Ok(taken);
            }
            self.unread.lock().extend(taken);
        }
        // They leave the line once all are decoded: the caller may stop waiting before that.
        let mut taken = self.peek(want);
        for incoming in &mut taken {
            self.read(incoming).await?;
        }
        self.unread.lock().drain(..taken.len());
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

    async fn put_back(&self) -> Result<(), ConnectorError> {
        let released = |incoming: Incoming| Failed {
            receipt: incoming.receipt,
            reason: FailedReason::Released,
            delay: Duration::ZERO,
        };
        self.returning.lock().extend(self.unread.lock().drain(..).map(released));
        self.give_back().await?;
        self.inner.put_back().await
    }

    async fn broken(&self) -> ConnectorError {
        self.inner.broken().await
    }

    fn lease(&self) -> Option<Duration> {
        self.inner.lease()
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<(), ConnectorError> {
        let unread: Vec<Receipt> = self.unread.lock().iter().map(|unread| unread.receipt).collect();
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
        self.unread.lock().clear();
        self.inner.shutdown().await
    }
}

struct FormattedProducer {
    inner: Arc<dyn Producer>,
    format: Arc<dyn Format>,
    /// Its name in errors.
    queue: Arc<str>,
    kind: &'static str,
}

/// A batch, with the part of it that can be encoded.
struct Written {
    batch: Vec<Outgoing>,
    /// The indices of these in the original batch.
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
        let produced = one_for_each(&self.queue, self.kind, written.len(), produced)?;
        let mut all: Vec<(usize, Produced)> = places.into_iter().zip(produced).collect();
        all.extend(rejected.into_iter().map(|(at, why)| (at, Produced::Rejected(why))));
        all.sort_unstable_by_key(|(at, _)| *at);
        Ok(all.into_iter().map(|(_, produced)| produced).collect())
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        let Written { batch: written, places, rejected } = self.write(batch).await?;
        let staged = self.inner.stage(&written).await?;
        let mut staged = only_of_the_batch(&self.queue, self.kind, written.len(), staged)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use brigade_core::Message;
    use brigade_core::connector::ErrorKind;
    use bytes::Bytes;

    /// Passes payloads through, except empty ones.
    struct Plain;

    #[async_trait]
    impl Format for Plain {
        async fn read(&self, payload: &Bytes) -> Result<Result<Bytes, String>, ConnectorError> {
            Ok(Ok(payload.clone()))
        }

        async fn write(&self, json: &Bytes) -> Result<Result<Bytes, String>, ConnectorError> {
            Ok(if json.is_empty() { Err("empty".to_owned()) } else { Ok(json.clone()) })
        }
    }

    /// Confirms this many more (or fewer) than it was given; rejects these indices when it stages a
    /// batch.
    struct Confirms(isize, &'static [usize]);

    #[async_trait]
    impl Producer for Confirms {
        fn features(&self) -> Features {
            Features::NONE
        }

        async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
            let confirmed = batch.len().saturating_add_signed(self.0);
            Ok((0..confirmed).map(|_| Produced::Confirmed).collect())
        }

        async fn stage(&self, _: &[Outgoing]) -> Result<Staged, ConnectorError> {
            let kind = CauseKind::Refused;
            let why = |at: &usize| (*at, Rejected { kind, message: "odd".to_owned() });
            let rejected = self.1.iter().map(why).collect();
            Ok(Staged { ops: Vec::new(), rejected, hold: None })
        }

        async fn shutdown(&self) -> Result<(), ConnectorError> {
            Ok(())
        }
    }

    fn of(inner: Confirms) -> FormattedProducer {
        let (inner, format) = (Arc::new(inner), Arc::new(Plain));
        FormattedProducer { inner, format, queue: "out".into(), kind: "odd" }
    }

    fn batch() -> [Outgoing; 3] {
        ["1", "", "2"].map(|payload| Message::new(payload).into())
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn produced(more: isize) -> Result<Vec<Produced>, ConnectorError> {
        now(of(Confirms(more, &[])).produce(&batch()))
    }

    #[test]
    fn what_is_rejected_of_what_can_be_written_is_told_by_its_place_in_the_batch() {
        let staged = now(of(Confirms(0, &[1, 0])).stage(&batch())).unwrap();
        let places: Vec<usize> = staged.rejected.iter().map(|(at, _)| *at).collect();
        assert_eq!(places, [0, 1, 2]);
    }

    #[test]
    fn places_that_nobody_gave_are_no_answer() {
        for (rejected, wrong) in [(&[0, 2], 2), (&[1, 1], 1)] {
            let error = now(of(Confirms(0, rejected)).stage(&batch())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Permanent);
            let expected = format!("queue `out` (type odd) rejected place {wrong} of 2 messages");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }

    #[test]
    fn each_outcome_is_of_the_message_at_its_place() {
        let produced = produced(0).unwrap();
        assert!(
            matches!(
                produced[..],
                [Produced::Confirmed, Produced::Rejected(_), Produced::Confirmed]
            ),
            "{produced:?}"
        );
    }

    #[test]
    fn outcomes_of_another_number_of_messages_are_no_answer() {
        for (more, answers) in [(-1, 1), (1, 3)] {
            let error = produced(more).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Permanent);
            let expected = format!("queue `out` (type odd) answered for {answers} of 2 messages");
            assert!(error.to_string().contains(&expected), "{error}");
        }
    }
}
