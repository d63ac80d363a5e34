//! Topics: whether they exist, and creating them.

use std::time::{Duration, Instant};

use brigade_core::connector::ConnectorError;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::{Metadata, MetadataTopic};

use crate::client::{Heard, explain};
use crate::consumer::blocking;
use crate::retry::{self, RetryNames};
use crate::settings::{Create, Settings, Site};

/// How long a broker may take to answer when a queue is opened.
pub(crate) const ASK: Duration = Duration::from_secs(10);
/// How often it is checked whether it has reported why it does not answer.
const STEP: Duration = Duration::from_millis(200);

/// The error of what comes before any request.
const MAKING: &str = "the client cannot be made";

/// The broker's own default for partitions and replicas.
const BROKERS_DEFAULT: i32 = -1;

/// Creates a topic, if the queue says so and it does not exist.
pub(crate) async fn make(
    settings: &Settings,
    topic: &str,
    site: &Site,
) -> Result<(), ConnectorError> {
    let Some(Create { partitions, replication }) = settings.create else { return Ok(()) };
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
    make_one(settings, new, site).await
}

/// Creates a retry topic, with as many partitions as the queue says, otherwise with the broker's
/// default.
async fn make_retry(settings: &Settings, topic: &str, site: &Site) -> Result<(), ConnectorError> {
    let default = Create { partitions: BROKERS_DEFAULT, replication: BROKERS_DEFAULT };
    let Create { partitions, replication } = settings.create.unwrap_or(default);
    let largest = settings.property("message.max.bytes");
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
    let new = new.set("cleanup.policy", "delete");
    match &largest {
        Some(largest) => make_one(settings, new.set("max.message.bytes", largest), site).await,
        None => make_one(settings, new, site).await,
    }
}

/// Creates the retry topics that do not exist. Also returns those left by another configuration, on
/// which messages may still wait.
pub(crate) async fn make_retry_topics(
    asker: Asker,
    settings: &Settings,
    names: &RetryNames,
    site: &Site,
) -> Result<(Asker, Vec<String>), ConnectorError> {
    if names.topics.is_empty() {
        return Ok((asker, Vec::new()));
    }
    let (of_site, beginning) = (site.clone(), names.beginning.clone());
    let (asker, found) = blocking(move || {
        let found = asker.beginning_with(&of_site, &beginning);
        (asker, found)
    })
    .await?;
    let mut found = found?;
    for topic in &names.topics {
        retry::check_name(topic)?;
        if !found.contains(topic) {
            make_retry(settings, topic, site).await?;
        }
    }
    found.retain(|topic| !names.topics.contains(topic));
    Ok((asker, found))
}

async fn make_one(
    settings: &Settings,
    new: NewTopic<'_>,
    site: &Site,
) -> Result<(), ConnectorError> {
    let topic = new.name;
    let doing = format!("topic `{topic}` cannot be made");
    let explained = |error: KafkaError| explain(site, &doing, &error);
    let admin: AdminClient<Heard> =
        settings.producer_at(site).create_with_context(Heard::new(site)).map_err(explained)?;
    let options = AdminOptions::new().request_timeout(Some(ASK)).operation_timeout(Some(ASK));
    let made = admin.create_topics([&new], &options).await.map_err(explained)?;
    for one in made {
        match one {
            Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
            Err((_, code)) => return Err(explained(KafkaError::AdminOp(code))),
        }
    }
    Ok(())
}

/// Refuses a topic that the broker does not know.
pub(crate) fn known(site: &Site, metadata: &Metadata, topic: &str) -> Result<(), ConnectorError> {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let code = match found {
        Some(found) => found.error().map(Code::from),
        None => Some(Code::UnknownTopicOrPartition),
    };
    match code {
        None => Ok(()),
        Some(code) => {
            let doing = format!("topic `{topic}` cannot be used");
            Err(explain(site, &doing, &KafkaError::MetadataFetch(code)))
        }
    }
}

/// The cluster, if a broker accepts the connection. Blocks.
pub(crate) fn reach(site: &Site, mut config: ClientConfig) -> Result<Asker, ConnectorError> {
    let doing = "cannot reach the broker";
    // It only sends requests, without being a member of the group.
    config.remove("group.id").remove("group.instance.id");
    let heard = Heard::new(site);
    let client: BaseConsumer<Heard> =
        config.create_with_context(heard).map_err(|error| explain(site, MAKING, &error))?;
    let begun = Instant::now();
    loop {
        if let Some(cluster) = client.client().fetch_cluster_id(STEP) {
            return Ok(Asker { client, cluster });
        }
        // The client reports errors only when it is polled.
        let _ = client.poll(Duration::ZERO);
        if let Some(error) = client.context().trouble() {
            return Err(explain(site, doing, &error));
        }
        if begun.elapsed() > ASK {
            let silence = KafkaError::MetadataFetch(Code::OperationTimedOut);
            return Err(explain(site, doing, &silence));
        }
    }
}

/// A client that only sends requests.
pub(crate) struct Asker {
    client: BaseConsumer<Heard>,
    pub(crate) cluster: String,
}

impl Asker {
    /// The topics whose names begin with this.
    pub(crate) fn beginning_with(
        &self,
        site: &Site,
        beginning: &str,
    ) -> Result<Vec<String>, ConnectorError> {
        let metadata = self.client.fetch_metadata(None, ASK);
        let metadata =
            metadata.map_err(|error| explain(site, "cannot reach the broker", &error))?;
        let names = metadata.topics().iter().map(MetadataTopic::name);
        Ok(names.filter(|name| name.starts_with(beginning)).map(str::to_owned).collect())
    }

    /// Refuses topics that do not exist.
    pub(crate) fn know(&self, site: &Site, topics: &[String]) -> Result<(), ConnectorError> {
        for topic in topics.iter().filter(|topic| !topic.starts_with('^')) {
            let metadata = self.client.fetch_metadata(Some(topic), ASK);
            let metadata =
                metadata.map_err(|error| explain(site, "cannot reach the broker", &error))?;
            known(site, &metadata, topic)?;
        }
        Ok(())
    }
}
