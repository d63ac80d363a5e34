//! How many messages wait for a group, over all its members.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Lag, PartitionLag};
use brigade_core::watermark::Watermark;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::assignment::Place;
use crate::client::{Heard, explain};
use crate::metadata;
use crate::poll::{Client, Shared};
use crate::settings::Site;

/// How long one request to the broker may take.
const ASK: Duration = Duration::from_secs(5);

/// How long the group may take, beyond a session of a dead member, in which a joining one waits:
/// this many times what the client takes to look for new topics.
const LOOKS: u32 = 3;
/// The client's defaults, in milliseconds.
const SESSION: u64 = 45_000;
const REFRESH: u64 = 10_000;

/// Reads the lag. Blocks.
pub(crate) struct Lagging {
    site: Site,
    topics: Vec<String>,
    retry_topics: Vec<String>,
    /// For a client that looks at records. It has the group's name, since otherwise it could not be
    /// assigned anything, but does not join the group.
    config: ClientConfig,
    looker: Mutex<Looker>,
    opened: Instant,
}

/// The progress in a partition.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) place: Place,
    /// Its smallest unresolved offset.
    pub(crate) low: u64,
    /// How many are resolved beyond that.
    pub(crate) beyond: u64,
    /// How many of its messages are here, and how many of these are handed out, and delayed.
    pub(crate) stored: usize,
    pub(crate) held: usize,
    pub(crate) delayed: usize,
}

impl Progress {
    /// The progress in a partition none of whose messages are here.
    pub(crate) fn of_others(place: Place, watermark: &Watermark) -> Self {
        let beyond = watermark.beyond().map(|(first, past)| past - first).sum();
        Self { place, low: watermark.low(), beyond, stored: 0, held: 0, delayed: 0 }
    }
}

/// The ranges of offsets in which partitions have records. Requests all at once: a request waits
/// behind the client's pending fetch, which takes half a second when nothing comes.
pub(crate) fn ends<'a>(
    client: &BaseConsumer<impl ConsumerContext>,
    places: impl Iterator<Item = &'a Place> + Clone,
) -> KafkaResult<Vec<Range<u64>>> {
    let ask = |end: Offset| {
        let mut list = TopicPartitionList::new();
        for (topic, partition) in places.clone() {
            list.add_partition_offset(topic, *partition, end)?;
        }
        if list.count() == 0 {
            return Ok(Vec::new());
        }
        let answered = client.offsets_for_times(list, ASK)?;
        let offset = |one: &TopicPartitionListElem<'_>| {
            one.error()?;
            let offset = one.offset().to_raw().and_then(|offset| u64::try_from(offset).ok());
            Ok(offset.unwrap_or_default())
        };
        answered.elements().iter().map(offset).collect::<KafkaResult<Vec<u64>>>()
    };
    let (first, past) = (ask(Offset::Beginning)?, ask(Offset::End)?);
    Ok(first.into_iter().zip(past).map(|(first, past)| first..past).collect())
}

/// Checks whether there really is a record in what seems to wait: transactions leave markers after
/// their records, which are never delivered.
#[derive(Default)]
struct Looker {
    client: Option<BaseConsumer<Heard>>,
    found: Found,
}

/// What the last check found: partitions are not read again as long as this answers the question.
#[derive(Debug, Default)]
struct Found {
    /// The ranges that contain only markers.
    marks: HashMap<Place, (u64, u64)>,
    /// The offsets of the next records.
    records: HashMap<Place, u64>,
}

impl Found {
    /// Whether there is no record from an offset to the end, if that is known.
    fn only_marks(&self, place: &Place, low: u64, past: u64) -> Option<bool> {
        if self.marks.get(place) == Some(&(low, past)) {
            return Some(true);
        }
        let record = self.records.get(place);
        record.is_some_and(|record| (low..past).contains(record)).then_some(false)
    }
}

impl Lagging {
    /// For these topics, or regular expressions, and retry topics.
    pub(crate) fn new(
        site: Site,
        topics: Vec<String>,
        retry_topics: Vec<String>,
        mut config: ClientConfig,
    ) -> Self {
        config.remove("group.instance.id");
        config.set("enable.partition.eof", "true");
        let (looker, opened) = (Mutex::default(), Instant::now());
        Self { site, topics, retry_topics, config, looker, opened }
    }

    /// How long the group may take to share its topics out. A member without any topic or partition
    /// may never hear of it.
    fn patience(&self) -> Duration {
        let of = |name: &str, default: u64| {
            let given = self.config.get(name).and_then(|given| given.parse().ok());
            Duration::from_millis(given.unwrap_or(default))
        };
        let refresh = of("topic.metadata.refresh.interval.ms", REFRESH);
        of("session.timeout.ms", SESSION).saturating_add(refresh.saturating_mul(LOOKS))
    }

