//! The consumer of Kafka topics: hands out what its thread polled, and commits what is resolved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use brigade_core::MessageId;
use brigade_core::connector::{
    Acked, ConnectorError, Consumer, ErrorKind, Failed, Features, Incoming, Lag, Order, Produced,
    Receipt, Rejected, Want,
};
use brigade_core::state::{StoreId, StoreOp};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;
use tokio::sync::Mutex;

use crate::client::explain;
use crate::commits::commit_owed;
use crate::lag::Lagging;
use crate::metadata::{RANGES_MAX, SPAN_MAX};
use crate::poll::{Client, Shared, commit, is_final, run};
use crate::retry::{RetryCopy, RetryTopics};
use crate::stall;
use crate::transaction::{Settled, Transactions};

/// How long closing waits in total, and for the last commit.
const CLOSE: Duration = Duration::from_secs(20);
const LAST_COMMIT: Duration = Duration::from_secs(10);
/// How long a commit waits during a rebalance of the group, and how often it is retried.
const REBALANCE: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(20);

/// Takes messages from the partitions that its group assigns to it.
pub(crate) struct KafkaConsumer {
    shared: Arc<Shared>,
    order: Order,
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
    closed: AtomicBool,
    /// One commit after the other; what is resolved meanwhile goes with the next.
    committing: Arc<Mutex<()>>,
    /// Held while the lag is read, on a thread that continues even if nobody waits for the result
    /// any more.
    asking: Arc<Mutex<()>>,
    lagging: Arc<Lagging>,
    /// Present with `guarantee: exactly_once`.
    transactions: Option<Arc<Transactions>>,
    retry: Option<RetryTopics>,
    features: Features,
}

/// What a consumer reads, and how.
pub(crate) struct Reading {
    pub(crate) order: Order,
    pub(crate) features: Features,
    pub(crate) lagging: Lagging,
    pub(crate) transactions: Option<Transactions>,
    pub(crate) retry: Option<RetryTopics>,
}

/// What is here of a consumer's partitions.
enum Taken {
    Messages(Vec<Incoming>),
    /// Nothing that may be handed out before then, if there is such a time.
    Nothing {
        until: Option<Instant>,
    },
}

impl KafkaConsumer {
    pub(crate) fn open(
        shared: Arc<Shared>,
        client: Client,
        reading: Reading,
    ) -> Result<Self, ConnectorError> {
        let Reading { order, features, lagging, transactions, retry } = reading;
        let topics: Vec<&str> = shared.of.topics.iter().map(String::as_str).collect();
        let subscribed = client.subscribe(&topics);
        subscribed.map_err(|error| explain(&shared.site, "cannot subscribe", &error))?;
        let client = Arc::new(client);
        shared.state().client = Some(Arc::clone(&client));
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("kafka-consumer".to_owned())
            .spawn(move || run(&of_thread, client))
            .map_err(|error| {
                let what = format!("no thread can be had to poll: {error}");
                ConnectorError::transient(shared.site.told(what))
            })?;
        Ok(Self {
            shared,
            order,
            thread: parking_lot::Mutex::new(Some(thread)),
            closed: AtomicBool::new(false),
            committing: Arc::default(),
            asking: Arc::default(),
            lagging: Arc::new(lagging),
            transactions: transactions.map(Arc::new),
            retry,
            features,
        })
    }

    fn client(&self) -> Result<Arc<Client>, ConnectorError> {
        let client = self.shared.state().client.clone();
        client.ok_or_else(|| ConnectorError::closed(&self.shared.site.queue))
    }

    /// Takes what is here now.
    fn take(&self, want: Want) -> Result<Taken, ConnectorError> {
        let mut state = self.shared.state();
        // Even if other partitions have messages.
        if let Some(error) = state.trouble.take_if(|error| is_final(error)) {
            return Err(error);
        }
        let assignment = &mut state.assignment;
        let (mut want, now) = (want, Instant::now());
        // What is resolved must fit into the commit; otherwise exactly once would not be
        // guaranteed.
        if self.transactions.is_some() {
            want.messages = want.messages.min(assignment.room(SPAN_MAX, RANGES_MAX, now));
        }
        let taken = assignment.take(want, self.order, now);
        if !taken.is_empty() {
            drop(state);
            self.shared.made_room();
            return Ok(Taken::Messages(taken));
        }
        match state.trouble.take() {
            Some(error) => Err(error),
            None => Ok(Taken::Nothing { until: state.assignment.due() }),
        }
    }

