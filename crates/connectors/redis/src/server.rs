//! Which server a queue is on, and how it is reached: alone, behind Sentinels, or a Cluster; with TLS.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use brigade_core::connector::{Problem, QueuePlace};
use futures_util::StreamExt;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, ProtocolVersion, RedisError, RedisFuture, RedisResult, TlsCertificates,
    TlsMode, Value,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long making a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take, on top of the time for which a command itself waits and the time
/// that it takes to reach the server.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// After this long without a message, a listener checks that the server is there.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// An idle connection is probed after this long, then at this interval; after this many probes
/// without an answer it is broken.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(5);
const KEEPALIVE_TRIES: u32 = 3;
/// The least number of bytes that reach a server in a second.
const BYTES_PER_SECOND: u64 = 1 << 20;

/// How long the answer to a request of this many bytes may take.
pub(crate) fn answer_max(bytes: usize) -> Duration {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    ANSWER_MAX + Duration::from_millis(bytes.saturating_mul(1000) / BYTES_PER_SECOND)
}

/// The server of a queue that names none: `REDIS_HOST`, a host or `host:port`, if that is set.
pub(crate) fn local() -> String {
    let host = std::env::var("REDIS_HOST").ok().filter(|host| !host.is_empty());
    address(host.as_deref().unwrap_or("127.0.0.1"))
}

fn address(host: &str) -> String {
    let has_port = host.rsplit_once(':').is_some_and(|(name, port)| {
        port.parse::<u16>().is_ok() && (name.ends_with(']') || !name.contains(':'))
    });
    match has_port {
        true => format!("redis://{host}"),
        false if host.contains(':') && !host.ends_with(']') => format!("redis://[{host}]:6379"),
        false => format!("redis://{host}:6379"),
    }
}

/// Certificates, for `rediss:` addresses. Without `ca`, the system's are trusted.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tls {
    /// A file with the certificates (PEM) to trust instead of the system's.
    ca: Option<PathBuf>,
    /// A file with the certificate (PEM) to show to the server.
    certificate: Option<PathBuf>,
    /// A file with that certificate's key (PEM).
    key: Option<PathBuf>,
}

/// The Sentinels that know which server is the master. `url` is then one of them, but its user,
/// password and database are those of the servers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sentinel {
    /// The master's name as the Sentinels know it.
    master: String,
    /// More Sentinels, each `host` or `host:port` (26379).
    #[serde(default)]
    more: Vec<String>,
    /// The Sentinels' own user.
    user: Option<String>,
    /// The Sentinels' own password.
    password: Option<String>,
}

/// What the keys of a queue say about its server.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) tls: Option<Tls>,
    pub(crate) sentinel: Option<Sentinel>,
    pub(crate) cluster: bool,
}

/// The problem with an invalid address.
pub(crate) const NO_ADDRESS: &str = "it is no address of a Redis server";

