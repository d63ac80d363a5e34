//! Topics: whether they are there, and making them.

use std::time::Duration;

use brigade_core::connector::ConnectorError;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;

use crate::client::explain;
use crate::settings::{Role, Settings, Site};

/// How long a broker may take to answer when a queue is opened.
pub(crate) const ASK: Duration = Duration::from_secs(10);

/// Makes a topic, if the queue says so and it is not there.
pub(crate) async fn make(
    settings: &Settings,
    topic: &str,
    site: &Site,
) -> Result<(), ConnectorError> {
    let Some(create) = settings.create else { return Ok(()) };
    let doing = format!("topic `{topic}` cannot be made");
    let explained = |error: KafkaError| explain(site, &doing, &error);
    let admin: AdminClient<DefaultClientContext> =
        settings.client(Role::Producer).create().map_err(explained)?;
    let new = NewTopic::new(topic, create.partitions, TopicReplication::Fixed(create.replication));
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

/// Which cluster it is; its topics are there. Blocks.
pub(crate) fn cluster(
    site: &Site,
    config: &ClientConfig,
    topics: &[String],
) -> Result<String, ConnectorError> {
    let explained = |error: KafkaError| explain(site, "cannot reach the broker", &error);
    // Not a member of the group: it only asks.
    let mut config = config.clone();
    config.remove("group.id").remove("group.instance.id");
    let client: BaseConsumer = config.create().map_err(explained)?;
    for topic in topics.iter().filter(|topic| !topic.starts_with('^')) {
        let metadata = client.fetch_metadata(Some(topic), ASK).map_err(explained)?;
        known(site, &metadata, topic)?;
    }
    let cluster = client.client().fetch_cluster_id(ASK);
    cluster.ok_or_else(|| explained(KafkaError::MetadataFetch(Code::OperationTimedOut)))
}
