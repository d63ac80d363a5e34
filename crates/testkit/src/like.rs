//! Connectors that behave like another one, except where a test overrides them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::connector::{
    Acked, Connector, ConnectorEnv, ConnectorError, Consumer, Failed, Features, Incoming, Lag,
    Outgoing, Problem, Produced, Producer, QueueAdmin, QueuePlace, QueueSpec, Reader, Receipt,
    Staged, Used, Want,
};
use brigade_core::state::{StateLock, StateStore, StoreId, StoreOp};
use bytes::Bytes;
use serde_json::Value;

/// Is a [`Connector`], [`Consumer`], [`Producer`] or [`StateStore`] if its content implements the
/// corresponding trait such as [`LikeConnector`].
///
/// ```
/// use std::sync::Arc;
/// use async_trait::async_trait;
/// use brigade_core::connector::{Connector, ConnectorError, Incoming, Consumer, Want};
/// use brigade_testkit::{Like, LikeConsumer};
///
/// /// Hands out one message at a time, however many are wanted.
/// struct Slow(Arc<dyn Consumer>);
///
/// #[async_trait]
/// impl LikeConsumer for Slow {
///     fn inner(&self) -> &dyn Consumer {
///         &*self.0
///     }
///
///     async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
///         self.0.consume(Want { messages: 1, ..want }).await
///     }
/// }
///
/// fn slow(inner: Arc<dyn Consumer>) -> Arc<dyn Consumer> {
///     Arc::new(Like(Slow(inner)))
/// }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Like<T>(pub T);

/// What a connector does differently from an inner one, to which everything else is delegated.
#[async_trait]
pub trait LikeConnector: Send + Sync {
    /// The inner connector.
    fn inner(&self) -> &dyn Connector;

    /// The `type:` of its queues. Default: the inner connector's, which it then replaces.
    fn type_name(&self) -> &'static str {
        self.inner().type_name()
    }

    /// See [`Connector::consumer`].
    ///
    /// # Errors
    /// See there.
    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        self.inner().consumer(queue, reader, env).await
    }

    /// See [`Connector::producer`].
    ///
    /// # Errors
    /// See there.
    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        self.inner().producer(queue, env).await
    }
}

#[async_trait]
impl<T: LikeConnector> Connector for Like<T> {
    fn type_name(&self) -> &'static str {
        self.0.type_name()
    }

    fn features(&self, settings: &Value) -> Features {
        self.0.inner().features(settings)
    }

    fn store_name(&self, settings: &Value) -> String {
        self.0.inner().store_name(settings)
    }

    fn place(&self, queue: &QueueSpec) -> QueuePlace {
        self.0.inner().place(queue)
    }

    fn schema(&self) -> Value {
        self.0.inner().schema()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        self.0.inner().check(queue)
    }

    fn conflict(&self, one: Used<'_>, other: Used<'_>) -> Option<Problem> {
        self.0.inner().conflict(one, other)
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        self.0.consumer(queue, reader, env).await
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        self.0.producer(queue, env).await
    }

    async fn reach(&self, queue: &QueueSpec, env: &ConnectorEnv) -> Result<(), ConnectorError> {
        self.0.inner().reach(queue, env).await
    }

    async fn admin(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        self.0.inner().admin(queue, env).await
    }
}

/// What a consumer does differently from an inner one, to which everything else is delegated.
#[async_trait]
pub trait LikeConsumer: Send + Sync {
    /// The inner consumer.
    fn inner(&self) -> &dyn Consumer;

    /// See [`Consumer::consume`].
    ///
    /// # Errors
    /// See there.
    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        self.inner().consume(want).await
    }

    /// See [`Consumer::ack`].
    ///
    /// # Errors
    /// See there.
    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        self.inner().ack(receipts, ops).await
    }

    /// See [`Consumer::on_fail`].
    ///
    /// # Errors
    /// See there.
    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        self.inner().on_fail(failed).await
    }

    /// See [`Consumer::put_back`].
    ///
    /// # Errors
    /// See there.
    async fn put_back(&self) -> Result<(), ConnectorError> {
        self.inner().put_back().await
    }

    /// See [`Consumer::broken`].
    async fn broken(&self) -> ConnectorError {
        self.inner().broken().await
    }

    /// See [`Consumer::lease`].
    fn lease(&self) -> Option<Duration> {
        self.inner().lease()
    }

    /// See [`Consumer::extend`].
    ///
    /// # Errors
    /// See there.
    async fn extend(&self, receipts: &[Receipt]) -> Result<(), ConnectorError> {
        self.inner().extend(receipts).await
    }

    /// See [`Consumer::lag`].
    ///
    /// # Errors
    /// See there.
    async fn lag(&self) -> Result<Lag, ConnectorError> {
        self.inner().lag().await
    }

    /// See [`Consumer::shutdown`].
    ///
    /// # Errors
    /// See there.
    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.inner().shutdown().await
    }
}

