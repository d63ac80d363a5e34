use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Guarantee, Problem, Producer,
    QueueSpec, Reader,
};
use rdkafka::ClientConfig;
use rdkafka::producer::Producer as _;
use serde_json::Value;

use crate::client::explain;
use crate::consumer::{KafkaConsumer, blocking};
use crate::lag::Lagging;
use crate::poll::{Client, Shared, Watch};
use crate::producer::KafkaProducer;
use crate::settings::{Role, Settings, Site, schema};
use crate::topic::{ASK, Asker, known, make, reach};
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
        let mut config = settings.client(Role::Consumer);
        config.set("group.id", &group).set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
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
        let revoke_within = settings.revoke_within.0;
        let opened = blocking(move || {
            asker.know(&site, &topics)?;
            let shared = Shared::new(site, asker.cluster, revoke_within);
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
        let producer = KafkaProducer::open(site.clone(), &topic, settings.client(Role::Producer))?;
        let client = Arc::clone(producer.client());
        let name = topic.clone();
        let asked = blocking(move || client.client().fetch_metadata(Some(&name), ASK)).await?;
        let doing = "cannot reach the broker";
        let metadata = asked.map_err(|error| explain(&site, doing, &error))?;
        known(&site, &metadata, &topic)?;
        Ok(Arc::new(producer))
    }
}

/// Asks whether a broker lets us in, on a thread where it may block.
async fn ask(site: &Site, config: &ClientConfig) -> Result<Asker, ConnectorError> {
    let (site, config) = (site.clone(), config.clone());
    blocking(move || reach(&site, config)).await?
}