    pub(crate) fn ask(&self, shared: &Shared, client: &Client) -> Result<Lag, ConnectorError> {
        let is_unknown = self.has_patterns() && !shared.state().is_shared_out;
        if is_unknown && self.opened.elapsed() < self.patience() {
            let told = shared.site.told("the group is not shared out yet: nobody knows its topics");
            return Err(ConnectorError::transient(told));
        }
        if is_unknown {
            // Expressions name no topic that a broker would be asked for, and one that is away is
            // not one that has nothing.
            let metadata = client.fetch_metadata(None, ASK);
            metadata.map_err(|error| explain(&shared.site, "cannot read the lag", &error))?;
        }
        let asked = self.try_ask(shared, client);
        let asked = asked.map(|lag| Lag { ready: lag.ready.filter(|_| !is_unknown), ..lag });
        asked.map_err(|error| explain(&shared.site, "cannot read the lag", &error))
    }

    /// Whether the broker has records for partitions that are ours, though none of them are here.
    /// Uses a connection of its own, as the consumer's may be the one that hangs. A broker that
    /// does not answer at all is reported elsewhere.
    pub(crate) fn is_starved(&self, shared: &Shared) -> bool {
        let ours = shared.state().assignment.progress();
        // Delayed messages do not keep others from coming.
        if ours.iter().any(|one| one.stored > one.delayed) {
            return false;
        }
        let empty: Vec<Progress> = ours.into_iter().filter(|one| one.stored == 0).collect();
        let client = self.config.create_with_context(Heard::new(&self.site));
        let waiting = client.and_then(|client| self.waiting(&client, &empty));
        waiting.is_ok_and(|waiting| waiting.iter().any(|waiting| *waiting > 0))
    }

    fn has_patterns(&self) -> bool {
        self.topics.iter().any(|topic| topic.starts_with('^'))
    }

    fn try_ask(&self, shared: &Shared, client: &Client) -> KafkaResult<Lag> {
        let (progress, found) = {
            let assignment = &shared.state().assignment;
            (assignment.progress(), assignment.topics())
        };
        let ours = progress.len();
        let all = self.everywhere(client, progress, found)?;
        let waiting = self.waiting_in(client, &all)?;
        let held: usize = all.iter().map(|one| one.held).sum();
        Ok(Lag {
            // Which topics match an expression is only known from those that were assigned here.
            ready: waiting.ready.filter(|_| !all.is_empty()),
            // What other members hold counts as ready, since only they know of it.
            in_flight: (ours == all.len()).then_some(held as u64),
            ..waiting
        })
    }

    /// How many messages wait for the group of a client that is not a member of it.
    pub(crate) fn waiting_for(&self, client: &BaseConsumer<Heard>) -> KafkaResult<Lag> {
        let all = self.everywhere(client, Vec::new(), BTreeSet::new())?;
        self.waiting_in(client, &all)
    }

    /// How many messages are ready and how many delayed; all those on a retry topic are delayed.
    fn waiting_in(
        &self,
        client: &BaseConsumer<impl ConsumerContext>,
        all: &[Progress],
    ) -> KafkaResult<Lag> {
        let (mut ready, mut all_delayed, mut partitions) = (0, 0, Vec::with_capacity(all.len()));
        for (one, waiting) in all.iter().zip(self.waiting(client, all)?) {
            let here = waiting.saturating_sub(one.held as u64);
            let delayed = match self.retry_topics.iter().any(|topic| **topic == *one.place.0) {
                true => here,
                false => here.min(one.delayed as u64),
            };
            all_delayed += delayed;
            ready += here - delayed;
            let partition = format!("{}/{}", one.place.0, one.place.1);
            partitions.push(PartitionLag { partition, messages: here });
        }
        let (ready, delayed) = (Some(ready), Some(all_delayed));
        Ok(Lag { ready, delayed, partitions, ..Lag::default() })
    }

    /// The progress in all partitions of the topics that are named or were found by expressions:
    /// ours as known here, the others' as committed.
    fn everywhere(
        &self,
        client: &BaseConsumer<impl ConsumerContext>,
        ours: Vec<Progress>,
        found: BTreeSet<String>,
    ) -> KafkaResult<Vec<Progress>> {
        let mut others = TopicPartitionList::new();
        let mut topics = found;
        let named = self.topics.iter().chain(&self.retry_topics);
        topics.extend(named.filter(|topic| !topic.starts_with('^')).cloned());
        for topic in &topics {
            let metadata = client.fetch_metadata(Some(topic), ASK)?;
            for found in metadata.topics().iter().filter(|found| found.name() == *topic) {
                for partition in found.partitions() {
                    let is =
                        |one: &Progress| *one.place.0 == **topic && one.place.1 == partition.id();
                    if !ours.iter().any(is) {
                        others.add_partition(topic, partition.id());
                    }
                }
            }
        }
        let mut all = ours;
        if others.count() > 0 {
            let committed = client.committed_offsets(others, ASK)?;
            all.extend(committed.elements().iter().map(|one| {
                let low = match one.offset() {
                    Offset::Offset(offset) => u64::try_from(offset).unwrap_or_default(),
                    _ => 0,
                };
                let watermark = metadata::decode(low, &metadata::of(one));
                let place = (one.topic().into(), one.partition());
                Progress::of_others(place, &watermark)
            }));
        }
        Ok(all)
    }

