//! Administration of a topic. Kafka cannot delete single records: what is deleted here is committed
//! as resolved, for each group that reads the topic in this pipeline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use brigade_core::connector::{
    ConnectorError, Outgoing, Peeked, Produced, Producer as _, QueueAdmin, QueueStatus,
};
use brigade_core::watermark::Watermark;
use brigade_core::{IncarnationId, Message};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::client::{Heard, explain};
use crate::consumer::blocking;
use crate::lag::{Lagging, ends};
use crate::metadata;
use crate::poll::places_of;
use crate::producer::KafkaProducer;
use crate::record::{self, Shelf};
use crate::settings::Site;

/// How long one request to the broker may take.
const ASK: Duration = Duration::from_secs(10);
/// A position is a partition and an offset.
const OFFSET_BITS: u32 = 48;

/// See the module.
pub(crate) struct TopicAdmin {
    desk: Arc<Desk>,
    producer: KafkaProducer,
}

struct Desk {
    site: Site,
    topic: String,
    cluster: String,
    /// The groups, with their names in the pipeline file; at least one.
    groups: Vec<Group>,
    /// One request after the other: a client reads one place at a time.
    turn: Mutex<()>,
}

struct Group {
    name: String,
    /// Its name at the broker.
    id: String,
    client: BaseConsumer<Heard>,
    lagging: Lagging,
}

/// A group that reads the topic.
pub(crate) struct GroupSettings {
    /// Its name in the pipeline file.
    pub(crate) name: String,
    /// The properties of its members.
    pub(crate) config: ClientConfig,
    pub(crate) retry_topics: Vec<String>,
}

impl Group {
    /// How much of the topic itself waits.
    fn waiting(&self) -> KafkaResult<u64> {
        self.lagging.waiting_for(&self.client).map(|lag| lag.ready.unwrap_or_default())
    }
}

/// The state of a partition for a group.
struct Partition {
    number: i32,
    watermark: Watermark,
    /// The offset after the topic's last record.
    past: u64,
}

impl TopicAdmin {
    pub(crate) fn open(
        site: Site,
        topic: String,
        cluster: String,
        groups: Vec<GroupSettings>,
        producer: KafkaProducer,
    ) -> Result<Self, ConnectorError> {
        let open = |GroupSettings { name, mut config, retry_topics }: GroupSettings| {
            let id = config.get("group.id").unwrap_or_default().to_owned();
            config.remove("group.instance.id");
            config.set("enable.partition.eof", "true");
            let client = config
                .create_with_context(Heard::new(&site))
                .map_err(|error| explain(&site, "the consumer cannot be made", &error))?;
            let lagging = Lagging::new(site.clone(), vec![topic.clone()], retry_topics, config);
            Ok(Group { name, id, client, lagging })
        };
        let groups = groups.into_iter().map(open).collect::<Result<_, ConnectorError>>()?;
        let desk = Desk { site, topic, cluster, groups, turn: Mutex::default() };
        Ok(Self { desk: Arc::new(desk), producer })
    }

    async fn at_desk<T: Send + 'static>(
        &self,
        doing: &'static str,
        ask: impl FnOnce(&Desk) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, ConnectorError> {
        let desk = Arc::clone(&self.desk);
        let asked = blocking(move || {
            let _turn = desk.turn.lock();
            ask(&desk).map_err(|error| desk.explain(doing, &error))
        });
        asked.await?
    }
}

impl Desk {
    fn explain(&self, doing: &str, error: &KafkaError) -> ConnectorError {
        let members = [Code::UnknownMemberId, Code::IllegalGeneration, Code::RebalanceInProgress];
        match error.rdkafka_error_code() {
            Some(code) if members.contains(&code) => {
                let groups = self.groups.iter().map(|group| format!("`{}`", group.id));
                let groups = groups.collect::<Vec<_>>().join(", ");
                ConnectorError::permanent(self.site.told(format!(
                    "{doing}: the group has members ({groups}): stop all stages that read from Kafka as this \
                     group, whatever the topic, or, if one was killed, wait until its session has timed out \
                     (`session.timeout.ms`); a queue that no stage reads may have a `group` of its own ({code})"
                )))
            }
            _ => explain(&self.site, doing, error),
        }
    }

