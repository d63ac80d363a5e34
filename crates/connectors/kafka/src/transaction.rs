//! Outputs and offsets in one transaction.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Receipt, Rejected};
use brigade_core::state::{StoreId, StoreOp};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{Consumer as _, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{ClientConfig, Offset};

use crate::client::{explain, log};
use crate::commits::Commit;
use crate::metadata;
use crate::poll::{Client, Shared, offsets};
use crate::producer::{halves, refusal};
use crate::record::record;
use crate::settings::Site;

/// How long one step of a transaction may take.
const STEP: Duration = Duration::from_secs(20);
/// The client's default size of requests, and the smallest size they are reduced to.
const BATCH_SIZE: usize = 1_000_000;
const BATCH_SIZE_MIN: usize = 1024;
/// How long it is searched for the outputs that were refused.
const TELL_APART: Duration = Duration::from_secs(5);
/// How long to wait before checking again what became of a transaction.
const AGAIN: Duration = Duration::from_millis(200);
/// How often a commit is repeated whose answer did not come; each attempt waits for [`STEP`].
const COMMITS_MAX: u32 = 30;

/// A transactional producer of one consumer. One transaction at a time, which the caller ensures.
pub(crate) struct Transactions {
    site: Site,
    config: ClientConfig,
    store: StoreId,
    /// The size of requests, reduced if it has turned out that the broker takes none as large as
    /// the client makes them.
    batch_size: AtomicUsize,
    /// Created on first use, and again after an error that ends it.
    producer: Mutex<Option<ThreadedProducer<Quiet>>>,
}

/// Notes which records are refused; the commit shows what became of the others.
pub(crate) struct Quiet {
    site: Site,
    /// By index in the transaction.
    refused: Mutex<Vec<(usize, Rejected)>>,
}

/// The result of a settlement.
#[derive(Debug)]
pub(crate) enum Settled {
    Done,
    /// These receipts are no longer valid: nothing was done.
    Fenced(Vec<Receipt>),
    /// These outputs, by index, are refused for good: nothing was done.
    Refused(Vec<(usize, Rejected)>),
    /// Each output would be taken, but not in requests as large as these: nothing was done.
    TooMuch,
}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(&self.site, level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(queue = %self.site.queue, %error, reason, "the client met an error");
    }
}

impl Quiet {
    fn note(&self, at: usize, error: &KafkaError) {
        if let Some(rejected) = refusal(error) {
            self.refused.lock().push((at, rejected));
        }
    }

    fn has_refused(&self) -> bool {
        !self.refused.lock().is_empty()
    }

    fn take_refused(&self) -> Vec<(usize, Rejected)> {
        std::mem::take(&mut self.refused.lock())
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, at: usize) {
        if let Err((error, _)) = result {
            self.note(at, error);
        }
    }
}

/// The identity of a cluster's transactions.
pub(crate) fn store_id(servers: &str) -> StoreId {
    StoreId::new(format!("kafka {servers}"))
}

/// Settings of a transactional producer, unless the file says otherwise.
pub(crate) fn defaults(config: &mut ClientConfig, group: &str) {
    // The group's generation fences late members, so the id need not be the same next time.
    config.set("transactional.id", format!("{group}.{:016x}", fastrand::u64(..)));
    if config.get("transaction.timeout.ms").is_none() {
        // The longest time for which what a dead member began holds up readers of its outputs.
        config.set("transaction.timeout.ms", "30000");
    }
    if config.get("retry.backoff.ms").is_none() {
        // The broker finishes a transaction only after it has answered; a transaction begun before
        // that is told to retry, and would wait ten times as long as that takes.
        config.set("retry.backoff.ms", "10");
    }
}

impl Transactions {
    pub(crate) fn new(site: Site, mut config: ClientConfig, group: &str) -> Self {
        defaults(&mut config, group);
        let store = store_id(&site.servers);
        let batch_size = config.get("batch.size").and_then(|size| size.parse().ok());
        let batch_size = AtomicUsize::new(batch_size.unwrap_or(BATCH_SIZE));
        Self { site, config, store, batch_size, producer: Mutex::default() }
    }

    pub(crate) fn store(&self) -> StoreId {
        self.store.clone()
    }