    /// Makes these messages come again from here.
    fn put_back(&self, failed: Vec<Failed>) -> Vec<Receipt> {
        let fenced = self.shared.state().assignment.fail(&failed, Instant::now());
        self.moved();
        fenced
    }

    /// Makes these messages come again from retry topics, or from here if they do not fit there.
    async fn send_away(
        &self,
        retry: &RetryTopics,
        failed: Vec<Failed>,
    ) -> Result<Vec<Receipt>, ConnectorError> {
        let receipts: Vec<Receipt> = failed.iter().map(|failed| failed.receipt).collect();
        let (mut copies, mut here) = (Vec::new(), Vec::new());
        let mut fenced = self.shared.state().assignment.fenced(&receipts);
        for failed in failed.into_iter().filter(|failed| !fenced.contains(&failed.receipt)) {
            let receipt = failed.receipt;
            let state = self.shared.state();
            // It was sent by an earlier attempt at the same.
            let Some(incoming) = state.assignment.held(receipt) else { continue };
            let origin = state.assignment.locate(receipt.position);
            match retry.copy(incoming, failed, &origin, SystemTime::now().into()) {
                Ok(copy) => copies.push(copy),
                Err(failed) => here.push(failed),
            }
        }
        let refused = match &self.transactions {
            Some(transactions) => {
                self.settle_copies(transactions, retry, copies, &mut fenced).await?
            }
            None => self.produce_copies(retry, copies, &mut fenced).await?,
        };
        if !refused.is_empty() {
            let (queue, count) = (&self.shared.site.queue, refused.len());
            tracing::warn!(%queue, count, "retry topics take no copies of some messages: they wait here");
        }
        here.extend(refused);
        fenced.extend(self.put_back(here));
        Ok(fenced)
    }

    /// Puts copies on their topics in the transaction that resolves their messages; returns those
    /// that were refused.
    async fn settle_copies(
        &self,
        transactions: &Arc<Transactions>,
        retry: &RetryTopics,
        copies: Vec<RetryCopy>,
        fenced: &mut Vec<Receipt>,
    ) -> Result<Vec<Failed>, ConnectorError> {
        let (mut refused, mut groups) = (Vec::new(), vec![copies]);
        while let Some(mut copies) = groups.pop() {
            if copies.is_empty() {
                continue;
            }
            let receipts = copies.iter().map(|copy| copy.failed.receipt).collect();
            let ops = Arc::new(copies.iter().map(|copy| retry.op(copy)).collect());
            // If anything is in the way, nothing is done at all.
            match self.settle(transactions, receipts, ops).await? {
                Settled::Done => continue,
                Settled::Fenced(gone) => {
                    copies.retain(|copy| !gone.contains(&copy.failed.receipt));
                    fenced.extend(gone);
                }
                Settled::TooMuch => groups.push(copies.split_off(copies.len() / 2)),
                Settled::Refused(mut which) => {
                    // Highest index first, so that the other indices stay valid.
                    which.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
                    refused.extend(which.iter().map(|(at, _)| copies.remove(*at).failed));
                }
            }
            groups.push(copies);
        }
        Ok(refused)
    }

    /// Puts copies on their topics, and resolves their messages; returns those that were refused.
    async fn produce_copies(
        &self,
        retry: &RetryTopics,
        copies: Vec<RetryCopy>,
        fenced: &mut Vec<Receipt>,
    ) -> Result<Vec<Failed>, ConnectorError> {
        let (mut refused, mut gone) = (Vec::new(), Vec::new());
        let (put, mut trouble) = retry.put(copies).await;
        for (failed, produced) in put {
            match produced {
                Produced::Confirmed => gone.push(failed.receipt),
                Produced::Rejected(_) => refused.push(failed),
                Produced::Failed(error) => trouble = Some(error),
            }
        }
        // This also commits what an earlier attempt at the same resolved.
        fenced.extend(self.resolve(&gone).await?);
        match trouble {
            Some(error) => Err(error),
            None => Ok(refused),
        }
    }

