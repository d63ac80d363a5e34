//! The producer of Kafka topics: sends records and waits for their delivery reports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use brigade_core::CauseKind;
use brigade_core::connector::{
    ConnectorError, Features, Outgoing, Produced, Producer, Rejected, Staged,
};
use brigade_core::state::{StoreId, StoreOp};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer as _, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::{Notify, RwLock, watch};

use crate::client::{Reason, Recollection, explain, log};
use crate::consumer::blocking;
use crate::record::{partition, record};
use crate::settings::{FEATURES, Site};
use crate::topic::{ASK, known};
use crate::transaction::store_id;

/// How often it is logged that no broker is there.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long closing waits for delivery reports: less than the runtime waits for closing (10 s),
/// which cannot end before the thread waiting here does.
const FLUSH: Duration = Duration::from_secs(8);
/// How long to wait before a record is offered again to a client whose buffers are full.
const FULL: Duration = Duration::from_millis(2);

/// Puts messages on a topic; a message is confirmed by the broker's delivery report.
pub(crate) struct KafkaProducer {
    link: Arc<Link>,
    site: Site,
    topic: Arc<str>,
    partitions: AtomicI32,
    closed: AtomicBool,
    /// Many may send at once; a batch that has to find out which of its records the broker refuses
    /// sends alone.
    alone: Arc<RwLock<()>>,
}

type Client = ThreadedProducer<Reports>;

/// The client of the producers of one or several topics; recreated when it no longer knows any
/// broker.
struct Link {
    site: Site,
    config: ClientConfig,
    client: Mutex<Arc<Client>>,
}

/// Receives delivery reports.
pub(crate) struct Reports {
    site: Site,
    told: Mutex<Option<Instant>>,
    reason: Reason,
    recollection: Recollection,
    /// Whether the client no longer knows any broker.
    is_lost: watch::Sender<bool>,
}

/// A batch that waits for its reports.
struct Batch {
    /// What is to be reported about records that are not simply on the topic, by index.
    odd: Mutex<Odd>,
    missing: AtomicUsize,
    done: Notify,
}

type Odd = Vec<(usize, Report)>;

/// What became of a record that is not simply on the topic.
enum Report {
    Is(Produced),
    /// The broker refuses it, or another that the client put into the same request.
    Suspect(Rejected),
}

/// One record of a batch.
pub(crate) struct Ticket {
    batch: Arc<Batch>,
    at: usize,
}

impl Link {
    fn open(site: Site, mut config: ClientConfig) -> Result<Self, ConnectorError> {
        always(&mut config);
        Recollection::ask(&mut config);
        let client = Mutex::new(Self::make(&site, &config)?);
        Ok(Self { site, config, client })
    }

    fn make(site: &Site, config: &ClientConfig) -> Result<Arc<Client>, ConnectorError> {
        let made = config.create_with_context(Reports::new(site.clone()));
        let made = made.map_err(|error| explain(site, "the producer cannot be made", &error))?;
        Ok(Arc::new(made))
    }

    fn client(&self) -> Result<Arc<Client>, ConnectorError> {
        let mut client = self.client.lock();
        if client.context().is_lost() {
            *client = Self::make(&self.site, &self.config)?;
        }
        Ok(Arc::clone(&client))
    }
}

impl Reports {
    fn new(site: Site) -> Self {
        let (told, is_lost) = (Mutex::default(), watch::Sender::new(false));
        let (reason, recollection) = (Reason::default(), Recollection::default());
        Self { site, told, reason, recollection, is_lost }
    }

    fn is_lost(&self) -> bool {
        *self.is_lost.borrow()
    }

    /// Completes when the client no longer knows any broker.
    async fn lost(&self) {
        // This owns the sender, which therefore still exists.
        let _ = self.is_lost.subscribe().wait_for(|is_lost| *is_lost).await;
    }

