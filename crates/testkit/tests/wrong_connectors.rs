//! The suite finds what is wrong: connectors that each break one promise.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::MessageId;
use brigade_core::connector::{
    Acked, Connector, ConnectorEnv, ConnectorError, Consumer, Failed, FailedReason, Incoming, Lag,
    Limit, Outgoing, Produced, Producer, QueueSpec, Reader, Receipt, Want,
};
use brigade_core::state::StoreOp;
use brigade_memory::{Memory, MemoryState};
use brigade_testkit::{Fixture, Like, LikeConnector, LikeConsumer, LikeProducer, conformance};

/// Which promise is broken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    DropsHeaders,
    DropsKeys,
    NullBecomesEmpty,
    AcksBeforeTheWork,
    AcksNothing,
    LosesEveryHundredth,
    IgnoresDelays,
    CountsReleasesAsAttempts,
    FencesNobody,
    IgnoresLimits,
    LiesAboutItsLag,
    ReversesTheOrder,
    IgnoresTheBytesWanted,
    KeepsWhatItFetches,
    LosesWhenDisturbed,
    ForgetsAcksWhenDisturbed,
    GivesOneIdToAll,
}

/// Memory queues with a fault.
struct Wrong {
    memory: Memory,
    fault: Fault,
    blow: Blow,
}

/// Whether it was disturbed and nothing went wrong yet.
type Blow = Arc<AtomicBool>;

struct WrongConsumer {
    inner: Arc<dyn Consumer>,
    fault: Fault,
    blow: Blow,
    /// What it fetched and nobody has asked for yet.
    ahead: Mutex<VecDeque<Incoming>>,
}

struct WrongProducer {
    inner: Arc<dyn Producer>,
    fault: Fault,
}

#[async_trait]
impl LikeConnector for Wrong {
    fn inner(&self) -> &dyn Connector {
        &self.memory
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        let inner = self.memory.consumer(queue, reader, env).await?;
        let blow = Arc::clone(&self.blow);
        let ahead = Mutex::default();
        Ok(Arc::new(Like(WrongConsumer { inner, fault: self.fault, blow, ahead })))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        env: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        let mut queue = queue.clone();
        if self.fault == Fault::IgnoresLimits {
            queue.limit = Limit::default();
        }
        let inner = self.memory.producer(&queue, env).await?;
        Ok(Arc::new(Like(WrongProducer { inner, fault: self.fault })))
    }
}

#[async_trait]
impl LikeConsumer for WrongConsumer {
    fn inner(&self) -> &dyn Consumer {
        &*self.inner
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        if self.fault == Fault::KeepsWhatItFetches {
            let all = Want { messages: usize::MAX, bytes: usize::MAX };
            let fetched = self.inner.consume(all).await?;
            let mut ahead = self.ahead.lock().unwrap();
            ahead.extend(fetched);
            return Ok(want.fill(|| ahead.pop_front()));
        }
        let bytes = match self.fault {
            Fault::IgnoresTheBytesWanted => usize::MAX,
            _ => want.bytes,
        };
        let mut taken = self.inner.consume(Want { bytes, ..want }).await?;
        match self.fault {
            Fault::ReversesTheOrder => taken.reverse(),
            Fault::GivesOneIdToAll => {
                taken.iter_mut().for_each(|incoming| incoming.message.id = MessageId(1));
            }
            // One blow is over before anything is taken: the suite waits for it with the next.
            Fault::LosesWhenDisturbed if self.blow.swap(false, Relaxed) => {
                let lost = taken.pop().into_iter().map(|incoming| incoming.receipt);
                self.inner.ack(lost.collect(), Vec::new()).await?;
            }
            Fault::AcksBeforeTheWork => {
                let receipts = taken.iter().map(|incoming| incoming.receipt).collect();
                self.inner.ack(receipts, Vec::new()).await?;
            }
            _ => {}
        }
        Ok(taken)
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        match self.fault {
            Fault::AcksNothing | Fault::AcksBeforeTheWork => Ok(Acked::default()),
            Fault::FencesNobody => self.inner.ack(receipts, ops).await.map(|_| Acked::default()),
            Fault::ForgetsAcksWhenDisturbed if self.blow.swap(false, Relaxed) => {
                let (reason, delay) = (FailedReason::Released, Duration::ZERO);
                let forgotten = |receipt| Failed { receipt, reason: reason.clone(), delay };
                self.inner.on_fail(receipts.into_iter().map(forgotten).collect()).await
            }
            _ => self.inner.ack(receipts, ops).await,
        }
    }