impl Place {
    /// What is wrong with it, found without connecting.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.info().is_err() {
            // The address may hold a password: it is left out.
            problems
                .push(Problem::at("url", NO_ADDRESS).help(
                    "write `redis://[user[:password]@]host[:port][/database]`, or `rediss:`",
                ));
        }
        if self.tls.is_some() && !self.is_tls() {
            problems.push(
                Problem::at("tls", "`url` does not ask for TLS").help("begin it with `rediss:`"),
            );
        }
        if let Some(Tls { certificate, key, .. }) = &self.tls
            && certificate.is_some() != key.is_some()
        {
            problems.push(Problem::at("tls", "`certificate` and `key` go together"));
        }
        if self.cluster && self.sentinel.is_some() {
            problems.push(Problem::at("sentinel", "a Cluster has no Sentinels"));
        }
        let sentinels = self.sentinel.iter().flat_map(|sentinel| &sentinel.more);
        for wrong in sentinels.filter(|at| host_and_port(at).is_none()) {
            let text = format!("`{wrong}` is neither `host` nor `host:port`");
            problems.push(Problem::at("sentinel", text));
        }
        problems
    }

    fn info(&self) -> RedisResult<ConnectionInfo> {
        let info = self.url.as_str().into_connection_info()?;
        // Whatever the address says: answers have another form in RESP3.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        Ok(info.set_redis_settings(settings).set_tcp_settings(tcp_settings()))
    }

    /// The name of the store that the server's database is, for what is settled in one step. It
    /// includes the user, since another one may lack the rights, but no password. A Cluster is many
    /// stores.
    pub(crate) fn store(&self) -> Option<String> {
        let database = self.database().filter(|_| !self.cluster)?;
        Some(format!("redis {} {database}", self.user()))
    }

    /// The server's database, whichever user connects to it.
    pub(crate) fn database(&self) -> Option<String> {
        let info = self.info().ok()?;
        let (db, addr) = (info.redis_settings().db(), info.addr());
        Some(match &self.sentinel {
            None => format!("{addr}/{db}"),
            Some(sentinel) => format!("{} of {addr}/{db}", sentinel.master),
        })
    }

    /// The address of a queue of this name, for generated documents.
    pub(crate) fn of(&self, name: String) -> QueuePlace {
        let protocol = if self.is_tls() { "rediss" } else { "redis" };
        let own = self.info().ok().map(|info| info.addr().clone());
        let own = own.and_then(|addr| match addr {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some(with_port(&host, port))
            }
            _ => None,
        });
        let sentinels = self.sentinel.iter().flat_map(|sentinel| &sentinel.more);
        let more = sentinels.filter_map(|at| host_and_port(at));
        let hosts = own.into_iter().chain(more.map(|(host, port)| with_port(&host, port)));
        let (hosts, patterns) = (hosts.collect(), Vec::new());
        QueuePlace { protocol, hosts, names: vec![name], patterns }
    }

    /// Whether it uses TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.url.starts_with("rediss:")
    }

    /// The user as which the server knows this client.
    pub(crate) fn user(&self) -> String {
        let user = self.info().ok().and_then(|i| i.redis_settings().username().map(str::to_owned));
        user.unwrap_or_else(|| "default".to_owned())
    }

    /// Prepares for connecting. Reads certificates.
    ///
    /// # Errors
    /// The address is invalid, or a certificate cannot be read; the error contains no password.
    pub(crate) fn server(&self) -> Result<Server, String> {
        // The client's error may contain the address as it was written, with its password.
        let info = self.info().map_err(|_| "`url` is no address of a server".to_owned())?;
        let tls = self.is_tls();
        if tls {
            // Another part of the program may have installed one; that one will do as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let certificates = self.certificates()?;
        let said = |error: redis::RedisError| format!("the server cannot be used: {error}");
        if let Some(sentinel) = &self.sentinel {
            let client = sentinel_client(sentinel, &info, tls, certificates).map_err(said)?;
            return Ok(Server::Sentinel(Mutex::new(client)));
        }
        if self.cluster {
            let cluster = ClusterPlace { info, certificates };
            cluster.client(ANSWER_MAX).map_err(said)?;
            return Ok(Server::Cluster(Box::new(cluster)));
        }
        let client = match certificates {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        };
        client.map(Server::Single).map_err(said)
    }

    /// The same, but for the Cluster node that `url` names alone.
    pub(crate) fn node(&self) -> Result<Server, String> {
        Self { cluster: false, ..self.clone() }.server()
    }

    /// Whether certificates come from files, whose contents may change.
    pub(crate) fn has_certificates(&self) -> bool {
        let files =
            |Tls { ca, certificate, key }: &Tls| [ca, certificate, key].map(Option::is_some);
        self.tls.as_ref().is_some_and(|tls| files(tls).contains(&true))
    }

    fn certificates(&self) -> Result<Option<TlsCertificates>, String> {
        let Some(Tls { ca, certificate, key }) = &self.tls else { return Ok(None) };
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        let root_cert = ca.as_ref().map(read).transpose()?;
        let client_tls = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let shown =
                    ClientTlsConfig { client_cert: read(certificate)?, client_key: read(key)? };
                // Else only a connection would find it, when what was read before is forgotten.
                let fits = fits(&shown).map_err(|why| {
                    let [certificate, key] = [certificate, key].map(|path| path.display());
                    format!("{certificate} and {key} cannot be used together: {why}")
                });
                fits.map(|()| Some(shown))?
            }
            _ => None,
        };
        Ok(Some(TlsCertificates { client_tls, root_cert }))
    }
}

/// Whether a certificate and a key belong together, which are written one after the other.
fn fits(shown: &ClientTlsConfig) -> Result<(), String> {
    let chain = CertificateDer::pem_slice_iter(&shown.client_cert).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("the certificate: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(&shown.client_key);
    let key = key.map_err(|error| format!("the key: {error}"))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(drop).map_err(|error| error.to_string())
}

/// A server whose machine died, or that a router has forgotten, closes nothing.
fn tcp_settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_AGAIN);
    let keepalive = keepalive.with_retries(KEEPALIVE_TRIES);
    TcpSettings::default().set_nodelay(true).set_keepalive(keepalive)
}

