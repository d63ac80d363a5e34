//! The connector of queues on Kafka: it checks topics, and opens consumers and producers.

use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Features, Guarantee, Order, Problem,
    Producer, QueueAdmin, QueuePlace, QueueSpec, Reader, Used,
};
use rdkafka::ClientConfig;
use serde_json::Value;

use crate::admin::{GroupSettings, TopicAdmin};
use crate::client::{Recollection, explain};
use crate::conflict::conflict;
use crate::consumer::{KafkaConsumer, Reading, blocking};
use crate::lag::Lagging;
use crate::membership::Membership;
use crate::poll::{Client, Shared, Watch};
use crate::producer::KafkaProducer;
use crate::properties::SERVERS;
use crate::retry::RetryTopics;
use crate::settings::{FEATURES, Role, Settings, Site, schema};
use crate::topic::{Asker, make, make_retry_topics, reach};
use crate::transaction::Transactions;

/// The connector of queues on Kafka, type `kafka`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kafka;

#[async_trait]
impl Connector for Kafka {
    fn type_name(&self) -> &'static str {
        "kafka"
    }

    fn features(&self, settings: &Value) -> Features {
        match serde_json::from_value::<Settings>(settings.clone()) {
            Ok(settings) => settings.features(),
            Err(_) => FEATURES,
        }
    }

    fn store_name(&self, settings: &Value) -> String {
        let settings: Result<Settings, _> = serde_json::from_value(settings.clone());
        let servers = settings.ok().and_then(|settings| settings.servers(Role::Consumer));
        format!("Kafka at {}", servers.unwrap_or_default())
    }

    fn place(&self, queue: &QueueSpec) -> QueuePlace {
        let settings = Settings::of(queue);
        settings.map_or_else(|_| QueuePlace::default(), |settings| settings.place(queue))
    }

    fn schema(&self) -> Value {
        schema()
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        match Settings::of(queue) {
            Ok(settings) => settings.problems(queue),
            Err(error) => {
                vec![Problem::whole(error.to_string())]
            }
        }
    }

    fn conflict(&self, one: Used<'_>, other: Used<'_>) -> Option<Problem> {
        if one.read && other.read { conflict(one.queue, other.queue) } else { None }
    }

    async fn reach(&self, queue: &QueueSpec, _: &ConnectorEnv) -> Result<(), ConnectorError> {
        let settings = Settings::of(queue)?;
        let site = Site::new(queue, &settings, Role::of(queue));
        let asker = ask(&site, settings.client(Role::Consumer)).await?;
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
        let mut config = settings.member(queue, reader);
        let asker = ask(&site, config.clone()).await?;
        for topic in settings.subscription(queue).iter().filter(|topic| !topic.starts_with('^')) {
            make(&settings, topic, &site).await?;
        }
        let names = settings.retry_names(queue, reader);
        let (asker, left) = make_retry_topics(asker, &settings, &names, &site).await?;
        let transactions = (queue.guarantee == Guarantee::ExactlyOnce)
            .then(|| Transactions::new(site.clone(), settings.producer_at(&site), &group));
        let in_transactions = transactions.is_some();
        let retry = RetryTopics::open(&settings, &group, &names, &site, in_transactions)?;
        let retry_topics = [names.topics, left].concat();
        let topics = settings.subscription(queue);
        // Only the broker's keys are known here. The order of a key that is in the payload is kept
        // where the payload is read; waiting for a broker's key as well would only get in the way.
        let by_field = reader.order == Order::Key && queue.key.is_some();
        let order = if by_field { Order::None } else { reader.order };
        let features = settings.features();
        let features = Features { key_order: features.key_order && !by_field, ..features };
        let opened = blocking(move || {
            asker.know(&site, &topics)?;
            let all = [&topics[..], &retry_topics].concat();
            let lagging = Lagging::new(site.clone(), topics, retry_topics, config.clone());
            Recollection::ask(&mut config);
            let (cluster, from_end) = (asker.cluster, settings.begins_at_end());
            let of = Membership { cluster, group, topics: all, in_transactions, from_end };
            let shared = Shared::new(site, of, &settings);
            let client: Client = config
                .create_with_context(Watch(Arc::clone(&shared)))
                .map_err(|error| explain(&shared.site, "the consumer cannot be made", &error))?;
            let reading = Reading { order, features, lagging, transactions, retry };
            KafkaConsumer::open(shared, client, reading)
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
        if settings.create.is_some() {
            // Creating a topic only reveals that nobody answers, not why.
            ask(&site, settings.client(Role::Consumer)).await?;
            make(&settings, &topic, &site).await?;
        }
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
        let site = Site::new(queue, &settings, Role::of(queue));
        let topic = settings.topic(queue);
        let Asker { cluster, .. } = ask(&site, settings.client(Role::Consumer)).await?;
        make(&settings, &topic, &site).await?;
        let producing = Site::new(queue, &settings, Role::Producer);
        let producer = KafkaProducer::open(producing, &topic, settings.client(Role::Producer))?;
        producer.look().await?;
        // No stage in this file reads it: one in another file may, under the group name it would
        // have.
        let alone = [Arc::from("")];
        let groups = if queue.groups.is_empty() { &alone } else { &queue.groups[..] };
        let group = |name: &Arc<str>| {
            let (stage, group) = (Arc::clone(name), Arc::clone(name));
            let reader = Reader { stage, group, order: Order::None };
            let mut config = settings.member(queue, &reader);
            config.set(SERVERS, &site.servers);
            let retry_topics = settings.retry_names(queue, &reader).topics;
            GroupSettings { name: name.to_string(), config, retry_topics }
        };
        let groups = groups.iter().map(group).collect();
        Ok(Arc::new(TopicAdmin::open(site, topic, cluster, groups, producer)?))
    }
}

/// Checks on a blocking thread whether a broker accepts the connection.
async fn ask(site: &Site, mut config: ClientConfig) -> Result<Asker, ConnectorError> {
    config.set(SERVERS, &site.servers);
    let site = site.clone();
    blocking(move || reach(&site, config)).await?
}
