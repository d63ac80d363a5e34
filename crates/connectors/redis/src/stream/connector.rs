//! The connector of queues on Redis Streams, and their settings.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::Period;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Problem, Producer, QueueAdmin,
    QueuePlace, QueueSpec, Reader, Used,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::admin::StreamAdmin;
use super::consumer::{Bounds, StreamConsumer};
use super::producer::StreamProducer;
use super::retention::Retention;
use crate::server::{Place, Sentinel, Tls};
use crate::wire::Wire;

/// What streams can do.
const FEATURES: Features = Features {
    consume: true,
    produce: true,
    durable: true,
    groups: true,
    competing: true,
    delay: true,
    retry_delay: true,
    attempts: true,
    batch: true,
    key: true,
    headers: true,
    event_time: true,
    message_id: true,
    null_payload: true,
    empty_payload: true,
    binary: true,
    settle_together: true,
    max_message_bytes: Some(512 << 20),
    ..Features::NONE
};

/// The connector of queues on Redis Streams, type `redis_stream`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RedisStreams;

/// The keys of a Redis stream.
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
    /// The stream's key. Default: the queue's name.
    pub(crate) stream: Option<String>,
    /// The consumer group, made if it does not exist. Default: the pipeline's name; if several
    /// stages read the stream, `PIPELINE.STAGE`.
    pub(crate) group: Option<String>,
    /// A message that is handed out again more often than this without an outcome becomes a dead
    /// letter of the kind `crash`: it may be what crashes the process that handles it. Stops and
    /// lost connections count too.
    #[serde(default = "crate::redeliveries::default_max")]
    max_redeliveries: u32,
    /// What another program's member holds is claimed when it has been idle for this long. Default:
    /// 1m.
    #[serde(default = "claim_idle")]
    claim_idle: Period,
    /// How much stays on the stream once every group has acked it. Default: nothing, but everything
    /// if the stream has no groups.
    retention: Option<Retention>,
}

fn claim_idle() -> Period {
    Period(Duration::from_secs(60))
}

impl Settings {
    /// The queue's server.
    fn place(&self) -> Place {
        let Self { url, tls, sentinel, cluster, .. } = self.clone();
        Place { url, tls, sentinel, cluster }
    }

    fn bounds(&self) -> Bounds {
        let Self { max_redeliveries, claim_idle: Period(claim_idle), retention, .. } = *self;
        Bounds { max_redeliveries, claim_idle, retention }
    }

    /// What is wrong with them, found without connecting.
    fn problems(&self, queue: &str) -> Vec<Problem> {
        let mut problems = self.place().problems();
        let stream = self.stream.as_deref().unwrap_or(queue);
        if self.cluster && stream.contains('}') && hash_tag(stream).is_none() {
            let message = format!(
                "on a Cluster no key can be put beside `{stream}`: it has a `}}` and no hash tag"
            );
            let help = "leave the `}` out, or write a part of the name in braces, as `{shop}:in`";
            problems.push(Problem::at("stream", message).help(help));
        }
        if stream.contains('\n') {
            let message =
                format!("the name {stream:?} has a line break, which no stream's may have here");
            problems.push(Problem::at("stream", message).help("give it a name of one line"));
        }
        if self.claim_idle.0.is_zero() {
            let message = "it must be more than 0: live members would lose what they work on";
            let help = "more than other programs work on one message, as `5m`";
            problems.push(Problem::at("claim_idle", message).help(help));
        }
        problems.extend(self.retention.and_then(Retention::problem));
        problems
    }
}

/// What streams with these settings can do.
fn features(settings: &Settings) -> Features {
    // A Cluster's streams are spread over several servers.
    Features { settle_together: !settings.cluster, ..FEATURES }
}

/// The names of everything that belongs to a stream.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    pub(crate) queue: Arc<str>,
    pub(crate) stream: String,
    pub(crate) group: String,
    pub(crate) later: String,
    pub(crate) delayed: String,
    pub(crate) attempts: String,
    pub(crate) incarnation: String,
}

impl Keys {
    pub(crate) fn new(queue: &QueueSpec, settings: &Settings, reader: Option<&Reader>) -> Self {
        let stream = settings.stream.clone().unwrap_or_else(|| queue.name.to_string());
        let base = settings.group.clone().unwrap_or_else(|| queue.pipeline.to_string());
        let group = match reader {
            Some(reader) if !reader.group.is_empty() => format!("{base}.{}", reader.group),
            _ => base,
        };
        let beside = beside(&stream);
        Self {
            queue: Arc::clone(&queue.name),
            later: format!("{beside}:brigade:later"),
            delayed: format!("{beside}:brigade:{group}:delayed"),
            attempts: format!("{beside}:brigade:{group}:attempts"),
            incarnation: format!("{beside}:brigade:incarnation"),
            stream,
            group,
        }
    }

    /// The key that shows that a member is alive.
    pub(crate) fn alive(&self, member: &[u8]) -> Vec<u8> {
        let before = format!("{}:brigade:{}:alive:", beside(&self.stream), self.group);
        [before.as_bytes(), member].concat()
    }
}

