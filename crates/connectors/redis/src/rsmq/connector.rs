//! The connector of RSMQ queues, and their settings.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::Period;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Defect, Features, Problem, Producer,
    QueueAdmin, QueuePlace, QueueSpec, Reader, Used,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::admin::RsmqAdmin;
use super::consumer::RsmqConsumer;
use super::definition::QueueDefinition;
use super::producer::RsmqProducer;
use crate::output::Target;
use crate::server::{Place, Sentinel, Tls};
use crate::wire::Wire;

/// The longest name that every client accepts.
const NAME_MAX: usize = 64;
/// The longest visibility timeout and delay, in seconds.
const SECONDS_MAX: u64 = 9_999_999;

/// The connector of RSMQ queues, type `rsmq`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rsmq;

/// The keys of an RSMQ queue. A queue that already exists keeps the settings that it has.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// The server: `redis://[user[:password]@]host[:port][/database]`, with TLS `rediss:`. Default:
    /// this machine, or `REDIS_HOST` (`host` or `host:port`).
    #[serde(default = "crate::server::local")]
    url: String,
    /// Certificates, if the system's do not suffice.
    tls: Option<Tls>,
    /// The Sentinels, of which `url` is one.
    sentinel: Option<Sentinel>,
    /// Whether `url` is a node of a Cluster.
    #[serde(default)]
    cluster: bool,
    /// The queue's name on the server: 1 to 64 letters, digits, `_` and `-`. Default: its name in
    /// the pipeline file.
    queue: Option<String>,
    /// The namespace. Default: `rsmq`.
    #[serde(default = "namespace")]
    namespace: String,
    /// How long a received message is hidden from others; renewed while the message is worked on.
    /// Whole seconds. Default: 30s.
    #[serde(default = "vt")]
    vt: Period,
    /// The longest body in bytes, 1024 to 65536, or -1 for no bound. Default: 65536.
    #[serde(default = "max_size")]
    maxsize: i64,
    /// Whether each message that is sent is announced on `rsmq:rt:QUEUE`, as with the Node client's
    /// `realtime`, and consumers listen there. Otherwise an empty queue is polled every 50 ms.
    #[serde(default)]
    realtime: bool,
    /// A message that is handed out again more often than this without an outcome becomes a dead
    /// letter of the kind `crash`: it may be what crashes the process that handles it. Stops,
    /// lost connections and pauses count too.
    #[serde(default = "crate::redeliveries::default_max")]
    max_redeliveries: u32,
}

impl Settings {
    /// The queue's server.
    fn place(&self) -> Place {
        let Self { url, tls, sentinel, cluster, .. } = self.clone();
        Place { url, tls, sentinel, cluster }
    }
}

fn namespace() -> String {
    "rsmq".to_owned()
}

fn vt() -> Period {
    Period(Duration::from_secs(30))
}

fn max_size() -> i64 {
    65_536
}

/// What RSMQ queues with these settings can do.
fn features(settings: &Settings) -> Features {
    Features {
        consume: true,
        produce: true,
        durable: true,
        competing: true,
        delay: true,
        retry_delay: true,
        attempts: true,
        batch: true,
        empty_payload: true,
        binary: true,
        settle_together: true,
        max_message_bytes: u64::try_from(settings.maxsize).ok(),
        ..Features::NONE
    }
}

/// An RSMQ queue: its keys and its connection.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) queue: Arc<str>,
    pub(crate) messages: String,
    pub(crate) hash: String,
    pub(crate) attempts: String,
    /// The channel on which sent messages are announced, if they are.
    pub(crate) realtime: Option<String>,
    pub(crate) vt: Duration,
    max_redeliveries: u32,
    pub(crate) features: Features,
    pub(crate) wire: Arc<Wire>,
    pub(crate) definition: QueueDefinition,
}

impl Site {
    /// The defect of a message that was handed out again this often, if that is too often.
    pub(crate) fn handed_out_too_often(&self, redeliveries: u32) -> Option<Box<Defect>> {
        crate::redeliveries::too_often(redeliveries, self.max_redeliveries)
    }

    /// The target of outputs that are written along with an ack.
    pub(crate) fn target(&self) -> Target {
        Target::Rsmq(self.definition.clone())
    }

    /// Makes the queue if it does not exist.
    async fn open(queue: &QueueSpec) -> Result<Self, ConnectorError> {
        let site = Self::new(queue)?;
        site.definition.make(&site.wire).await?;
        Ok(site)
    }