    fn partitions(&self, group: &Group) -> KafkaResult<Vec<Partition>> {
        let found = group.client.fetch_metadata(Some(&self.topic), ASK)?;
        let mut list = TopicPartitionList::new();
        for topic in found.topics().iter().filter(|found| found.name() == self.topic) {
            for partition in topic.partitions() {
                list.add_partition(&self.topic, partition.id());
            }
        }
        let committed = group.client.committed_offsets(list, ASK)?;
        let mut partitions = Vec::with_capacity(committed.count());
        let places = places_of(&committed);
        for (one, ends) in committed.elements().iter().zip(ends(&group.client, places.iter())?) {
            let low = match one.offset() {
                Offset::Offset(offset) => u64::try_from(offset).unwrap_or_default(),
                _ => 0,
            };
            let mut watermark = metadata::decode(low, &metadata::of(one));
            // Records that were deleted belong to nobody any more.
            watermark.resolve_range(watermark.low(), ends.start);
            partitions.push(Partition { number: one.partition(), watermark, past: ends.end });
        }
        partitions.sort_unstable_by_key(|partition| partition.number);
        Ok(partitions)
    }

    /// Passes the records of a partition to `show`, starting at an offset, until it returns
    /// `false`.
    fn read(
        &self,
        group: &Group,
        partition: i32,
        from: u64,
        mut show: impl FnMut(u64, Message) -> bool,
    ) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        list.add_partition_offset(&self.topic, partition, offset)?;
        group.client.assign(&list)?;
        let place = format!("{}/{}/{partition}", self.cluster, self.topic);
        let incarnation = IncarnationId::of(place.as_bytes());
        let (mut begun, mut shelf) = (Instant::now(), Shelf::default());
        loop {
            match group.client.poll(ASK.saturating_sub(begun.elapsed())) {
                Some(Ok(record)) => {
                    // The limit applies to each answer separately.
                    begun = Instant::now();
                    let offset = u64::try_from(record.offset()).unwrap_or_default();
                    let (incoming, _) = record::incoming(&record, incarnation, &mut shelf);
                    if !show(offset, incoming.message) {
                        break;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(error)) => return Err(error),
                None => return Err(KafkaError::MessageConsumption(Code::OperationTimedOut)),
            }
        }
        group.client.unassign()
    }

    fn peek(&self, mut skip: u64, limit: u64) -> KafkaResult<Vec<Peeked>> {
        let (group, mut peeked) = (&self.groups[0], Vec::new());
        for Partition { number, watermark, past } in self.partitions(group)? {
            if watermark.low() >= past || peeked.len() as u64 >= limit {
                continue;
            }
            self.read(group, number, watermark.low(), |offset, message| {
                if watermark.is_resolved(offset) {
                    return true;
                }
                match skip {
                    0 => peeked.push(self.peeked(number, offset, message)),
                    _ => skip -= 1,
                }
                (peeked.len() as u64) < limit
            })?;
        }
        Ok(peeked)
    }

    fn get(&self, position: u64) -> KafkaResult<Option<Peeked>> {
        let (group, (number, wanted)) = (&self.groups[0], unpack(position));
        let partitions = self.partitions(group)?;
        let there = |one: &&Partition| one.number == number && one.past > wanted;
        let Some(partition) = partitions.iter().find(there) else { return Ok(None) };
        let mut found = None;
        if !partition.watermark.is_resolved(wanted) {
            self.read(group, number, wanted, |offset, message| {
                found = (offset == wanted).then(|| self.peeked(number, offset, message));
                false
            })?;
        }
        Ok(found)
    }