    /// Acks and puts in one transaction, or does nothing.
    async fn settle(
        &self,
        transactions: &Arc<Transactions>,
        receipts: Vec<Receipt>,
        ops: Arc<Vec<StoreOp>>,
    ) -> Result<Settled, ConnectorError> {
        let turn = Arc::clone(&self.committing).lock_owned().await;
        let (shared, client) = (Arc::clone(&self.shared), self.client()?);
        let transactions = Arc::clone(transactions);
        let settled = blocking(move || {
            let _turn = turn;
            transactions.settle(&shared, &client, &receipts, &ops)
        });
        let settled = settled.await??;
        self.moved();
        Ok(settled)
    }

    /// Wakes waiting calls: there is room, and what waited behind a key may be ready now.
    fn moved(&self) {
        self.shared.arrived.notify_waiters();
        self.shared.made_room();
    }

    /// Marks these messages as done and commits; returns those that are not committed because their
    /// partitions went before.
    async fn resolve(&self, receipts: &[Receipt]) -> Result<Vec<Receipt>, ConnectorError> {
        let marks = {
            let assignment = &mut self.shared.state().assignment;
            assignment.resolve(receipts);
            assignment.marks(receipts)
        };
        self.moved();
        self.commit().await?;
        Ok(self.shared.state().assignment.uncommitted(receipts, &marks))
    }

    /// Commits what is resolved, including what others have resolved meanwhile.
    async fn commit(&self) -> Result<(), ConnectorError> {
        let turn = Arc::clone(&self.committing).lock_owned().await;
        let shared = Arc::clone(&self.shared);
        let client = self.client()?;
        let committed = blocking(move || {
            let _turn = turn;
            let begun = Instant::now();
            let owed = || shared.state().assignment.to_commit();
            let wait = || {
                std::thread::sleep(AGAIN);
                begun.elapsed() < REBALANCE
            };
            let commits = commit_owed(owed, |commits| commit(&client, commits), wait)?;
            shared.state().assignment.committed(&commits);
            Ok(())
        });
        let committed: KafkaResult<()> = committed.await?;
        committed.map_err(|error| explain(&self.shared.site, "cannot commit", &error))
    }
}

/// The ids of the messages in ops, by their indices.
fn ids(ops: &[StoreOp], refused: Vec<(usize, Rejected)>) -> Vec<(MessageId, Rejected)> {
    let id = |(at, why): (usize, Rejected)| match ops.get(at)? {
        StoreOp::Enqueue { outgoing, .. } => Some((outgoing.message.id, why)),
        StoreOp::Put { .. } | StoreOp::Delete { .. } => None,
    };
    refused.into_iter().filter_map(id).collect()
}

/// Runs a function on a thread where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ConnectorError> {
    let done = tokio::task::spawn_blocking(run).await;
    done.map_err(|error| ConnectorError::transient(format!("a thread was lost: {error}")))
}