    fn new(queue: &QueueSpec) -> Result<Self, ConnectorError> {
        let settings: Settings = queue.settings()?;
        let name = settings.queue.clone().unwrap_or_else(|| queue.name.to_string());
        let wire = Wire::new(&queue.name, &settings.place())?;
        let definition = QueueDefinition {
            queue: Arc::clone(&queue.name),
            namespace: settings.namespace.clone(),
            name,
            vt: settings.vt.0.as_secs(),
            maxsize: settings.maxsize,
            realtime: settings.realtime,
        };
        Ok(Self {
            queue: Arc::clone(&queue.name),
            hash: definition.hash(),
            attempts: format!("{}:brigade:attempts", definition.messages()),
            realtime: definition.channel(),
            messages: definition.messages(),
            vt: settings.vt.0,
            max_redeliveries: settings.max_redeliveries,
            features: features(&settings),
            wire,
            definition,
        })
    }
}

fn problems(queue: &QueueSpec, settings: &Settings) -> Vec<Problem> {
    let mut problems = settings.place().problems();
    if settings.cluster {
        let text = "RSMQ's keys of one queue lie on several servers of a Cluster";
        problems.push(Problem::at("cluster", text).help("use a `redis_stream`, or a server alone"));
    }
    let name = settings.queue.as_deref().unwrap_or(&queue.name);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        let text = format!("`{name}` is no name that every RSMQ client takes");
        let help = "use 1 to 64 letters, digits, `_` and `-`";
        problems.push(Problem::at("queue", text).help(help));
    }
    let vt = settings.vt.0;
    if vt.subsec_nanos() != 0 || !(1..=SECONDS_MAX).contains(&vt.as_secs()) {
        problems.push(Problem::at("vt", "expected whole seconds, 1s to 9999999s"));
    }
    if settings.maxsize != -1 && !(1024..=65_536).contains(&settings.maxsize) {
        problems.push(Problem::at("maxsize", "expected 1024 to 65536, or -1 for no bound"));
    }
    problems
}

#[async_trait]
impl Connector for Rsmq {
    fn type_name(&self) -> &'static str {
        "rsmq"
    }

    fn features(&self, settings: &Value) -> Features {
        serde_json::from_value(settings.clone()).map_or(Features::NONE, |s| features(&s))
    }

    fn store_name(&self, settings: &Value) -> String {
        let settings: Result<Settings, _> = serde_json::from_value(settings.clone());
        settings.ok().and_then(|settings| settings.place().store()).unwrap_or_default()
    }

    fn place(&self, queue: &QueueSpec) -> QueuePlace {
        let Ok(settings) = queue.settings::<Settings>() else { return QueuePlace::default() };
        let name = settings.queue.clone().unwrap_or_else(|| queue.name.to_string());
        settings.place().of(name)
    }

    fn schema(&self) -> Value {
        schemars::schema_for!(Settings).to_value()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        match queue.settings() {
            Ok(settings) => problems(queue, &settings),
            Err(error) => {
                vec![Problem { path: Vec::new(), message: error.to_string(), help: None }]
            }
        }
    }

    fn conflict(&self, one: Used<'_>, other: Used<'_>) -> Option<Problem> {
        let key = |used: Used<'_>| {
            let settings: Settings = used.queue.settings().ok().filter(|_| used.read)?;
            let name = settings.queue.clone().unwrap_or_else(|| used.queue.name.to_string());
            Some((settings.place().database()?, settings.namespace, name))
        };
        let (one, other) = (key(one)?, key(other)?);
        (one == other).then(|| {
            let (_, namespace, name) = one;
            let message = format!(
                "both read the RSMQ queue `{name}` of the namespace `{namespace}`: each message would \
                 come to one of them only"
            );
            let help = "give each stage a queue of its own, or use a `redis_stream`, of which each gets all";
            Problem { path: Vec::new(), message, help: None }.help(help)
        })
    }

    async fn reach(&self, queue: &QueueSpec, _: &ConnectorEnv) -> Result<(), ConnectorError> {
        let settings: Settings = queue.settings()?;
        let name = settings.queue.clone().unwrap_or_else(|| queue.name.to_string());
        let key = format!("{}:{name}", settings.namespace);
        Wire::new(&queue.name, &settings.place())?.reach(&key, "zset").await
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        _: &Reader,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(RsmqConsumer::new(Site::open(queue).await?)))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(RsmqProducer::new(Site::open(queue).await?)))
    }

    async fn admin(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        Ok(Arc::new(RsmqAdmin::new(Site::new(queue)?)))
    }
}