    /// Whether it was not logged a moment ago: the client repeats itself twenty times a second.
    fn may_tell(&self) -> bool {
        let mut told = self.told.lock();
        let may = told.is_none_or(|at| at.elapsed() > TELL_EVERY);
        if may {
            *told = Some(Instant::now());
        }
        may
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(&self.site, level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let queue = &self.site.queue;
        let why = self.reason.of(&error, Instant::now());
        match error.rdkafka_error_code() {
            // While no broker is there, nothing is confirmed and nothing else says why.
            Some(Code::AllBrokersDown | Code::Authentication | Code::SSL) if self.may_tell() => {
                let error = explain(&self.site, "cannot produce", &why);
                tracing::warn!(%queue, %error, reason, "the producer has no broker");
            }
            _ => tracing::debug!(%queue, %error, reason, "the client met an error"),
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        if self.recollection.fails(statistics) && !self.is_lost.send_replace(true) {
            tracing::warn!(
                queue = %self.site.queue,
                "the client knows no broker any more, as the cluster named none for a moment: another is made"
            );
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let Err((error, _)) = result else { return ticket.batch.count() };
        let report = match refusal(error) {
            Some(why) => Report::Suspect(why),
            None => Report::Is(failed(&self.site, error)),
        };
        ticket.batch.set(ticket.at, report);
    }
}

impl Batch {
    fn new(records: usize) -> Arc<Self> {
        let (odd, missing) = (Mutex::default(), AtomicUsize::new(records));
        Arc::new(Self { odd, missing, done: Notify::new() })
    }

    fn set(&self, at: usize, report: Report) {
        self.odd.lock().push((at, report));
        self.count();
    }

    /// Records that another record has its report.
    fn count(&self) {
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    /// Waits for all reports; returns the odd ones, in order.
    async fn all(&self) -> Odd {
        if self.missing.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
        let mut odd = std::mem::take(&mut *self.odd.lock());
        odd.sort_unstable_by_key(|(at, _)| *at);
        odd
    }
}

/// Whether a record can be put later, or never.
fn failed(site: &Site, error: &KafkaError) -> Produced {
    match refusal(error) {
        Some(rejected) => Produced::Rejected(rejected),
        None => Produced::Failed(explain(site, "cannot produce", error)),
    }
}

/// Why a record can never be put, if that is the case.
pub(crate) fn refusal(error: &KafkaError) -> Option<Rejected> {
    let kind = match error.rdkafka_error_code() {
        Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) => CauseKind::TooLarge,
        Some(Code::InvalidRecord | Code::InvalidMessage | Code::InvalidTimestamp) => {
            CauseKind::Refused
        }
        _ => return None,
    };
    let advice = match kind {
        CauseKind::TooLarge => {
            " (the client's limit is `message.max.bytes` in `config:`, with `guarantee: exactly_once` that of \
             the input queue; the broker's the topic's `max.message.bytes`)"
        }
        _ if error.rdkafka_error_code() == Some(Code::InvalidTimestamp) => {
            " (how far event times may be from now is the topic's `message.timestamp.before.max.ms` and \
             `message.timestamp.after.max.ms`)"
        }
        _ => "",
    };
    Some(Rejected { kind, message: format!("{error}{advice}") })
}

/// Settings of every producer.
pub(crate) fn always(config: &mut ClientConfig) {
    config.set("enable.idempotence", "true");
}

impl KafkaProducer {
    pub(crate) fn open(
        site: Site,
        topic: &str,
        config: ClientConfig,
    ) -> Result<Self, ConnectorError> {
        let link = Arc::new(Link::open(site.clone(), config)?);
        let (partitions, closed) = (AtomicI32::new(0), AtomicBool::new(false));
        Ok(Self { link, site, topic: topic.into(), partitions, closed, alone: Arc::default() })
    }

    /// The same client, for another topic.
    pub(crate) fn for_topic(&self, topic: &str) -> Self {
        let (partitions, closed) = (AtomicI32::new(0), AtomicBool::new(false));
        let (link, site) = (Arc::clone(&self.link), self.site.clone());
        let alone = Arc::clone(&self.alone);
        Self { link, site, topic: topic.into(), partitions, closed, alone }
    }

    /// Refuses a topic that does not exist. Remembers its number of partitions.
    pub(crate) async fn look(&self) -> Result<i32, ConnectorError> {
        let (client, topic) = (self.link.client()?, Arc::clone(&self.topic));
        let asked = blocking(move || client.client().fetch_metadata(Some(&topic), ASK)).await?;
        let doing = "cannot reach the broker";
        let metadata = asked.map_err(|error| explain(&self.site, doing, &error))?;
        known(&self.site, &metadata, &self.topic)?;
        let topic = metadata.topics().iter().find(|found| found.name() == &*self.topic);
        let partitions = topic.map_or(0, |topic| topic.partitions().len());
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX);
        self.partitions.store(partitions, Ordering::Relaxed);
        Ok(partitions)
    }

    /// Refuses a message that cannot even be given to the client.
    async fn refuse(&self, outgoing: &Outgoing) -> Result<Option<Rejected>, ConnectorError> {
        let message = &outgoing.message;
        let refused = |message| Some(Rejected { kind: CauseKind::Refused, message });
        if let Some((odd, _)) = message.headers.iter().find(|(name, _)| name.contains('\0')) {
            let message = format!("Kafka takes no header whose name has a null byte: {odd:?}");
            return Ok(refused(message));
        }
        match partition(message) {
            // A partition may have been added since.
            Ok(Some(asked)) if asked >= self.partitions.load(Ordering::Relaxed) => {
                let there = self.look().await?;
                let message = || {
                    format!("topic `{}` has {there} partitions, and no number {asked}", self.topic)
                };
                Ok((asked >= there).then(|| refused(message())).flatten())
            }
            Ok(_) => Ok(None),
            Err(rejected) => Ok(Some(rejected)),
        }
    }

    /// Gives one record to the client; waits as long as its buffers are full.
    async fn send(&self, client: &Client, outgoing: &Outgoing, batch: &Arc<Batch>, at: usize) {
        let mut ticket = Box::new(Ticket { batch: Arc::clone(batch), at });
        loop {
            // Not held across the wait: records hold pointers.
            let refused = match client.send(record(&self.topic, &outgoing.message, ticket)) {
                Ok(()) => return,
                Err((error, back)) => (error, back.delivery_opaque),
            };
            match refused.0.rdkafka_error_code() {
                Some(Code::QueueFull) if !client.context().is_lost() => ticket = refused.1,
                _ => return batch.set(at, Report::Is(failed(&self.site, &refused.0))),
            }
            tokio::time::sleep(FULL).await;
        }
    }

    /// Puts records, and waits for their reports; returns the odd ones.
    async fn put(
        &self,
        records: impl ExactSizeIterator<Item = &Outgoing>,
    ) -> Result<Odd, ConnectorError> {
        let (batch, client) = (Batch::new(records.len()), self.link.client()?);
        for (at, one) in records.enumerate() {
            match self.refuse(one).await? {
                Some(rejected) => batch.set(at, Report::Is(Produced::Rejected(rejected))),
                None => self.send(&client, one, &batch, at).await,
            }
        }
        tokio::select! {
            odd = batch.all() => Ok(odd),
            // It would report records it has not sent only when the messages time out, minutes
            // later.
            () = client.context().lost() => {
                client.purge(PurgeConfig::default().queue().inflight());
                Ok(batch.all().await)
            }
        }
    }

    /// The broker refuses whole requests. Which of their records it means is found by bisection:
    /// what is refused alone is refused.
    async fn settle_suspects(
        &self,
        outgoing: &[Outgoing],
        odd: Odd,
    ) -> Result<Vec<Produced>, ConnectorError> {
        let mut outcomes: Vec<_> = outgoing.iter().map(|_| Produced::Confirmed).collect();
        let suspects = sort(odd, |at| at, &mut outcomes);
        if !suspects.is_empty() {
            let _alone = self.alone.write().await;
            let mut groups = halves(suspects);
            while let Some(group) = groups.pop() {
                let odd = self.put(group.iter().map(|at| &outgoing[*at])).await?;
                group.iter().for_each(|at| outcomes[*at] = Produced::Confirmed);
                let still = sort(odd, |at| group[at], &mut outcomes);
                if group.len() > 1 {
                    groups.extend(halves(still));
                }
            }
        }
        Ok(outcomes)
    }
}

/// Enters the outcomes of records at their indices; returns those that may be innocent.
fn sort(odd: Odd, place: impl Fn(usize) -> usize, outcomes: &mut [Produced]) -> Vec<usize> {
    let mut suspects = Vec::new();
    for (at, report) in odd {
        outcomes[place(at)] = match report {
            Report::Is(produced) => produced,
            Report::Suspect(why) => {
                suspects.push(place(at));
                Produced::Rejected(why)
            }
        };
    }
    suspects
}

/// The two halves of what is to be bisected, the first half last: it is popped first, so that
/// records end up being sent in order.
pub(crate) fn halves(mut places: Vec<usize>) -> Vec<Vec<usize>> {
    let second = places.split_off(places.len() / 2);
    [second, places].into_iter().filter(|half| !half.is_empty()).collect()
}

#[async_trait]
impl Producer for KafkaProducer {
    fn features(&self) -> Features {
        FEATURES
    }

    async fn produce(&self, outgoing: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(ConnectorError::closed(&self.site.queue));
        }
        if outgoing.is_empty() {
            return Ok(Vec::new());
        }
        let together = self.alone.read().await;
        let odd = self.put(outgoing.iter()).await?;
        drop(together);
        let outcomes = self.settle_suspects(outgoing, odd).await?;
        match self.link.client()?.client().fatal_error() {
            Some((code, why)) => Err(ConnectorError::permanent(
                self.site.told(format!("the producer cannot go on: {code}: {why}")),
            )),
            None => Ok(outcomes),
        }
    }

    async fn stage(&self, batch: &[Outgoing]) -> Result<Staged, ConnectorError> {
        let (mut ops, mut rejected) = (Vec::with_capacity(batch.len()), Vec::new());
        for (at, outgoing) in batch.iter().enumerate() {
            match self.refuse(outgoing).await? {
                Some(why) => rejected.push((at, why)),
                None => ops.push(StoreOp::Enqueue {
                    queue: Arc::clone(&self.topic),
                    outgoing: outgoing.clone(),
                }),
            }
        }
        Ok(Staged { ops, rejected, hold: None })
    }

    fn store(&self) -> Option<StoreId> {
        Some(store_id(&self.site.servers))
    }

    async fn flush(&self) -> Result<(), ConnectorError> {
        let client = self.link.client()?;
        let flushed = blocking(move || client.flush(FLUSH)).await?;
        flushed.map_err(|error| explain(&self.site, "cannot flush", &error))
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        match self.closed.swap(true, Ordering::Relaxed) {
            true => Ok(()),
            false => self.flush().await,
        }
    }
}