#[async_trait]
impl Consumer for KafkaConsumer {
    fn features(&self) -> Features {
        self.features.clone()
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            let arrived = self.shared.arrived.notified();
            if self.closed.load(Ordering::Relaxed) {
                return Err(ConnectorError::closed(&self.shared.site.queue));
            }
            match self.take(want)? {
                Taken::Messages(taken) => return Ok(taken),
                Taken::Nothing { until: None } => arrived.await,
                // Whichever comes first: what is here is looked at again.
                Taken::Nothing { until: Some(due) } => {
                    let _ = tokio::time::timeout_at(due.into(), arrived).await;
                }
            }
        }
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        if receipts.is_empty() && ops.is_empty() {
            return Ok(Acked::default());
        }
        if !ops.is_empty() {
            let transactions = self.transactions.as_ref().ok_or_else(|| {
                ConnectorError::unsupported(self.shared.site.told(
                    "outputs in the transaction of the acks: set `guarantee: exactly_once` on the \
                     input queue",
                ))
            })?;
            let ops = Arc::new(ops);
            return match self.settle(transactions, receipts, Arc::clone(&ops)).await? {
                Settled::Done => Ok(Acked::default()),
                Settled::Fenced(fenced) => Ok(fenced.into()),
                // The runtime tries again, with half as much and in smaller requests.
                Settled::TooMuch => Err(ConnectorError::transient(self.shared.site.told(
                    "the broker takes no requests as large as these; smaller ones follow (`batch.size` in \
                     `config:` above the outputs' topics' `max.message.bytes`)",
                ))),
                Settled::Refused(refused) => {
                    Ok(Acked { refused: ids(&ops, refused), ..Acked::default() })
                }
            };
        }
        Ok(self.resolve(&receipts).await?.into())
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        let away = |failed: &Failed| self.order == Order::None && RetryTopics::takes(failed);
        let fenced = match &self.retry {
            Some(retry) => {
                let (away, here) = failed.into_iter().partition(away);
                // First what may fail: receipts that were put back would no longer be valid when
                // the same is retried.
                let mut fenced = self.send_away(retry, away).await?;
                fenced.extend(self.put_back(here));
                fenced
            }
            None => self.put_back(failed),
        };
        Ok(fenced.into())
    }

    async fn broken(&self) -> ConnectorError {
        stall::broken(&self.shared, &self.lagging).await
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let turn = Arc::clone(&self.asking).lock_owned().await;
        let (shared, client) = (Arc::clone(&self.shared), self.client()?);
        let lagging = Arc::clone(&self.lagging);
        let asked = blocking(move || {
            let _turn = turn;
            lagging.ask(&shared, &client)
        });
        asked.await?
    }

    fn locate(&self, receipt: Receipt) -> String {
        self.shared.state().assignment.locate(receipt.position)
    }

    fn store(&self) -> Option<StoreId> {
        self.transactions.as_ref().map(|transactions| transactions.store())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        if self.closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let (site, until) = (&self.shared.site, tokio::time::Instant::now() + CLOSE);
        // Messages that others resolved while the last commit was pending. If the client hangs,
        // this one may hang too.
        let committed = match tokio::time::timeout(LAST_COMMIT, self.commit()).await {
            Ok(Err(error)) if error.kind() != ErrorKind::Closed => Err(error),
            Ok(_) => Ok(()),
            Err(_) => Err(ConnectorError::transient(site.told(format!(
                "the last commit did not end within {LAST_COMMIT:?}: messages may come again"
            )))),
        };
        self.shared.stop();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let joined = blocking(move || thread.join());
            if tokio::time::timeout_at(until, joined).await.is_err() {
                return Err(ConnectorError::transient(site.told(format!(
                    "the group did not let the consumer go within {CLOSE:?}; it notices when the \
                     session times out"
                ))));
            }
        }
        committed
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        // The thread leaves the group; a destructor must not wait for it.
        self.shared.stop();
    }
}

#[cfg(test)]
mod tests {
    use brigade_core::Message;
    use brigade_core::connector::{FailedReason, QueueSpec, Reader};
    use rdkafka::ClientConfig;
    use serde_json::json;

    use super::*;
    use crate::assignment::{Arrival, Place};
    use crate::membership::Membership;
    use crate::poll::Watch;
    use crate::settings::{FEATURES, Role, Settings, Site};