    /// How many messages wait in each of these partitions.
    fn waiting(
        &self,
        client: &BaseConsumer<impl ConsumerContext>,
        all: &[Progress],
    ) -> KafkaResult<Vec<u64>> {
        let (mut waiting, mut unseen) = (Vec::with_capacity(all.len()), BTreeMap::new());
        for (one, ends) in all.iter().zip(ends(client, all.iter().map(|one| &one.place))?) {
            let (low, past) = (one.low.max(ends.start), ends.end);
            let waits = past.saturating_sub(low).saturating_sub(one.beyond);
            if waits > 0 && one.beyond == 0 && one.stored == 0 {
                let (topic, partition) = &one.place;
                let of_topic = unseen.entry(Arc::clone(topic)).or_insert_with(Vec::new);
                of_topic.push(Unseen { at: waiting.len(), partition: *partition, low, past });
            }
            waiting.push(waits);
        }
        for (topic, unseen) in unseen {
            for at in self.only_marks(&topic, unseen)? {
                waiting[at] = 0;
            }
        }
        Ok(waiting)
    }

    /// Those of a topic's partitions in which there is no record from an offset to the end. It
    /// checks all at once, as the broker reports an end only after half a second.
    fn only_marks(&self, topic: &Arc<str>, mut unseen: Vec<Unseen>) -> KafkaResult<Vec<usize>> {
        let mut looker = self.looker.lock();
        let mut only_marks = Vec::new();
        unseen.retain(|one| {
            let known = looker.found.only_marks(&one.place(topic), one.low, one.past);
            only_marks.extend(known.unwrap_or(false).then_some(one.at));
            known.is_none()
        });
        if unseen.is_empty() {
            return Ok(only_marks);
        }
        let client = match looker.client.take() {
            Some(client) => client,
            None => self.config.create_with_context(Heard::new(&self.site))?,
        };
        let mut list = TopicPartitionList::new();
        for one in &unseen {
            let from = Offset::Offset(i64::try_from(one.low).unwrap_or(i64::MAX));
            list.add_partition_offset(topic, one.partition, from)?;
        }
        client.assign(&list)?;
        // A partition that was paused at an earlier check still is.
        client.resume(&list)?;
        let begun = Instant::now();
        while !unseen.is_empty() {
            let left = ASK.saturating_sub(begun.elapsed());
            if left.is_zero() {
                // The next call uses a new client, in case this one is stuck.
                return Ok(only_marks);
            }
            let (partition, record) = match client.poll(left) {
                Some(Err(KafkaError::PartitionEOF(partition))) => (partition, None),
                Some(Ok(record)) => (record.partition(), Some(record.offset())),
                _ => continue,
            };
            let Some(at) = unseen.iter().position(|one| one.partition == partition) else {
                continue;
            };
            let one = unseen.swap_remove(at);
            let place = one.place(topic);
            if let Some(offset) = record {
                let offset = u64::try_from(offset).unwrap_or_default();
                looker.found.records.insert(place, offset);
                let mut seen = TopicPartitionList::new();
                seen.add_partition(topic, partition);
                client.pause(&seen)?;
            } else {
                looker.found.marks.insert(place, (one.low, one.past));
                only_marks.push(one.at);
            }
        }
        client.unassign()?;
        looker.client = Some(client);
        Ok(only_marks)
    }
}

/// A partition for which it is unknown whether what seems to wait is a record.
struct Unseen {
    /// Its index among the requested ones.
    at: usize,
    partition: i32,
    low: u64,
    past: u64,
}

impl Unseen {
    fn place(&self, topic: &Arc<str>) -> Place {
        (Arc::clone(topic), self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_looked_for_again_only_when_it_is_gone() {
        let (here, there): (Place, Place) = (("topic".into(), 0), ("topic".into(), 1));
        let mut found = Found::default();
        assert_eq!(found.only_marks(&here, 5, 9), None);
        found.marks.insert(here.clone(), (5, 9));
        assert_eq!(found.only_marks(&here, 5, 9), Some(true));
        assert_eq!(found.only_marks(&here, 5, 10), None, "something came");
        found.records.insert(here.clone(), 9);
        // However much is added after it.
        for (low, past) in [(5, 10), (5, 1000), (9, 1000)] {
            assert_eq!(found.only_marks(&here, low, past), Some(false), "{low}");
        }
        assert_eq!(found.only_marks(&here, 10, 1000), None, "it is done");
        assert_eq!(found.only_marks(&here, 0, 3), None, "the topic was made anew");
        assert_eq!(found.only_marks(&there, 5, 9), None);
    }
}
