//! A connection that is made when it is needed, and again after it broke.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use brigade_core::connector::ConnectorError;
use brigade_core::state::StoreId;
use parking_lot::Mutex;
use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisResult, ScriptInvocation, Value};

use crate::failure::Failure;
use crate::server::{ANSWER_MAX, Connection, Place, Server, answer_max};
use crate::thread::{Task, Thread};
use crate::value_limit::SURE;

/// A request that may take longer gets a connection of its own, so that no other request waits
/// behind it.
const SHARED_MAX: Duration = Duration::from_secs(20);

pub(crate) struct Wire {
    queue: Arc<str>,
    place: Place,
    /// What connections are made with, including the certificates as last read.
    server: Mutex<Arc<Server>>,
    thread: Thread,
    connection: Mutex<Option<Connection>>,
    /// One for what may take longer, and how long answers may take there; while it is used it is not here.
    patient: Mutex<Option<(Duration, Connection)>>,
    /// How long a value the server of the connection is known to take.
    takes: AtomicU64,
}

impl Wire {
    pub(crate) fn new(queue: &Arc<str>, place: &Place) -> Result<Arc<Self>, ConnectorError> {
        let server = place.server();
        let server = server.map_err(|why| {
            let told = format!("queue `{queue}`: {why}");
            // Files may be being replaced just now.
            match place.has_certificates() {
                true => ConnectorError::transient(told),
                false => ConnectorError::permanent(told),
            }
        })?;
        let thread = Thread::get().map_err(|error| {
            ConnectorError::transient(format!(
                "queue `{queue}`: the thread for connections to Redis cannot be started: {error}"
            ))
        })?;
        let (queue, place) = (Arc::clone(queue), place.clone());
        let (connection, patient) = <(Mutex<Option<Connection>>, Mutex<_>)>::default();
        let (server, takes) = (Mutex::new(Arc::new(server)), AtomicU64::new(SURE));
        Ok(Arc::new(Self { queue, place, server, thread, connection, patient, takes }))
    }