/// The prefix of the keys that belong to a stream: on a Cluster it puts them in the stream's slot.
fn beside(stream: &str) -> String {
    match hash_tag(stream) {
        Some(tag) => format!("{{{tag}}}{stream}"),
        None => format!("{{{stream}}}"),
    }
}

/// The part of a key that determines its slot on a Cluster, unless the whole key does.
fn hash_tag(key: &str) -> Option<&str> {
    let (tag, _) = key.split_once('{')?.1.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

#[async_trait]
impl Connector for RedisStreams {
    fn type_name(&self) -> &'static str {
        "redis_stream"
    }

    fn features(&self, settings: &Value) -> Features {
        serde_json::from_value(settings.clone()).map_or(FEATURES, |s| features(&s))
    }

    fn store_name(&self, settings: &Value) -> String {
        let settings: Result<Settings, _> = serde_json::from_value(settings.clone());
        settings.ok().and_then(|settings| settings.place().store()).unwrap_or_default()
    }

    fn place(&self, queue: &QueueSpec) -> QueuePlace {
        let Ok(settings) = queue.settings::<Settings>() else { return QueuePlace::default() };
        let name = settings.stream.clone().unwrap_or_else(|| queue.name.to_string());
        settings.place().of(name)
    }

    fn schema(&self) -> Value {
        schemars::schema_for!(Settings).to_value()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        match queue.settings::<Settings>() {
            Ok(settings) => settings.problems(&queue.name),
            Err(error) => {
                vec![Problem { path: Vec::new(), message: error.to_string(), help: None }]
            }
        }
    }

    fn conflict(&self, one: Used<'_>, other: Used<'_>) -> Option<Problem> {
        let keys = |used: Used<'_>| {
            let settings: Settings = used.queue.settings().ok().filter(|_| used.read)?;
            Some((settings.place().database()?, groups(used.queue, &settings)))
        };
        let ((database, ones), (others_database, others)) = (keys(one)?, keys(other)?);
        let same = |(_, keys): &&(String, Keys)| {
            let mut others = others.iter();
            others.any(|(_, other)| (&other.stream, &other.group) == (&keys.stream, &keys.group))
        };
        let (_, keys) = ones.iter().find(same).filter(|_| database == others_database)?;
        let message = format!(
            "both read the stream `{}` as the group `{}`: each message would come to one of them only",
            keys.stream, keys.group
        );
        let help =
            "have the stages read one queue, so that each gets all, or give each queue a `group`";
        Some(Problem { path: Vec::new(), message, help: None }.help(help))
    }

    async fn reach(&self, queue: &QueueSpec, _: &ConnectorEnv) -> Result<(), ConnectorError> {
        let settings: Settings = queue.settings()?;
        let stream = Keys::new(queue, &settings, None).stream;
        Wire::new(&queue.name, &settings.place())?.reach(&stream, "stream").await
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let settings: Settings = queue.settings()?;
        let keys = Keys::new(queue, &settings, Some(reader));
        let (place, bounds) = (settings.place(), settings.bounds());
        let groups = group_names(queue, &settings);
        let opened = StreamConsumer::open(keys, groups, &place, features(&settings), bounds);
        Ok(Arc::new(opened.await?))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(producer(queue).await?))
    }

    async fn admin(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        let settings: Settings = queue.settings()?;
        let mut groups = groups(queue, &settings);
        if groups.is_empty() {
            // No stage in this file reads it; another file's may, under the name that this file's
            // would have.
            groups.push((String::new(), Keys::new(queue, &settings, None)));
        }
        let wire = Wire::new(&queue.name, &settings.place())?;
        Ok(Arc::new(StreamAdmin::new(groups, queue.clone(), wire, settings.retention)))
    }
}

/// A stream's keys for each group that reads it, with the group's name in the pipeline file.
fn groups(queue: &QueueSpec, settings: &Settings) -> Vec<(String, Keys)> {
    let keys = |group: &Arc<str>| {
        let reader = Reader {
            stage: Arc::clone(group),
            group: Arc::clone(group),
            order: brigade_core::connector::Order::None,
        };
        (group.to_string(), Keys::new(queue, settings, Some(&reader)))
    };
    queue.groups.iter().map(keys).collect()
}

/// The server's names of the groups that read a stream.
fn group_names(queue: &QueueSpec, settings: &Settings) -> Vec<String> {
    groups(queue, settings).into_iter().map(|(_, keys)| keys.group).collect()
}

/// Opens a producer for a stream, after making the groups that read it.
pub(super) async fn producer(queue: &QueueSpec) -> Result<StreamProducer, ConnectorError> {
    let settings: Settings = queue.settings()?;
    let groups = group_names(queue, &settings);
    let keys = Keys::new(queue, &settings, None);
    let (features, retention) = (features(&settings), settings.retention);
    StreamProducer::open(keys, groups, &settings.place(), features, retention).await
}