    async fn on_fail(&self, mut failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        for failed in &mut failed {
            if self.fault == Fault::IgnoresDelays {
                failed.delay = Duration::ZERO;
            }
            if self.fault == Fault::CountsReleasesAsAttempts {
                failed.reason = FailedReason::Attempt { attempts: 1, error: String::new() };
            }
        }
        match self.fault {
            Fault::FencesNobody => self.inner.on_fail(failed).await.map(|_| Acked::default()),
            _ => self.inner.on_fail(failed).await,
        }
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let lag = self.inner.lag().await?;
        match self.fault {
            Fault::LiesAboutItsLag => Ok(Lag { ready: lag.ready.map(|ready| ready + 1), ..lag }),
            _ => Ok(lag),
        }
    }
}

#[async_trait]
impl LikeProducer for WrongProducer {
    fn inner(&self) -> &dyn Producer {
        &*self.inner
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let mut changed = batch.to_vec();
        for outgoing in &mut changed {
            let message = &mut outgoing.message;
            match self.fault {
                Fault::DropsHeaders => message.headers = Default::default(),
                Fault::DropsKeys => message.key = None,
                Fault::NullBecomesEmpty => {
                    message.payload.get_or_insert_default();
                }
                _ => {}
            }
        }
        if self.fault == Fault::LosesEveryHundredth {
            changed.retain(|outgoing| outgoing.message.id.0 % 100 != 99);
            self.inner.produce(&changed).await?;
            return Ok(batch.iter().map(|_| Produced::Confirmed).collect());
        }
        self.inner.produce(&changed).await
    }
}

fn wrong(fault: Fault) -> Fixture {
    let blow = Blow::default();
    Fixture::new(
        Arc::new(Like(Wrong { memory: Memory::new(), fault, blow: Arc::clone(&blow) })),
        ConnectorEnv { state: MemoryState::new() },
        QueueSpec::new("suite", "queue", serde_json::json!({})),
    )
    .disturb(move || blow.store(true, Relaxed))
}

/// Patience is for servers; here whatever does not come never does.
const NEVER: Duration = Duration::from_secs(2);
/// What panics by itself has all the time that it wants: a busy machine finds nothing in its place.
const LATE: Duration = Duration::from_secs(180);

macro_rules! found {
    ($patience:ident: $($name:ident: $fault:ident by $property:ident, $told:literal;)*) => {
        $(
            #[tokio::test]
            #[should_panic(expected = $told)]
            async fn $name() {
                let fixture = wrong(Fault::$fault);
                let property = conformance::$property(&fixture);
                tokio::time::timeout($patience, property).await.unwrap();
            }
        )*
    };
}

found! {
    LATE:
    lost_headers: DropsHeaders by a_message_comes_out_as_it_went_in, "left == right";
    lost_keys: DropsKeys by a_message_comes_out_as_it_went_in, "left == right";
    null_that_becomes_empty: NullBecomesEmpty by a_message_comes_out_as_it_went_in, "left == right";
    acks_that_do_nothing: AcksNothing by what_is_acked_never_comes_again, "left == right";
    ignored_delays: IgnoresDelays by a_failed_attempt_comes_again_after_its_delay,
        "it came after";
    releases_that_use_attempts: CountsReleasesAsAttempts by a_release_uses_no_attempt,
        "left == right";
    missing_fences: FencesNobody by a_late_ack_does_not_undo_what_another_does, "left == right";
    missing_fences_of_failures: FencesNobody by a_late_failure_does_not_undo_what_another_does,
        "left == right";
    ignored_limits: IgnoresLimits by a_full_queue_says_so_and_takes_more_when_there_is_room,
        "left == right";
    a_wrong_lag: LiesAboutItsLag by the_lag_is_what_is_there, "six are not";
    a_wrong_order: ReversesTheOrder by messages_come_in_the_order_in_which_they_were_put,
        "assertion failed: taken";
    ignored_bytes: IgnoresTheBytesWanted by no_more_bytes_come_than_are_wanted,
        "not more bytes than are wanted";
    one_id_for_all: GivesOneIdToAll by what_is_put_without_an_id_has_one_of_its_own,
        "two messages have the same id";
    acks_that_a_blow_undoes: ForgetsAcksWhenDisturbed by a_disturbed_backend_loses_nothing,
        "it came again after its ack was answered";
}

found! {
    NEVER:
    acks_before_the_work: AcksBeforeTheWork by what_a_dropped_consumer_held_comes_again, "Elapsed";
    messages_kept_from_others: KeepsWhatItFetches by what_is_put_back_goes_to_another, "Elapsed";
    lost_messages: LosesEveryHundredth by ten_thousand_messages_survive_random_failures, "Elapsed";
    what_a_blow_loses: LosesWhenDisturbed by a_disturbed_backend_loses_nothing, "Elapsed";
}

/// The same without a fault, so that it is the fault that is found.
mod right {
    use super::{Arc, ConnectorEnv, Fixture, Memory, MemoryState, QueueSpec};

    brigade_testkit::conformance!(|| Fixture::new(
        Arc::new(Memory::new()),
        ConnectorEnv { state: MemoryState::new() },
        QueueSpec::new("suite", "queue", serde_json::json!({})),
    )
    .disturb(|| ()));
}