#[async_trait]
impl<T: LikeConsumer> Consumer for Like<T> {
    fn features(&self) -> Features {
        self.0.inner().features()
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        self.0.consume(want).await
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        self.0.ack(receipts, ops).await
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        self.0.on_fail(failed).await
    }

    async fn put_back(&self) -> Result<(), ConnectorError> {
        self.0.put_back().await
    }

    async fn broken(&self) -> ConnectorError {
        self.0.broken().await
    }

    fn lease(&self) -> Option<Duration> {
        self.0.lease()
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<(), ConnectorError> {
        self.0.extend(receipts).await
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        self.0.lag().await
    }

    fn locate(&self, receipt: Receipt) -> String {
        self.0.inner().locate(receipt)
    }

    fn store(&self) -> Option<StoreId> {
        self.0.inner().store()
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.0.shutdown().await
    }
}

/// What a producer does differently from an inner one, to which everything else is delegated.
#[async_trait]
pub trait LikeProducer: Send + Sync {
    /// The inner producer.
    fn inner(&self) -> &dyn Producer;

    /// See [`Producer::produce`].
    ///
    /// # Errors
    /// See there.
    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        self.inner().produce(batch).await
    }

    /// See [`Producer::flush`].
    ///
    /// # Errors
    /// See there.
    async fn flush(&self) -> Result<(), ConnectorError> {
        self.inner().flush().await
    }

    /// See [`Producer::shutdown`].
    ///
    /// # Errors
    /// See there.
    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.inner().shutdown().await
    }
}

#[async_trait]
impl<T: LikeProducer> Producer for Like<T> {
    fn features(&self) -> Features {
        self.0.inner().features()
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        self.0.produce(batch).await
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        self.0.inner().stage(batch).await
    }

    fn store(&self) -> Option<StoreId> {
        self.0.inner().store()
    }

    fn stage_order(&self) -> &str {
        self.0.inner().stage_order()
    }

    async fn flush(&self) -> Result<(), ConnectorError> {
        self.0.flush().await
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.0.shutdown().await
    }
}

/// What a state store does differently from an inner one, to which everything else is delegated.
#[async_trait]
pub trait LikeStore: Send + Sync {
    /// The inner store.
    fn inner(&self) -> &dyn StateStore;

    /// See [`StateStore::commit`].
    ///
    /// # Errors
    /// See there.
    async fn commit(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError> {
        self.inner().commit(ops).await
    }

    /// See [`StateStore::commit_of_one`].
    ///
    /// # Errors
    /// See there.
    async fn commit_of_one(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError> {
        self.inner().commit_of_one(ops).await
    }

    /// See [`StateStore::shutdown`].
    ///
    /// # Errors
    /// See there.
    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.inner().shutdown().await
    }
}

#[async_trait]
impl<T: LikeStore> StateStore for Like<T> {
    fn store_id(&self) -> StoreId {
        self.0.inner().store_id()
    }

    async fn load(&self, space: &str, key: &str) -> Result<Option<Bytes>, ConnectorError> {
        self.0.inner().load(space, key).await
    }

    async fn scan(
        &self,
        space: &str,
        prefix: &str,
    ) -> Result<Vec<(String, Bytes)>, ConnectorError> {
        self.0.inner().scan(space, prefix).await
    }

    async fn commit(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError> {
        self.0.commit(ops).await
    }

    async fn commit_of_one(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError> {
        self.0.commit_of_one(ops).await
    }

    async fn lock(&self, name: &str) -> Result<Option<StateLock>, ConnectorError> {
        self.0.inner().lock(name).await
    }

    async fn queue_consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        self.0.inner().queue_consumer(queue, reader).await
    }

    async fn queue_producer(&self, queue: &QueueSpec) -> Result<Arc<dyn Producer>, ConnectorError> {
        self.0.inner().queue_producer(queue).await
    }

    async fn queue_admin(&self, queue: &QueueSpec) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        self.0.inner().queue_admin(queue).await
    }

    async fn queue_names(&self, pipeline: &str) -> Result<Vec<String>, ConnectorError> {
        self.0.inner().queue_names(pipeline).await
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.0.shutdown().await
    }
}
