//! A connection that is made when it is needed, and again after it broke.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use brigade_core::connector::ConnectorError;
use brigade_core::state::StoreId;
use redis::{ErrorKind, FromRedisValue, RedisResult, ScriptInvocation};

use crate::longest::SURE;
use crate::server::{Connection, Place, Server};
use crate::told::Failure;

pub(crate) struct Wire {
    queue: Arc<str>,
    place: Place,
    server: Arc<Server>,
    connection: Mutex<Option<Connection>>,
    /// How long a value the server of the connection is known to take.
    takes: AtomicU64,
}

impl Wire {
    pub(crate) fn new(queue: &Arc<str>, place: &Place) -> Result<Arc<Self>, ConnectorError> {
        let server = place.server();
        let server =
            server.map_err(|why| ConnectorError::permanent(format!("queue `{queue}`: {why}")))?;
        let (queue, place, server) = (Arc::clone(queue), place.clone(), Arc::new(server));
        let takes = AtomicU64::new(SURE);
        Ok(Arc::new(Self { queue, place, server, connection: Mutex::default(), takes }))
    }

    /// The store that the server's database is: its queues can be written in one script.
    pub(crate) fn store(&self) -> Option<StoreId> {
        self.place.store().map(StoreId::new)
    }

    /// Runs a script on a connection of its own, where nobody can wait for it: in a destructor. If it
    /// cannot be done, nobody hears of it.
    pub(crate) fn at_last(&self, script: ScriptInvocation<'static>) {
        let wire = Self::new(&self.queue, &self.place);
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(wire.ok()?.script::<redis::Value>(&script)).ok()
        });
    }

    /// Has `heard` called whenever something is published on this channel, until the connection
    /// breaks.
    pub(crate) async fn listen(
        &self,
        channel: &str,
        heard: impl Fn(),
    ) -> Result<(), ConnectorError> {
        let heard = self.server.listen(channel, heard).await;
        heard.map_err(|error| self.told(&Failure { error, connecting: false }))
    }

    /// The connection, made if there is none. Nobody holds the lock meanwhile, and it is made by a task: who
    /// asked may be left alone half-way, and others must not wait for that.
    async fn connection(&self) -> RedisResult<Connection> {
        if let Some(connection) = &*self.current() {
            return Ok(connection.clone());
        }
        let server = Arc::clone(&self.server);
        let making = tokio::spawn(async move { server.connect().await });
        let made = making.await.map_err(std::io::Error::other)??;
        // The server may be another, or have other settings.
        self.takes.store(SURE, Relaxed);
        Ok(self.current().get_or_insert(made).clone())
    }

    fn current(&self) -> MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a value the server is known to take, on this connection.
    pub(crate) fn takes(&self) -> u64 {
        self.takes.load(Relaxed)
    }

    /// It is known now.
    pub(crate) fn set_takes(&self, bytes: u64) {
        self.takes.store(bytes, Relaxed);
    }

    /// Runs a command on a connection of its own; of a Cluster, to the node that `url` names.
    pub(crate) async fn query_alone<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> Result<T, Failure> {
        let failure = |error, connecting| Failure { error, connecting };
        let connection = match self.place.cluster.then(|| self.place.node()) {
            None => self.server.connect().await,
            Some(Ok(node)) => node.connect().await,
            Some(Err(why)) => Err((ErrorKind::InvalidClientConfig, "no node", why).into()),
        };
        let mut connection = connection.map_err(|error| failure(error, true))?;
        command.query_async(&mut connection).await.map_err(|error| failure(error, false))
    }

    /// Runs something on the connection; a broken one is made anew the next time.
    async fn run<T>(
        &self,
        run: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, Failure> {
        let failure = match self.connection().await {
            Ok(mut connection) => match run(&mut connection).await {
                Ok(answer) => return Ok(answer),
                Err(error) => Failure { error, connecting: false },
            },
            Err(error) => Failure { error, connecting: true },
        };
        if failure.is_of_connection() {
            *self.current() = None;
        }
        Err(failure)
    }

    pub(crate) async fn command<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> Result<T, ConnectorError> {
        let answer = self.run(async |connection| command.query_async(connection).await).await;
        answer.map_err(|failure| self.told(&failure))
    }

    pub(crate) async fn pipe<T: FromRedisValue>(
        &self,
        pipeline: &redis::Pipeline,
    ) -> Result<T, ConnectorError> {
        let answer = self.run(async |connection| pipeline.query_async(connection).await).await;
        answer.map_err(|failure| self.told(&failure))
    }

    pub(crate) async fn script<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, ConnectorError> {
        self.try_script(script).await.map_err(|failure| self.told(&failure))
    }

    /// Runs a script whose errors mean something to who asks.
    pub(crate) async fn try_script<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, Failure> {
        self.run(async |connection| script.invoke_async(connection).await).await
    }

    /// Whether the server answers, and has at this key what it should, or nothing.
    pub(crate) async fn reach(&self, key: &str, kind: &str) -> Result<(), ConnectorError> {
        let there: String = self.command(redis::cmd("TYPE").arg(key)).await?;
        if there == kind || there == "none" {
            return Ok(());
        }
        let queue = &self.queue;
        Err(ConnectorError::permanent(format!(
            "queue `{queue}`: Redis has a {there} at the key `{key}`, where a {kind} is expected: \
             change `stream` or `queue`, or remove the key"
        )))
    }

    /// What an error means, for people and for the runtime.
    pub(crate) fn told(&self, failure: &Failure) -> ConnectorError {
        self.told_of(&self.queue, failure)
    }

    /// The same of another queue on the server.
    pub(crate) fn told_of(&self, queue: &str, failure: &Failure) -> ConnectorError {
        failure.told(queue, &self.place)
    }
}
