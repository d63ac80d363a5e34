//! A connection that is made when it is needed, and again after it broke.

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::ConnectorError;
use brigade_core::state::StoreId;
use redis::{
    AsyncConnectionConfig, ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation,
    ServerErrorKind,
};

use crate::server::{Connection, Place, Server};
use tokio::sync::Mutex;

/// How much of a server's error is told, in characters.
const TOLD_MAX: usize = 400;
/// How long making a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take, beside the time that a command waits by itself.
const ANSWER_MAX: Duration = Duration::from_secs(10);

pub(crate) struct Wire {
    queue: Arc<str>,
    place: Place,
    server: Server,
    connection: Mutex<Option<Connection>>,
}

impl Wire {
    pub(crate) fn new(queue: &Arc<str>, place: &Place) -> Result<Arc<Self>, ConnectorError> {
        let server = place.server();
        let server =
            server.map_err(|why| ConnectorError::permanent(format!("queue `{queue}`: {why}")))?;
        let (queue, place) = (Arc::clone(queue), place.clone());
        Ok(Arc::new(Self { queue, place, server, connection: Mutex::default() }))
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
        self.server.listen(channel, heard).await.map_err(|error| self.wrong(&error))
    }

    async fn connection(&self) -> RedisResult<Connection> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(ANSWER_MAX));
        let made = self.server.connect(&config).await?;
        Ok(connection.insert(made).clone())
    }

    /// Runs something on the connection; a broken one is made anew the next time.
    async fn with<T>(
        &self,
        run: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, ConnectorError> {
        let answer = match self.connection().await {
            Ok(mut connection) => run(&mut connection).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => {
                // A master that became a replica is to be looked for anew.
                let moved = matches!(error.code(), Some("READONLY" | "MASTERDOWN"));
                if error.is_unrecoverable_error()
                    || error.is_timeout()
                    || error.is_io_error()
                    || moved
                {
                    *self.connection.lock().await = None;
                }
                Err(self.wrong(&error))
            }
        }
    }

    pub(crate) async fn command<T: FromRedisValue>(
        &self,
        command: &redis::Cmd,
    ) -> Result<T, ConnectorError> {
        self.with(async |connection| command.query_async(connection).await).await
    }

    pub(crate) async fn pipe<T: FromRedisValue>(
        &self,
        pipeline: &redis::Pipeline,
    ) -> Result<T, ConnectorError> {
        self.with(async |connection| pipeline.query_async(connection).await).await
    }

    pub(crate) async fn script<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, ConnectorError> {
        self.with(async |connection| script.invoke_async(connection).await).await
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

    /// What an error means, for people and for the runtime. The address is not told: it may hold a
    /// password.
    pub(crate) fn wrong(&self, error: &RedisError) -> ConnectorError {
        let queue = &self.queue;
        let code = error.code().unwrap_or_default().to_owned();
        // That of a batch tells one for each command.
        let text: String = error.to_string().chars().take(TOLD_MAX).collect();
        let permanent = match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => true,
            ErrorKind::Server(ServerErrorKind::ResponseError) => code == "WRONGTYPE",
            _ => matches!(code.as_str(), "WRONGTYPE" | "NOAUTH" | "WRONGPASS" | "NOPERM"),
        };
        if permanent {
            let help = match code.as_str() {
                "WRONGTYPE" => "another kind of value has the key: change `stream` or `queue`",
                _ => "check user and password in `url`",
            };
            return ConnectorError::permanent(format!("queue `{queue}`: Redis: {text}; {help}"));
        }
        // Inside a script's error the code of what went wrong stands in the text.
        let help = if error.is_connection_refusal() {
            "; is the server up, and `url` right?"
        } else if text.contains("MISCONF") {
            "; the server cannot write to its disk: make room there"
        } else if text.contains("OOM") {
            "; the server is at its `maxmemory`: raise it, or make room"
        } else {
            ""
        };
        ConnectorError::transient(format!("queue `{queue}`: Redis: {text}{help}"))
    }
}