    fn peeked(&self, partition: i32, offset: u64, message: Message) -> Peeked {
        Peeked {
            position: pack(partition, offset),
            group: self.groups[0].name.clone(),
            message,
            attempts: 0,
            redeliveries: 0,
            parked: None,
            holder: None,
        }
    }

    /// Resolves records for each group; `gone` does so in one partition, and returns how many were
    /// unresolved. Returns their sum for the first group.
    fn resolve(&self, mut gone: impl FnMut(&mut Partition) -> u64) -> KafkaResult<u64> {
        let mut resolved = 0;
        for (at, group) in self.groups.iter().enumerate() {
            let mut list = TopicPartitionList::new();
            for mut partition in self.partitions(group)? {
                let of_partition = gone(&mut partition);
                if at == 0 {
                    resolved += of_partition;
                }
                let watermark = &partition.watermark;
                let mut one = list.add_partition(&self.topic, partition.number);
                one.set_offset(Offset::Offset(i64::try_from(watermark.low()).unwrap_or(i64::MAX)))?;
                one.set_metadata(metadata::encode(watermark));
            }
            group.client.commit(&list, CommitMode::Sync)?;
        }
        Ok(resolved)
    }

    /// Resolves everything that is there; returns how much waited for the first group. Counted
    /// before, as offsets alone do not tell a record from a transaction's marker.
    fn purge(&self) -> KafkaResult<u64> {
        let waited = self.groups[0].waiting()?;
        self.resolve(|one| {
            one.watermark = Watermark::starting_at(one.past.max(one.watermark.low()));
            0
        })?;
        Ok(waited)
    }
}

fn pack(partition: i32, offset: u64) -> u64 {
    u64::try_from(partition).unwrap_or_default() << OFFSET_BITS | offset
}

fn unpack(position: u64) -> (i32, u64) {
    let partition = i32::try_from(position >> OFFSET_BITS).unwrap_or(i32::MAX);
    (partition, position & ((1 << OFFSET_BITS) - 1))
}

#[async_trait]
impl QueueAdmin for TopicAdmin {
    async fn status(&self) -> Result<Vec<QueueStatus>, ConnectorError> {
        let asked = self.at_desk("cannot read the lag", |desk| {
            let status = |group: &Group| {
                let lag = group.lagging.waiting_for(&group.client)?;
                Ok(QueueStatus { group: group.name.clone(), lag })
            };
            desk.groups.iter().map(status).collect()
        });
        asked.await
    }

    async fn peek(&self, skip: u64, limit: u64) -> Result<Vec<Peeked>, ConnectorError> {
        self.at_desk("cannot read the topic", move |desk| desk.peek(skip, limit)).await
    }

    async fn get(&self, position: u64) -> Result<Option<Peeked>, ConnectorError> {
        self.at_desk("cannot read the topic", move |desk| desk.get(position)).await
    }

    async fn put(&self, messages: Vec<Outgoing>) -> Result<Vec<Produced>, ConnectorError> {
        self.producer.produce(&messages).await
    }

    async fn can_delete(&self) -> Result<(), ConnectorError> {
        // What is committed remains as it is; a group with members refuses even that.
        self.at_desk("cannot commit", |desk| desk.resolve(|_| 0)).await.map(drop)
    }

    async fn delete(&self, positions: &[u64]) -> Result<u64, ConnectorError> {
        let gone: Vec<(i32, u64)> = positions.iter().map(|position| unpack(*position)).collect();
        let resolved = self.at_desk("cannot commit", move |desk| {
            desk.resolve(|partition| {
                let mut resolved = 0;
                for (_, offset) in gone.iter().filter(|(number, _)| *number == partition.number) {
                    if *offset < partition.past && !partition.watermark.is_resolved(*offset) {
                        partition.watermark.resolve(*offset);
                        resolved += 1;
                    }
                }
                resolved
            })
        });
        resolved.await
    }

    async fn purge(&self) -> Result<u64, ConnectorError> {
        self.at_desk("cannot commit", Desk::purge).await
    }
}