    /// Puts the outputs on their topics and commits these messages, all or nothing. Blocks.
    pub(crate) fn settle(
        &self,
        shared: &Shared,
        client: &Client,
        receipts: &[Receipt],
        ops: &[StoreOp],
    ) -> Result<Settled, ConnectorError> {
        let explained = |error: &KafkaError| explain(&self.site, "the transaction failed", error);
        let mut producer = self.producer.lock();
        // In this order: what is lost after the receipts are checked ends the generation, and the
        // transaction with it; what was lost and came back before is seen by the check.
        let member = client
            .group_metadata()
            .ok_or_else(|| ConnectorError::transient(self.site.told("in no group yet")))?;
        let state = shared.state();
        if let Err(fenced) = state.assignment.stand(receipts) {
            return Ok(Settled::Fenced(fenced));
        }
        let commits = state.assignment.to_commit_with(receipts);
        drop(state);
        let open = match &*producer {
            Some(open) => open,
            None => producer.insert(self.open()?),
        };
        if let Err(error) = self.write(open, shared, &member, &commits, ops) {
            let (ended, refused) = abort(open);
            if ended {
                *producer = None;
            }
            match error {
                // If one is refused, the client commits nothing.
                _ if !refused.is_empty() => {
                    return self.look_into(&mut producer, shared, ops, refused);
                }
                Failed::Commit(error) => {
                    tracing::warn!(
                        queue = %self.site.queue, %error,
                        "nobody knows whether a transaction was committed: asking"
                    );
                    if !self.find_out(&mut producer, shared, client, &commits)? {
                        return Err(ConnectorError::transient(explained(&error).to_string()));
                    }
                }
                // The runtime tries again with a new producer.
                Failed::Kafka(error) if ended => {
                    return Err(ConnectorError::transient(explained(&error).to_string()));
                }
                Failed::Kafka(error) => return Err(explained(&error)),
                Failed::Other(error) => return Err(error),
            }
        }
        let mut state = shared.state();
        state.assignment.resolve(receipts);
        state.assignment.committed(&commits);
        Ok(Settled::Done)
    }

    /// Handles outputs that were refused, or whose requests were.
    fn look_into(
        &self,
        producer: &mut Option<ThreadedProducer<Quiet>>,
        shared: &Shared,
        ops: &[StoreOp],
        suspects: Vec<(usize, Rejected)>,
    ) -> Result<Settled, ConnectorError> {
        let refused = self.tell_apart(producer, shared, ops, suspects)?;
        if !refused.is_empty() {
            return Ok(Settled::Refused(refused));
        }
        let half = self.batch_size.load(Ordering::Relaxed) / 2;
        self.batch_size.store(half.max(BATCH_SIZE_MIN), Ordering::Relaxed);
        *producer = None;
        Ok(Settled::TooMuch)
    }

    /// The broker refuses whole requests. Which of their outputs it means is found by bisection, in
    /// transactions that are not committed. It may be none: the topic's limit applies to whole
    /// requests.
    fn tell_apart(
        &self,
        producer: &mut Option<ThreadedProducer<Quiet>>,
        shared: &Shared,
        ops: &[StoreOp],
        suspects: Vec<(usize, Rejected)>,
    ) -> Result<Vec<(usize, Rejected)>, ConnectorError> {
        if suspects.len() < 2 {
            return Ok(suspects);
        }
        let (begun, mut refused) = (Instant::now(), Vec::new());
        let mut groups = halves(suspects.into_iter().map(|(at, _)| at).collect());
        while let Some(group) = groups.pop() {
            // Those that are known by then are removed; the others follow at the next attempt.
            if begun.elapsed() > TELL_APART || shared.stopping() {
                let error = "outputs were refused, and it is not known yet which";
                let error = || ConnectorError::transient(self.site.told(error));
                return if refused.is_empty() { Err(error()) } else { Ok(refused) };
            }
            let open = match producer {
                Some(open) => open,
                None => producer.insert(self.open()?),
            };
            let tried = open.begin_transaction().map_err(Failed::Kafka);
            let tried =
                tried.and_then(|()| send_all(open, group.iter().map(|at| (*at, &ops[*at]))));
            let tried = tried.and_then(|()| all_written(open));
            let (ended, mut still) = abort(open);
            if ended {
                *producer = None;
            }
            match tried {
                Err(Failed::Kafka(error)) if still.is_empty() => {
                    return Err(explain(&self.site, "the transaction failed", &error));
                }
                _ if group.len() == 1 => refused.append(&mut still),
                _ => groups.extend(halves(still.into_iter().map(|(at, _)| at).collect())),
            }
        }
        Ok(refused)
    }

    /// Whether a transaction was committed whose commit did not answer. Waits as long as the broker
    /// does not say: repeating it and assuming it succeeded would both be wrong.
    fn find_out(
        &self,
        producer: &mut Option<ThreadedProducer<Quiet>>,
        shared: &Shared,
        client: &Client,
        commits: &[Commit],
    ) -> Result<bool, ConnectorError> {
        loop {
            // A new producer ends what was begun, one way or the other.
            let open = match producer.is_some() {
                true => Ok(()),
                false => self.open().map(|open| *producer = Some(open)),
            };
            let found = open.and_then(|()| {
                let asked = is_committed(client, shared, commits);
                asked
                    .map_err(|error| explain(&self.site, "cannot read the group's commits", &error))
            });
            match found {
                Ok(is) => return Ok(is),
                Err(_) if shared.stopping() => {
                    return Err(ConnectorError::closed(&self.site.queue));
                }
                Err(error) => {
                    tracing::warn!(queue = %self.site.queue, %error, "asking again");
                    std::thread::sleep(AGAIN);
                }
            }
        }
    }

