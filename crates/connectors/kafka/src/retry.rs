//! Retry topics: where a group's failed messages wait for their next attempt, so that a long
//! back-off does not hold credit and is not forgotten in a crash. A message goes there as a copy;
//! once the broker has the copy, the message itself is resolved.

use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{
    ConnectorError, Failed, FailedReason, Incoming, Outgoing, Produced, Producer as _,
};
use brigade_core::state::StoreOp;
use brigade_core::{Message, Period, Timestamp};
use bytes::Bytes;

use crate::producer::KafkaProducer;
use crate::record::{EVENT_TIME, PARTITION};
use crate::settings::{Settings, Site};

/// When the copy is due, in milliseconds since 1970.
pub(crate) const DUE: &str = "brigade-due";
/// How many attempts have failed.
pub(crate) const ATTEMPTS: &str = "brigade-attempts";
/// When the first of them failed, in milliseconds since 1970.
pub(crate) const FAILED_AT: &str = "brigade-failed-at";
/// Why the last one failed, in readable form.
pub(crate) const ERROR: &str = "brigade-error";
/// The group that the copy is for.
pub(crate) const GROUP: &str = "brigade-group";
/// The position of the message itself, as in `orders[3]@17`.
pub(crate) const ORIGIN: &str = "brigade-origin";

/// The longest error text that is written, in characters.
const ERROR_MAX: usize = 100;
/// Room for the headers that a copy has in addition to its message's.
const HEADERS_MAX: usize = 1024;
/// The longest name of a topic.
const NAME_MAX: usize = 249;

/// The retry topics of one group.
pub(crate) struct RetryTopics {
    group: Arc<str>,
    tiers: Vec<Tier>,
    /// The longest payload that the broker takes, including headers.
    max_bytes: u64,
}

struct Tier {
    longest: Duration,
    topic: Arc<str>,
    /// The producer of copies, unless transactions are used.
    producer: Option<KafkaProducer>,
}

/// A failed message on its way.
#[derive(Clone)]
pub(crate) struct RetryCopy {
    pub(crate) failed: Failed,
    pub(crate) outgoing: Outgoing,
    tier: usize,
}

/// The names of a group's retry topics for one queue.
pub(crate) struct RetryNames {
    /// The beginning of all their names.
    pub(crate) beginning: String,
    /// One per tier.
    pub(crate) topics: Vec<String>,
}

impl RetryNames {
    /// `queue` is the topic, or the queue's name if there are several topics.
    pub(crate) fn new(group: &str, queue: &str, tiers: &[Period]) -> Self {
        let beginning = format!("{group}.{queue}.retry.");
        let topics = tiers.iter().map(|tier| format!("{beginning}{tier}")).collect();
        Self { beginning, topics }
    }
}

/// Whether a topic is named like the retry topics of a group, for any queue.
pub(crate) fn is_of_group(topic: &str, group: &str) -> bool {
    let rest = topic.strip_prefix(group).and_then(|rest| rest.strip_prefix('.'));
    rest.is_some_and(|rest| rest.contains(".retry."))
}

/// Refuses what Kafka does not accept as a topic's name.
pub(crate) fn check_name(name: &str) -> Result<(), ConnectorError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.chars().all(legal) && name.len() <= NAME_MAX {
        return Ok(());
    }
    Err(ConnectorError::permanent(format!(
        "the retry topic `{name}` (GROUP.TOPIC.retry.DELAY) is no name for a topic: Kafka takes letters, \
         digits, `.`, `_` and `-`, at most {NAME_MAX}; set another `group`, or leave out `retry_topics`"
    )))
}

