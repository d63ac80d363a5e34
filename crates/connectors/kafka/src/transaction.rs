//! Outputs and offsets in one transaction.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Receipt};
use brigade_core::state::{StoreId, StoreOp};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer as _, ProducerContext, ThreadedProducer};

use crate::assignment::Commit;
use crate::client::{explain, log};
use crate::poll::{Client, Shared, offsets};
use crate::record::record;
use crate::settings::Site;

/// How long one step of a transaction may take.
const STEP: Duration = Duration::from_secs(20);
/// How often a commit is asked for whose answer did not come; each waits for [`STEP`].
const COMMITS_MAX: u32 = 30;

/// A transactional producer of one consumer. One transaction at a time; the caller sees to that.
pub(crate) struct Transactions {
    site: Site,
    config: ClientConfig,
    store: StoreId,
    /// Made when it is first used, and anew after an error that ends it.
    producer: Mutex<Option<ThreadedProducer<Quiet>>>,
}

/// Hears delivery reports for nothing: the commit tells what became of the whole.
pub(crate) struct Quiet(Site);

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(&self.0, level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(queue = %self.0.queue, %error, reason, "the client met an error");
    }
}

impl ProducerContext for Quiet {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// What a cluster's transactions are known by.
pub(crate) fn store_id(servers: &str) -> StoreId {
    StoreId::new(format!("kafka {servers}"))
}

impl Transactions {
    pub(crate) fn new(site: Site, mut config: ClientConfig, group: &str) -> Self {
        if config.get("transactional.id").is_none() {
            // The group's generation fences late members; the name need not come again.
            config.set("transactional.id", format!("{group}.{:016x}", fastrand::u64(..)));
        }
        if config.get("transaction.timeout.ms").is_none() {
            // What a dead member began holds up the readers of its outputs for no longer.
            config.set("transaction.timeout.ms", "30000");
        }
        if config.get("linger.ms").is_none() {
            // A transaction's outputs come at once, and it waits for them.
            config.set("linger.ms", "1");
        }
        if config.get("retry.backoff.ms").is_none() {
            // The broker finishes one transaction after it has answered; whoever begins the next
            // before that is told to try again, and would wait ten times as long as it takes.
            config.set("retry.backoff.ms", "10");
        }
        let store = store_id(&site.servers);
        Self { site, config, store, producer: Mutex::default() }
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
    ) -> Result<(), ConnectorError> {
        let explained = |error: &KafkaError| explain(&self.site, "the transaction failed", error);
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let commits = shared.state().assignment.to_commit_with(receipts);
        let open = match &*producer {
            Some(open) => open,
            None => producer.insert(self.open()?),
        };
        if let Err(error) = self.write(open, client, &commits, ops) {
            let ended =
                open.client().fatal_error().is_some() || open.abort_transaction(STEP).is_err();
            if ended {
                *producer = None;
            }
            return Err(match error {
                // The runtime tries again with a new producer.
                Failed::Kafka(error) if ended => {
                    ConnectorError::transient(explained(&error).to_string())
                }
                Failed::Kafka(error) => explained(&error),
                Failed::Other(error) => error,
            });
        }
        let mut state = shared.state();
        state.assignment.resolve(receipts);
        state.assignment.committed(&commits);
        Ok(())
    }

    fn open(&self) -> Result<ThreadedProducer<Quiet>, ConnectorError> {
        let doing = "cannot begin transactions";
        let made = self.config.create_with_context(Quiet(self.site.clone()));
        let producer: ThreadedProducer<Quiet> =
            made.map_err(|error| explain(&self.site, doing, &error))?;
        let ready = producer.init_transactions(STEP);
        ready.map_err(|error| explain(&self.site, doing, &error))?;
        Ok(producer)
    }

    fn write(
        &self,
        producer: &ThreadedProducer<Quiet>,
        client: &Client,
        commits: &[Commit],
        ops: &[StoreOp],
    ) -> Result<(), Failed> {
        producer.begin_transaction()?;
        for op in ops {
            let StoreOp::Enqueue { queue, outgoing } = op else {
                let error = "a transaction of Kafka takes messages only";
                return Err(Failed::Other(ConnectorError::unsupported(error)));
            };
            let mut next = record(queue, &outgoing.message, ());
            while let Err((error, back)) = producer.send(next) {
                if error.rdkafka_error_code() != Some(Code::QueueFull) {
                    return Err(Failed::Kafka(error));
                }
                producer.poll(Duration::from_millis(5));
                next = back;
            }
        }
        let member = client.group_metadata().ok_or_else(|| {
            Failed::Other(ConnectorError::transient("the consumer is in no group yet"))
        })?;
        producer.send_offsets_to_transaction(&offsets(commits)?, &member, STEP)?;
        // A commit flushes, which looks ten times a second whether all is written.
        let begun = Instant::now();
        while producer.in_flight_count() > 0 && begun.elapsed() < STEP {
            producer.poll(Duration::from_millis(1));
        }
        // While there is no answer nobody knows: asking again is what tells.
        for _ in 0..COMMITS_MAX {
            match producer.commit_transaction(STEP) {
                Err(KafkaError::Transaction(error)) if error.is_retriable() => {}
                done => return Ok(done?),
            }
        }
        Ok(producer.commit_transaction(STEP)?)
    }
}

enum Failed {
    Kafka(KafkaError),
    Other(ConnectorError),
}

impl From<KafkaError> for Failed {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error)
    }
}
