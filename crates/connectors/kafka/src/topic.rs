//! Topics: whether they are there, and making them.

use std::time::{Duration, Instant};

use brigade_core::connector::ConnectorError;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;

use crate::client::{Heard, explain};
use crate::settings::{Role, Settings, Site};

/// How long a broker may take to answer when a queue is opened.
pub(crate) const ASK: Duration = Duration::from_secs(10);
/// How often it is looked whether it has said why it does not.
const STEP: Duration = Duration::from_millis(200);

/// Makes a topic, if the queue says so and it is not there.
pub(crate) async fn make(
    settings: &Settings,
    topic: &str,
    site: &Site,
) -> Result<(), ConnectorError> {
    let Some(create) = settings.create else { return Ok(()) };
    let doing = format!("topic `{topic}` cannot be made");
    let explained = |error: KafkaError| explain(site, &doing, &error);
    let admin: AdminClient<Heard> =
        settings.client(Role::Producer).create_with_context(Heard::new(site)).map_err(explained)?;
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

/// Which cluster it is, if a broker lets us in. Blocks.
pub(crate) fn reach(site: &Site, mut config: ClientConfig) -> Result<Asker, ConnectorError> {
    let doing = "cannot reach the broker";
    // Not a member of the group: it only asks.
    config.remove("group.id").remove("group.instance.id");
    let heard = Heard::new(site);
    let client: BaseConsumer<Heard> =
        config.create_with_context(heard).map_err(|error| explain(site, doing, &error))?;
    let begun = Instant::now();
    loop {
        if let Some(cluster) = client.client().fetch_cluster_id(STEP) {
            return Ok(Asker { client, cluster });
        }
        // What went wrong is only told to who polls.
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

/// A client that only asks.
pub(crate) struct Asker {
    client: BaseConsumer<Heard>,
    pub(crate) cluster: String,
}

impl Asker {
    /// Refuses topics that are not there.
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
