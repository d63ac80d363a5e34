//! The suite finds what is wrong with leases: memory queues whose messages have to be extended.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test that stops says where"
)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use brigade_core::connector::{
    Connector, ConnectorEnv, ConnectorError, Consumer, Failed, FailedReason, Incoming, QueueSpec,
    Reader, Receipt, Want,
};
use brigade_memory::{Memory, MemoryState};
use brigade_testkit::{Fixture, Like, LikeConnector, LikeConsumer, conformance};

const LEASE: Duration = Duration::from_secs(2);
/// How often it is looked what has lapsed.
const LOOK: Duration = Duration::from_millis(10);
/// Far longer than a lease: what has not come by then never does.
const NEVER: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extends {
    ItsHolders,
    Nothing,
    Anyones,
}

/// Memory queues with leases.
struct Leased {
    memory: Memory,
    extends: Extends,
    held: Arc<Mutex<Vec<Held>>>,
}

/// What is handed out, and until when.
struct Held {
    holder: Arc<dyn Consumer>,
    receipt: Receipt,
    until: Instant,
}

struct LeasedConsumer {
    inner: Arc<dyn Consumer>,
    extends: Extends,
    held: Arc<Mutex<Vec<Held>>>,
}

#[async_trait]
impl LikeConnector for Leased {
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
        let held = Arc::clone(&self.held);
        Ok(Arc::new(Like(LeasedConsumer { inner, extends: self.extends, held })))
    }
}

impl LeasedConsumer {
    /// Gives back what nobody has extended. What is resolved or another's by now stays as it is.
    async fn lapse(&self) -> Result<(), ConnectorError> {
        let now = Instant::now();
        let lapsed: Vec<Held> =
            self.held.lock().unwrap().extract_if(.., |held| held.until <= now).collect();
        for Held { holder, receipt, .. } in lapsed {
            let (reason, delay) = (FailedReason::Released, Duration::ZERO);
            holder.on_fail(vec![Failed { receipt, reason, delay }]).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl LikeConsumer for LeasedConsumer {
    fn inner(&self) -> &dyn Consumer {
        &*self.inner
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            self.lapse().await?;
            let Ok(taken) = tokio::time::timeout(LOOK, self.inner.consume(want)).await else {
                continue;
            };
            let (taken, until) = (taken?, Instant::now() + LEASE);
            let held = taken.iter().map(|one| {
                let holder = Arc::clone(&self.inner);
                Held { holder, receipt: one.receipt, until }
            });
            self.held.lock().unwrap().extend(held);
            return Ok(taken);
        }
    }

    fn lease(&self) -> Option<Duration> {
        Some(LEASE)
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<(), ConnectorError> {
        for held in self.held.lock().unwrap().iter_mut() {
            let is_meant = |receipt: &Receipt| match self.extends {
                Extends::ItsHolders => *receipt == held.receipt,
                Extends::Nothing => false,
                Extends::Anyones => receipt.position == held.receipt.position,
            };
            if receipts.iter().any(is_meant) {
                held.until = Instant::now() + LEASE;
            }
        }
        Ok(())
    }
}

fn leased(extends: Extends) -> Fixture {
    Fixture::new(
        Arc::new(Like(Leased { memory: Memory::new(), extends, held: Arc::default() })),
        ConnectorEnv { state: MemoryState::new() },
        QueueSpec::new("suite", "queue", serde_json::json!({})),
    )
}

#[tokio::test]
async fn leases_that_are_right_pass() {
    conformance::what_is_extended_stays_with_its_holder(&leased(Extends::ItsHolders)).await;
    conformance::what_only_a_late_holder_extends_comes_again(&leased(Extends::ItsHolders)).await;
}

#[tokio::test]
#[should_panic(expected = "it was extended, and came to another")]
async fn an_extension_that_does_nothing_is_found() {
    conformance::what_is_extended_stays_with_its_holder(&leased(Extends::Nothing)).await;
}

#[tokio::test]
#[should_panic(expected = "Elapsed")]
async fn an_extension_of_what_is_anothers_is_found() {
    let fixture = leased(Extends::Anyones);
    let property = conformance::what_only_a_late_holder_extends_comes_again(&fixture);
    tokio::time::timeout(NEVER, property).await.unwrap();
}
