//! A connection that is made when it is needed, and again after it broke.

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::ConnectorError;
use brigade_core::state::StoreId;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo,
    RedisError, RedisResult, ScriptInvocation, ServerErrorKind,
};
use tokio::sync::Mutex;

/// How long making a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take, beside the time that a command waits by itself.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The server where a queue names none.
pub(crate) fn local() -> String {
    "redis://127.0.0.1:6379".to_owned()
}

/// The name of the store that a server's database is. Without user and password: those are no part
/// of it, and not to be told.
fn store_of(info: &ConnectionInfo) -> String {
    format!("redis {}/{}", info.addr(), info.redis_settings().db())
}

/// The same out of a queue's settings; nothing if their `url` is no address.
pub(crate) fn store_name(settings: &serde_json::Value) -> String {
    let url = settings.get("url").and_then(serde_json::Value::as_str);
    let info = url.map_or_else(local, str::to_owned).into_connection_info();
    info.map(|info| store_of(&info)).unwrap_or_default()
}

pub(crate) struct Wire {
    queue: Arc<str>,
    client: Client,
    connection: Mutex<Option<MultiplexedConnection>>,
}

impl Wire {
    pub(crate) fn new(queue: &Arc<str>, url: &str) -> Result<Arc<Self>, ConnectorError> {
        let client = Client::open(url).map_err(|_| {
            ConnectorError::permanent(format!("queue `{queue}`: `url` is no address of a server"))
        })?;
        Ok(Arc::new(Self { queue: Arc::clone(queue), client, connection: Mutex::default() }))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The store that the server's database is: its queues can be written in one script.
    pub(crate) fn store(&self) -> StoreId {
        StoreId::new(store_of(self.client.get_connection_info()))
    }

    async fn connection(&self) -> RedisResult<MultiplexedConnection> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(ANSWER_MAX));
        let made = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(connection.insert(made).clone())
    }

    /// Runs something on the connection; a broken one is made anew the next time.
    async fn with<T>(
        &self,
        run: impl AsyncFnOnce(&mut MultiplexedConnection) -> RedisResult<T>,
    ) -> Result<T, ConnectorError> {
        let answer = match self.connection().await {
            Ok(mut connection) => run(&mut connection).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => {
                if error.is_unrecoverable_error() || error.is_timeout() || error.is_io_error() {
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

    /// What an error means, for people and for the runtime. The address is not told: it may hold a
    /// password.
    pub(crate) fn wrong(&self, error: &RedisError) -> ConnectorError {
        let queue = &self.queue;
        let code = error.code().unwrap_or_default().to_owned();
        let text = error.to_string();
        let permanent = match error.kind() {
            ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => true,
            ErrorKind::Server(ServerErrorKind::ResponseError) => code == "WRONGTYPE",
            _ => matches!(code.as_str(), "WRONGTYPE" | "NOAUTH" | "WRONGPASS" | "NOPERM"),
        };
        if permanent {
            let help = match code.as_str() {
                "WRONGTYPE" => "another kind of value has the key: change `stream`",
                _ => "check user and password in `url`",
            };
            return ConnectorError::permanent(format!("queue `{queue}`: Redis: {text}; {help}"));
        }
        let help = match error.is_connection_refusal() {
            true => "; is the server up, and `url` right?",
            false => "",
        };
        ConnectorError::transient(format!("queue `{queue}`: Redis: {text}{help}"))
    }
}