    /// A consumer whose broker never answers; it has handed out these messages of one partition.
    fn alone(payloads: &[&str]) -> (KafkaConsumer, Vec<Incoming>) {
        let config = json!({ "bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 100 });
        let settings = json!({ "config": config, "group": "shop", "retry_topics": ["1s"] });
        let queue = QueueSpec::new("shop", "orders", settings);
        let settings = Settings::of(&queue).expect("they are right");
        let site = Site::new(&queue, &settings, Role::Consumer);
        let reader = Reader { stage: "bill".into(), group: "".into(), order: Order::None };
        let names = settings.retry_names(&queue, &reader);
        let retry = RetryTopics::open(&settings, "shop", &names, &site, false);
        let of = Membership {
            cluster: "cluster".to_owned(),
            group: "shop".to_owned(),
            topics: vec!["orders".to_owned()],
            in_transactions: false,
            from_end: false,
        };
        let shared = Shared::new(site.clone(), of, &settings);
        let config = settings.member(&queue, &reader);
        let client = config.create_with_context(Watch(Arc::clone(&shared)));
        let reading = Reading {
            order: Order::None,
            features: FEATURES,
            lagging: Lagging::new(site, Vec::new(), Vec::new(), ClientConfig::new()),
            transactions: None,
            retry: retry.expect("nobody is asked"),
        };
        let client = client.expect("nobody is asked");
        let consumer = KafkaConsumer::open(shared, client, reading).expect("nobody is asked");
        let place: Place = ("orders".into(), 0);
        let mut state = consumer.shared.state();
        assert!(state.assignment.assign(place.clone(), None));
        for (offset, payload) in payloads.iter().enumerate() {
            let arrival = Arrival::plain(Message::new(payload.to_string()));
            assert!(state.assignment.arrive(&place, offset as u64, arrival));
        }
        let want = Want { messages: payloads.len(), bytes: usize::MAX };
        let taken = state.assignment.take(want, Order::None, Instant::now());
        drop(state);
        (consumer, taken)
    }

    /// The client hangs in a commit, while the runtime, which wants to reopen the consumer, waits
    /// for it to close.
    #[test]
    fn closing_ends_though_a_commit_hangs() {
        brigade_testkit::paused(async {
            let (consumer, _) = alone(&[]);
            let _hangs = Arc::clone(&consumer.committing).lock_owned().await;
            let closed = tokio::time::timeout(CLOSE, consumer.shutdown()).await;
            let error = closed.expect("it is bounded").expect_err("it is not committed");
            assert!(error.to_string().contains("queue `orders`"), "{error}");
            assert!(consumer.shared.stopping());
        });
    }

    /// For example from one partition of several that can no longer be read.
    #[tokio::test]
    async fn what_ends_the_consumer_is_told_before_anything_else() {
        let (consumer, taken) = alone(&["one"]);
        let released = |incoming: &Incoming| Failed {
            receipt: incoming.receipt,
            reason: FailedReason::Released,
            delay: Duration::ZERO,
        };
        assert!(consumer.put_back(taken.iter().map(released).collect()).is_empty());
        consumer.shared.tell(ConnectorError::permanent("for good"));
        consumer.shared.tell(ConnectorError::transient("for now"));
        let want = Want { messages: 1, bytes: usize::MAX };
        let error = consumer.consume(want).await.expect_err("it is told first");
        assert!(error.to_string().contains("for good"), "{error}");
    }

    /// A stage whose credit is used up does not ask for messages.
    #[tokio::test]
    async fn what_ends_the_consumer_is_told_though_nothing_is_consumed() {
        let (consumer, _) = alone(&[]);
        consumer.shared.tell(ConnectorError::stalled("it stands still"));
        consumer.shared.tell(ConnectorError::transient("for now"));
        let error = tokio::time::timeout(CLOSE, consumer.broken()).await.expect("it is told");
        assert!(error.to_string().contains("it stands still"), "{error}");
    }

    /// Once the partition has gone, only what the broker took counts as done.
    #[tokio::test]
    async fn an_ack_that_the_broker_never_took_does_not_stand() {
        let (consumer, taken) = alone(&["committed", "resolved"]);
        let receipts: Vec<Receipt> = taken.iter().map(|incoming| incoming.receipt).collect();
        {
            let assignment = &mut consumer.shared.state().assignment;
            assignment.resolve(&receipts[..1]);
            let commits = assignment.to_commit();
            assignment.committed(&commits);
            // An ack of it waits for its turn to commit.
            assignment.resolve(&receipts[1..]);
            assignment.revoke(&("orders".into(), 0));
        }
        let acked = consumer.ack(receipts.clone(), Vec::new()).await.expect("nothing is owed");
        assert_eq!(acked.fenced, receipts[1..]);
    }

    /// Messages put back here must not be reported as fenced when the same is retried.
    #[tokio::test]
    async fn while_copies_cannot_be_put_nothing_is_put_back() {
        let (consumer, taken) = alone(&["away", "here"]);
        let attempt = FailedReason::Attempt { attempts: 1, error: "no luck".to_owned() };
        let reasons = [(attempt, Duration::from_secs(1)), (FailedReason::Released, Duration::ZERO)];
        let failed = taken.iter().zip(reasons).map(|(incoming, (reason, delay))| Failed {
            receipt: incoming.receipt,
            reason,
            delay,
        });
        let failed: Vec<Failed> = failed.collect();
        for _ in 0..2 {
            let error = consumer.on_fail(failed.clone()).await.expect_err("no broker answers");
            assert!(error.is_transient(), "{error}");
            let state = consumer.shared.state();
            assert!(taken.iter().all(|one| state.assignment.held(one.receipt).is_some()));
        }
    }
}