    fn open(&self) -> Result<ThreadedProducer<Quiet>, ConnectorError> {
        let doing = "cannot begin transactions";
        let quiet = Quiet { site: self.site.clone(), refused: Mutex::default() };
        let mut config = self.config.clone();
        config.set("batch.size", self.batch_size.load(Ordering::Relaxed).to_string());
        let made = config.create_with_context(quiet);
        let producer: ThreadedProducer<Quiet> =
            made.map_err(|error| explain(&self.site, doing, &error))?;
        let ready = producer.init_transactions(STEP);
        ready.map_err(|error| explain(&self.site, doing, &error))?;
        Ok(producer)
    }

    fn write(
        &self,
        producer: &ThreadedProducer<Quiet>,
        shared: &Shared,
        member: &ConsumerGroupMetadata,
        commits: &[Commit],
        ops: &[StoreOp],
    ) -> Result<(), Failed> {
        producer.begin_transaction()?;
        send_all(producer, ops.iter().enumerate())?;
        producer.send_offsets_to_transaction(&offsets(commits)?, member, STEP)?;
        all_written(producer)?;
        // Without an answer the result is unknown: only asking again reveals it.
        for _ in 0..COMMITS_MAX {
            match producer.commit_transaction(STEP) {
                Err(KafkaError::Transaction(error))
                    if error.is_retriable() && !shared.stopping() => {}
                done => return done.map_err(Failed::Commit),
            }
        }
        producer.commit_transaction(STEP).map_err(Failed::Commit)
    }
}

/// Ends a transaction; returns whether the producer is unusable after it, and which outputs were
/// refused: after a refused request, the broker takes later ones to be out of order.
fn abort(producer: &ThreadedProducer<Quiet>) -> (bool, Vec<(usize, Rejected)>) {
    let ended =
        producer.client().fatal_error().is_some() || producer.abort_transaction(STEP).is_err();
    // Reports say what was refused, and nothing else waits for those.
    wait_for_reports(producer);
    let refused = producer.context().take_refused();
    (ended || !refused.is_empty(), refused)
}

/// Gives outputs to the client, with their indices.
fn send_all<'o>(
    producer: &ThreadedProducer<Quiet>,
    ops: impl Iterator<Item = (usize, &'o StoreOp)>,
) -> Result<(), Failed> {
    for (at, op) in ops {
        let StoreOp::Enqueue { queue, outgoing } = op else {
            let error = producer.context().site.told("a transaction takes messages only");
            return Err(Failed::Other(ConnectorError::unsupported(error)));
        };
        let mut next = record(queue, &outgoing.message, at);
        while let Err((error, back)) = producer.send(next) {
            if error.rdkafka_error_code() != Some(Code::QueueFull) {
                producer.context().note(at, &error);
                return Err(Failed::Kafka(error));
            }
            producer.poll(Duration::from_millis(5));
            next = back;
        }
    }
    Ok(())
}

fn wait_for_reports(producer: &ThreadedProducer<Quiet>) {
    let begun = Instant::now();
    while producer.in_flight_count() > 0 && begun.elapsed() < STEP {
        producer.poll(Duration::from_millis(1));
    }
}

/// Waits until everything is written: a commit flushes, which checks only ten times a second. If an
/// output was refused the client would commit nothing; checking here makes that known at once.
fn all_written(producer: &ThreadedProducer<Quiet>) -> Result<(), Failed> {
    wait_for_reports(producer);
    if producer.context().has_refused() {
        let error = producer.context().site.told("outputs were refused");
        return Err(Failed::Other(ConnectorError::transient(error)));
    }
    Ok(())
}

/// Whether the group's offsets and metadata are these, for the partitions that are still this
/// member's: nobody else commits for those. Other members may have committed further, or exactly
/// the same, for partitions that have gone to them; what is resolved of those here no longer
/// counts.
fn is_committed(client: &Client, shared: &Shared, commits: &[Commit]) -> KafkaResult<bool> {
    let ours = shared.state().assignment.still_ours(commits);
    if ours.is_empty() {
        return Ok(true);
    }
    let found = client.committed_offsets(offsets(&ours)?, STEP)?;
    let elements = found.elements();
    elements.iter().try_for_each(TopicPartitionListElem::error)?;
    let is = |commit: &Commit| {
        let (topic, partition) = &commit.place;
        let of = |found: &&TopicPartitionListElem<'_>| {
            *found.topic() == **topic && found.partition() == *partition
        };
        elements.iter().find(of).is_some_and(|found| {
            let offset = found.offset() == Offset::Offset(commit.offset);
            offset && metadata::of(found) == commit.metadata
        })
    };
    Ok(ours.iter().all(is))
}

enum Failed {
    Kafka(KafkaError),
    /// The commit itself: it may have happened.
    Commit(KafkaError),
    Other(ConnectorError),
}

impl From<KafkaError> for Failed {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error)
    }
}