/// `host:port`, an address without a scheme.
fn with_port(host: &str, port: u16) -> String {
    match host.contains(':') && !host.starts_with('[') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

fn host_and_port(address: &str) -> Option<(String, u16)> {
    const PORT: u16 = 26_379;
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (address, PORT),
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn sentinel_client(
    sentinel: &Sentinel,
    info: &ConnectionInfo,
    tls: bool,
    certificates: Option<TlsCertificates>,
) -> RedisResult<SentinelClient> {
    let address = |(host, port): (String, u16)| match tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    };
    let more = sentinel.more.iter().filter_map(|at| host_and_port(at)).map(address);
    let all = [info.addr().clone()].into_iter().chain(more);
    let mut builder =
        SentinelClientBuilder::new(all, &sentinel.master, SentinelServerType::Master)?
            .set_client_to_redis_db(info.redis_settings().db())
            .set_client_to_redis_tcp_settings(tcp_settings())
            .set_client_to_sentinel_tcp_settings(tcp_settings());
    if let Some(user) = info.redis_settings().username() {
        builder = builder.set_client_to_redis_username(user);
    }
    if let Some(password) = info.redis_settings().password() {
        builder = builder.set_client_to_redis_password(password);
    }
    if let Some(user) = &sentinel.user {
        builder = builder.set_client_to_sentinel_username(user);
    }
    if let Some(password) = &sentinel.password {
        builder = builder.set_client_to_sentinel_password(password);
    }
    if tls {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_tls_mode(TlsMode::Secure);
    }
    if let Some(certificates) = certificates {
        builder = builder
            .set_client_to_redis_certificates(certificates.clone())
            .set_client_to_sentinel_certificates(certificates);
    }
    builder.build()
}

/// What connections are made with.
pub(crate) enum Server {
    Single(Client),
    Sentinel(Mutex<SentinelClient>),
    Cluster(Box<ClusterPlace>),
}

/// The address of a Cluster.
pub(crate) struct ClusterPlace {
    info: ConnectionInfo,
    certificates: Option<TlsCertificates>,
}

impl ClusterPlace {
    /// The client sets the timeouts: this one is for answers that may take `answer_max`.
    fn client(&self, answer_max: Duration) -> RedisResult<ClusterClient> {
        let builder = ClusterClientBuilder::new([self.info.clone()])
            .tcp_settings(tcp_settings())
            .connection_timeout(CONNECT_MAX)
            .response_timeout(answer_max);
        match &self.certificates {
            Some(certificates) => builder.certs(certificates.clone()).build(),
            None => builder.build(),
        }
    }
}

impl Server {
    /// Connects. Answers may take this long.
    pub(crate) async fn connect(&self, answer_max: Duration) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(answer_max));
        Ok(match self {
            Self::Single(client) => Connection::Single(
                client.get_multiplexed_async_connection_with_config(&config).await?,
            ),
            Self::Sentinel(client) => Connection::Single(
                client.lock().await.get_async_connection_with_config(&config).await?,
            ),
            Self::Cluster(place) => {
                Connection::Cluster(place.client(answer_max)?.get_async_connection().await?)
            }
        })
    }
}

impl Server {
    /// Calls `heard` whenever something is published on this channel, until the connection breaks.
    /// A Cluster is not listened to.
    pub(crate) async fn listen(&self, channel: &str, heard: impl Fn()) -> RedisResult<()> {
        let client = match self {
            Self::Single(client) => client.clone(),
            Self::Sentinel(client) => client.lock().await.async_get_client().await?,
            Self::Cluster(_) => return Ok(()),
        };
        let notices = within(CONNECT_MAX, client.get_async_pubsub()).await?;
        let (mut asking, mut messages) = notices.split();
        within(ANSWER_MAX, asking.subscribe(channel)).await?;
        // The consumer now looks for what was published before the subscription began.
        heard();
        loop {
            match timeout(SILENCE_MAX, messages.next()).await {
                Ok(Some(_)) => heard(),
                Ok(None) => return Ok(()),
                Err(_) => within(ANSWER_MAX, asking.ping::<Value>()).await.map(drop)?,
            }
        }
    }
}

/// What is done within this time; otherwise an error.
async fn within<T>(time: Duration, done: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    let late = |_| RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
    timeout(time, done).await.map_err(late)?
}

/// A connection to a server or a Cluster.
#[derive(Clone)]
pub(crate) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Connection {
    /// Sets how long answers may take; on a Cluster that stays as it was when connecting.
    pub(crate) fn set_answer_max(&mut self, answer_max: Duration) {
        if let Self::Single(connection) = self {
            connection.set_response_timeout(answer_max);
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a redis::Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_host_is_taken_with_a_port_and_without() {
        let addresses = ["cache", "cache:6380", "10.0.0.1", "::1", "[::1]", "[::1]:6380"];
        let wanted =
            ["cache:6379", "cache:6380", "10.0.0.1:6379", "[::1]:6379", "[::1]:6379", "[::1]:6380"];
        assert_eq!(
            addresses.map(super::address),
            wanted.map(|address| format!("redis://{address}"))
        );
    }
}
