use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Guarantee, Order, Problem,
    Producer, QueueAdmin, QueueSpec, Reader,
};
use rdkafka::ClientConfig;
use serde_json::Value;

use crate::admin::TopicAdmin;
use crate::client::explain;
use crate::consumer::{KafkaConsumer, blocking};
use crate::lag::Lagging;
use crate::poll::{Client, Shared, Watch};
use crate::producer::KafkaProducer;
use crate::settings::{Role, Settings, Site, schema};
use crate::topic::{Asker, make, reach};
use crate::transaction::Transactions;

/// What topics can do.
pub(crate) const FEATURES: Features = Features {
    consume: true,
    produce: true,
    durable: true,
    order: true,
    key_order: true,
    groups: true,
    replay: true,
    batch: true,
    key: true,
    headers: true,
    event_time: true,
    message_id: true,
    null_payload: true,
    empty_payload: true,
    binary: true,
    settle_together: true,
    ..Features::NONE
};

/// The longest record, with all that is around it, if `message.max.bytes` does not say otherwise.
const MESSAGE_MAX: u64 = 1_000_000;
/// Room for what is around a payload: the headers that Brigade adds, and a short key.
const AROUND: u64 = 1024;

/// The connector of queues on Kafka, type `kafka`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kafka;

#[async_trait]
impl Connector for Kafka {
    fn type_name(&self) -> &'static str {
        "kafka"
    }

    fn features(&self, settings: &Value) -> Features {
        let several = settings.get("topics").is_some();
        let max = settings.pointer("/config/message.max.bytes").map(ToString::to_string);
        let max = max.and_then(|max| max.trim_matches('"').parse().ok()).unwrap_or(MESSAGE_MAX);
        let max_message_bytes = Some(u64::saturating_sub(max, AROUND));
        Features { produce: !several, max_message_bytes, ..FEATURES }
    }

    fn store_name(&self, settings: &Value) -> String {
        let settings: Result<Settings, _> = serde_json::from_value(settings.clone());
        let servers = settings.ok().and_then(|settings| settings.servers(Role::Consumer));
        format!("Kafka at {}", servers.unwrap_or_default())
    }

    fn schema(&self) -> Value {
        schema()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        match Settings::of(queue) {
            Ok(settings) => settings.problems(),
            Err(error) => {
                vec![Problem { path: Vec::new(), message: error.to_string(), help: None }]
            }
        }
    }

    async fn reach(&self, queue: &QueueSpec, _: &ConnectorEnv) -> Result<(), ConnectorError> {
        let settings = Settings::of(queue)?;
        let site = Site::new(queue, &settings, Role::Consumer);
        let asker = ask(&site, &settings.client(Role::Consumer)).await?;
        if settings.create.is_some() {
            return Ok(());
        }
        let topics = settings.subscription(queue);
        blocking(move || asker.know(&site, &topics)).await?
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let settings = Settings::of(queue)?;
        let site = Site::new(queue, &settings, Role::Consumer);
        let group = settings.group(queue, reader);
        let config = settings.member(queue, reader);
        let asker = ask(&site, &config).await?;
        make(&settings, &settings.topic(queue), &site).await?;
        let transactions = (queue.guarantee == Guarantee::ExactlyOnce).then(|| {
            let mut config = settings.client(Role::Producer);
            // Outputs share the input's cluster: one set of brokers.
            config.set("bootstrap.servers", &site.servers);
            Transactions::new(site.clone(), config, &group)
        });
        let topics = settings.subscription(queue);
        let order = reader.order;
        let opened = blocking(move || {
            asker.know(&site, &topics)?;
            let shared = Shared::new(site, asker.cluster, &settings);
            let client: Client = config
                .create_with_context(Watch(Arc::clone(&shared)))
                .map_err(|error| explain(&shared.site, "the consumer cannot be made", &error))?;
            let lagging = Lagging::new(shared.site.clone(), topics.clone(), config);
            KafkaConsumer::open(shared, client, &topics, order, lagging, transactions)
        });
        Ok(Arc::new(opened.await??))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        let settings = Settings::of(queue)?;
        let site = Site::new(queue, &settings, Role::Producer);
        let topic = settings.topic(queue);
        make(&settings, &settings.topic(queue), &site).await?;
        let producer = KafkaProducer::open(site, &topic, settings.client(Role::Producer))?;
        producer.look().await?;
        Ok(Arc::new(producer))
    }

    async fn admin(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        let settings = Settings::of(queue)?;
        if !settings.topics.is_empty() {
            return Err(ConnectorError::unsupported(format!(
                "queue `{}` names several `topics`: only queues of one can be looked into",
                queue.name
            )));
        }
        let site = Site::new(queue, &settings, Role::Consumer);
        let topic = settings.topic(queue);
        let Asker { cluster, .. } = ask(&site, &settings.client(Role::Consumer)).await?;
        make(&settings, &topic, &site).await?;
        let producing = Site::new(queue, &settings, Role::Producer);
        let producer = KafkaProducer::open(producing, &topic, settings.client(Role::Producer))?;
        producer.look().await?;
        // Nobody in this file reads it: another may, under the name that it would have.
        let alone = [Arc::from("")];
        let groups = if queue.groups.is_empty() { &alone } else { &queue.groups[..] };
        let group = |name: &Arc<str>| {
            let (stage, group) = (Arc::clone(name), Arc::clone(name));
            let reader = Reader { stage, group, order: Order::None };
            (name.to_string(), settings.member(queue, &reader))
        };
        let groups = groups.iter().map(group).collect();
        Ok(Arc::new(TopicAdmin::open(site, topic, cluster, groups, producer)?))
    }
}

/// Asks whether a broker lets us in, on a thread where it may block.
async fn ask(site: &Site, config: &ClientConfig) -> Result<Asker, ConnectorError> {
    let (site, config) = (site.clone(), config.clone());
    blocking(move || reach(&site, config)).await?
}