    /// Runs work on the thread of the connections, whatever becomes of the caller's thread.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Task<T> {
        self.thread.spawn(work)
    }

    /// Runs work there to its end, whether or not anything waits for it.
    pub(crate) fn spawn_to_the_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.thread.spawn_to_the_end(work);
    }

    /// The store that the server's database is: one script can write all its queues.
    pub(crate) fn store(&self) -> Option<StoreId> {
        self.place.store().map(StoreId::new)
    }

    /// Runs a script on a connection of its own, for a destructor, which cannot wait for it. A
    /// failure is not reported.
    pub(crate) fn at_last(&self, script: ScriptInvocation<'static>) {
        let wire = Self::new(&self.queue, &self.place);
        self.spawn_to_the_end(async move {
            if let Ok(wire) = wire {
                let _ = wire.script::<Value>(script).await;
            }
        });
    }

    /// Calls `heard` whenever something is published on this channel, until the connection breaks.
    pub(crate) async fn listen(
        self: &Arc<Self>,
        channel: &str,
        heard: impl Fn() + Send + Sync + 'static,
    ) -> Result<(), ConnectorError> {
        let (wire, channel) = (Arc::clone(self), channel.to_owned());
        let heard = self.spawn(async move { wire.server().listen(&channel, heard).await }).await;
        heard.map_err(|error| self.told(&Failure { error, connecting: false }))
    }

    /// What connections are made with now. Certificates are read again, as they may have been
    /// renewed. While that fails, for example because a file is being replaced, the previous ones
    /// are used.
    fn server(&self) -> Arc<Server> {
        let anew = self.place.has_certificates().then(|| self.place.server());
        let mut server = self.server.lock();
        match anew {
            Some(Ok(anew)) => *server = Arc::new(anew),
            Some(Err(why)) => {
                let queue = &self.queue;
                tracing::warn!(%queue, why, "certificates are used as they were read before");
            }
            None => {}
        }
        Arc::clone(&server)
    }

    /// The connection, made if there is none. The lock is not held meanwhile.
    async fn connection(&self) -> RedisResult<Connection> {
        if let Some(connection) = &*self.connection.lock() {
            return Ok(connection.clone());
        }
        let made = self.server().connect(ANSWER_MAX).await?;
        // This may be another server, or one with other settings.
        self.takes.store(SURE, Relaxed);
        Ok(self.connection.lock().get_or_insert(made).clone())
    }

    /// How long a value the server is known to take, on this connection.
    pub(crate) fn takes(&self) -> u64 {
        self.takes.load(Relaxed)
    }

    /// Sets the longest value that the server is known to accept.
    pub(crate) fn set_takes(&self, bytes: u64) {
        self.takes.store(bytes, Relaxed);
    }

    /// Runs a command of this many bytes on a connection of its own; on a Cluster, on the node that
    /// `url` names.
    pub(crate) async fn query_alone<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        command: Cmd,
        bytes: usize,
    ) -> Result<T, Failure> {
        let wire = Arc::clone(self);
        let asked = self.spawn(async move {
            let failure = |error, connecting| Failure { error, connecting };
            let connection = match wire.place.cluster.then(|| wire.place.node()) {
                None => wire.server().connect(answer_max(bytes)).await,
                Some(Ok(node)) => node.connect(answer_max(bytes)).await,
                Some(Err(why)) => Err((ErrorKind::InvalidClientConfig, "no node", why).into()),
            };
            let mut connection = connection.map_err(|error| failure(error, true))?;
            command.query_async(&mut connection).await.map_err(|error| failure(error, false))
        });
        asked.await
    }

    /// The connection for what may take so long, and if it is not the shared one how long answers may take there.
    async fn connection_for(
        &self,
        answer_max: Duration,
    ) -> RedisResult<(Connection, Option<Duration>)> {
        let (mut connection, alone) = if answer_max > SHARED_MAX {
            let kept = self.patient.lock().take().filter(|(kept_max, _)| *kept_max >= answer_max);
            match kept {
                Some((kept_max, connection)) => (connection, Some(kept_max)),
                None => (self.server().connect(answer_max).await?, Some(answer_max)),
            }
        } else {
            (self.connection().await?, None)
        };
        connection.set_answer_max(answer_max);
        Ok((connection, alone))
    }

    /// Runs something on a connection whose answers may take at most this long.
    async fn run<T: Send + 'static, R>(
        self: &Arc<Self>,
        answer_max: Duration,
        run: impl FnOnce(Connection) -> R + Send + 'static,
    ) -> Result<T, Failure>
    where
        R: Future<Output = RedisResult<T>> + Send + 'static,
    {
        let wire = Arc::clone(self);
        let asked = self.spawn(async move {
            let (connection, alone) = match wire.connection_for(answer_max).await {
                Ok(connection) => connection,
                Err(error) => return Err(Failure { error, connecting: true }),
            };
            let again = alone.map(|kept_max| (kept_max, connection.clone()));
            let answer = run(connection).await;
            let answer = answer.map_err(|error| Failure { error, connecting: false });
            match (again, &answer) {
                (None, Ok(_)) => {}
                (None, Err(failure)) => wire.look_at(failure),
                (Some(_), Err(failure)) if failure.is_of_connection() => {}
                (again, _) => *wire.patient.lock() = again,
            }
            answer
        });
        asked.await
    }

    /// A broken connection is made anew the next time; so is the other, which goes the same way.
    fn look_at(&self, failure: &Failure) {
        if failure.is_of_connection() {
            *self.connection.lock() = None;
            *self.patient.lock() = None;
        }
    }

    pub(crate) async fn command<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        command: &Cmd,
    ) -> Result<T, ConnectorError> {
        let answer = self.try_command(command).await;
        answer.map_err(|failure| self.told(&failure))
    }

    /// Runs a command whose errors mean something to the caller.
    pub(crate) async fn try_command<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        command: &Cmd,
    ) -> Result<T, Failure> {
        self.try_command_for(command, ANSWER_MAX).await
    }

    /// The same, whose answer may take so long.
    pub(crate) async fn try_command_for<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        command: &Cmd,
        answer_max: Duration,
    ) -> Result<T, Failure> {
        let command = command.clone();
        self.run(answer_max, |mut on| async move { command.query_async(&mut on).await }).await
    }

    /// Runs commands of this many bytes in all, each regardless of the others, and returns a result
    /// for each.
    pub(crate) async fn each(
        self: &Arc<Self>,
        mut pipeline: Pipeline,
        bytes: usize,
    ) -> Result<Vec<Result<(), ConnectorError>>, ConnectorError> {
        pipeline.ignore_errors();
        let run = |mut on| async move { pipeline.query_async(&mut on).await };
        let answers = self.run(answer_max(bytes), run).await;
        let answers: Vec<RedisResult<Value>> = answers.map_err(|failure| self.told(&failure))?;
        let told = |answer: RedisResult<Value>| match answer {
            Ok(_) => Ok(()),
            Err(error) => {
                let failure = Failure { error, connecting: false };
                self.look_at(&failure);
                Err(self.told(&failure))
            }
        };
        Ok(answers.into_iter().map(told).collect())
    }

    pub(crate) async fn script<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        script: impl Into<Arc<ScriptInvocation<'static>>>,
    ) -> Result<T, ConnectorError> {
        let answer = self.try_script(script).await;
        answer.map_err(|failure| self.told(&failure))
    }

    /// Runs a script whose errors mean something to the caller.
    pub(crate) async fn try_script<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        script: impl Into<Arc<ScriptInvocation<'static>>>,
    ) -> Result<T, Failure> {
        self.try_script_for(script, ANSWER_MAX).await
    }

    /// Runs a script whose errors mean something to the caller, and whose answer may take this
    /// long.
    pub(crate) async fn try_script_for<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        script: impl Into<Arc<ScriptInvocation<'static>>>,
        answer_max: Duration,
    ) -> Result<T, Failure> {
        let script = script.into();
        let run = move |mut on| async move { script.invoke_async(&mut on).await };
        self.run(answer_max, run).await
    }

    /// Runs a script with so many bytes.
    pub(crate) async fn try_script_of<T: FromRedisValue + Send + 'static>(
        self: &Arc<Self>,
        script: impl Into<Arc<ScriptInvocation<'static>>>,
        bytes: usize,
    ) -> Result<T, Failure> {
        let (script, answer_max) = (script.into(), answer_max(bytes));
        let run = move |mut on| async move {
            if answer_max > SHARED_MAX {
                // Otherwise long arguments would be sent twice to a server that does not have the
                // script.
                script.load_async(&mut on).await?;
            }
            script.invoke_async(&mut on).await
        };
        self.run(answer_max, run).await
    }

    /// Checks that the server answers, and that this key is of the right type or absent.
    pub(crate) async fn reach(
        self: &Arc<Self>,
        key: &str,
        kind: &str,
    ) -> Result<(), ConnectorError> {
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

    /// The same for another queue on the server.
    pub(crate) fn told_of(&self, queue: &str, failure: &Failure) -> ConnectorError {
        failure.told(queue, &self.place)
    }
}