impl RetryTopics {
    /// The retry topics with these names; `None` if there are none.
    pub(crate) fn open(
        settings: &Settings,
        group: &str,
        names: &RetryNames,
        site: &Site,
        in_transactions: bool,
    ) -> Result<Option<Self>, ConnectorError> {
        let Some(first) = names.topics.first() else { return Ok(None) };
        let producer = match in_transactions {
            true => None,
            false => Some(KafkaProducer::open(site.clone(), first, settings.producer_at(site))?),
        };
        let tier = |(topic, longest): (&String, &Period)| Tier {
            longest: longest.0,
            topic: topic.as_str().into(),
            producer: producer.as_ref().map(|producer| producer.for_topic(topic)),
        };
        let tiers = names.topics.iter().zip(&settings.retry_topics).map(tier).collect();
        Ok(Some(Self { group: group.into(), tiers, max_bytes: settings.max_bytes() }))
    }

    /// Whether a failed message should wait on a topic.
    pub(crate) fn takes(failed: &Failed) -> bool {
        matches!(failed.reason, FailedReason::Attempt { .. }) && !failed.delay.is_zero()
    }

    /// The copy of a message, with `origin` as its position. One that would be too large has to
    /// wait elsewhere.
    pub(crate) fn copy(
        &self,
        incoming: Incoming,
        failed: Failed,
        origin: &str,
        now: Timestamp,
    ) -> Result<RetryCopy, Failed> {
        let FailedReason::Attempt { attempts, error } = &failed.reason else { return Err(failed) };
        if (incoming.message.size() + HEADERS_MAX) as u64 > self.max_bytes {
            return Err(failed);
        }
        let tier = self.tiers.iter().position(|tier| failed.delay <= tier.longest);
        let tier = tier.unwrap_or(self.tiers.len() - 1);
        let mut message = incoming.message;
        let delay = i64::try_from(failed.delay.as_millis()).unwrap_or(i64::MAX);
        set(&mut message, DUE, now.0.saturating_add(delay).to_string());
        set(&mut message, ATTEMPTS, attempts.to_string());
        set(&mut message, FAILED_AT, incoming.first_failed_at.unwrap_or(now).0.to_string());
        set(&mut message, ERROR, error.chars().take(ERROR_MAX).collect());
        set(&mut message, GROUP, self.group.to_string());
        set(&mut message, ORIGIN, origin.to_owned());
        // It requests a partition of another topic.
        if message.headers.get(PARTITION).is_some() {
            let others = message.headers.iter().filter(|(name, _)| *name != PARTITION);
            message.headers = others.map(|(name, value)| (name, value.cloned())).collect();
        }
        // The record's own time is when the copy was made: an old time could make the broker delete
        // it.
        if let Some(Timestamp(time)) = message.event_time.take() {
            set(&mut message, EVENT_TIME, time.to_string());
        }
        Ok(RetryCopy { failed, outgoing: message.into(), tier })
    }

    /// A copy as a part of a transaction.
    pub(crate) fn op(&self, copy: &RetryCopy) -> StoreOp {
        let queue = Arc::clone(&self.tiers[copy.tier].topic);
        StoreOp::Enqueue { queue, outgoing: copy.outgoing.clone() }
    }

    /// Puts copies on their topics; returns for each what became of it, up to the first failure.
    pub(crate) async fn put(
        &self,
        copies: Vec<RetryCopy>,
    ) -> (Vec<(Failed, Produced)>, Option<ConnectorError>) {
        let mut done = Vec::with_capacity(copies.len());
        for (at, tier) in self.tiers.iter().enumerate() {
            let of_tier = copies.iter().filter(|copy| copy.tier == at);
            let outgoing: Vec<Outgoing> = of_tier.clone().map(|c| c.outgoing.clone()).collect();
            let (false, Some(producer)) = (outgoing.is_empty(), &tier.producer) else { continue };
            match producer.produce(&outgoing).await {
                Ok(produced) => done.extend(of_tier.map(|c| c.failed.clone()).zip(produced)),
                Err(error) => return (done, Some(error)),
            }
        }
        (done, None)
    }
}

fn set(message: &mut Message, name: &str, value: String) {
    message.headers.push(name, Some(Bytes::from(value)));
}
