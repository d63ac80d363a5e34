//! The consumer of generated messages: makes them, and keeps its position in the state.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use brigade_core::connector::{
    Acked, ConnectorError, Consumer, Failed, Features, Incoming, Lag, QueueSpec, Reader, Receipt,
    Want,
};
use brigade_core::state::{KeptPositions, StateLock, StateStore, StoreId, StoreOp};
use brigade_core::throttle::TokenBucket;
use brigade_core::watermark::Watermark;
use brigade_core::{IncarnationId, Message, MessageId};
use parking_lot::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

use crate::connector::{Settings, features};
use crate::template::render;

/// Makes messages, and resumes where it left off.
pub(crate) struct GeneratorConsumer {
    name: Arc<str>,
    settings: Settings,
    state: Arc<dyn StateStore>,
    space: Arc<str>,
    incarnation: IncarnationId,
    shared: Mutex<Shared>,
    changed: Notify,
    /// One ack writes at a time: each writes the whole position.
    acking: tokio::sync::Mutex<()>,
    /// The time at which messages put back without a delay are due: the same for all of them, so
    /// that they come back in their places.
    opened: Instant,
    /// Keeps other consumers from making the same messages for the same group.
    lock: Mutex<Option<StateLock>>,
}

struct Shared {
    resolved: Watermark,
    next: u64,
    /// Handed out or put back: attempts and redeliveries.
    out: BTreeMap<u64, (u32, u32)>,
    /// What was put back: when it may be handed out again.
    returned: BTreeMap<(Instant, u64), ()>,
    rate: Option<TokenBucket>,
    closed: bool,
}

/// The key of the position in the state.
const POSITION: &str = "position";

impl GeneratorConsumer {
    pub(crate) async fn open(
        queue: &QueueSpec,
        reader: &Reader,
        state: &Arc<dyn StateStore>,
    ) -> Result<Self, ConnectorError> {
        let settings: Settings = queue.settings()?;
        let KeptPositions { space, lock, kept } =
            KeptPositions::open(&**state, "generator", queue, reader).await?;
        let kept = kept.into_iter().find(|(key, _)| key == POSITION);
        let resolved = kept.map(|(_, bytes)| serde_json::from_slice(&bytes)).transpose();
        let resolved: Watermark =
            resolved.map_err(|error| unreadable(queue, &error))?.unwrap_or_default();
        // A burst of a tenth of a second's messages, so that they come in batches.
        let bucket = |rate: u32| TokenBucket::new(rate, Duration::from_secs(1), rate.div_ceil(10));
        let what = format!("{}/{}/{}", queue.pipeline, queue.name, settings.seed);
        let shared = Shared {
            next: resolved.low(),
            resolved,
            out: BTreeMap::new(),
            returned: BTreeMap::new(),
            rate: settings.rate.map(bucket),
            closed: false,
        };
        Ok(Self {
            name: Arc::clone(&queue.name),
            settings,
            state: Arc::clone(state),
            space,
            incarnation: IncarnationId::of(what.as_bytes()),
            shared: Mutex::new(shared),
            changed: Notify::new(),
            acking: tokio::sync::Mutex::default(),
            opened: Instant::now(),
            lock: Mutex::new(Some(lock)),
        })
    }

    fn make(&self, n: u64, (attempts, redeliveries): (u32, u32)) -> Incoming {
        let payload = render(&self.settings.template, self.settings.seed, n).to_string();
        let message = Message::new(payload).with_id(MessageId::root(self.incarnation, n));
        let mut incoming = Incoming::new(message, Receipt { position: n, fence: 0 });
        (incoming.attempts, incoming.redeliveries) = (attempts, redeliveries);
        incoming
    }

    /// The number of the next message; otherwise sets how long to wait for one, if there is
    /// anything to wait for.
    fn next(&self, shared: &mut Shared, now: Instant, until: &mut Option<Instant>) -> Option<u64> {
        let due = shared.returned.first_key_value().map(|((at, n), ())| (*at, *n));
        if let Some((at, n)) = due.filter(|(at, _)| *at <= now) {
            shared.returned.remove(&(at, n));
            return Some(n);
        }
        while shared.resolved.is_resolved(shared.next) {
            shared.next += 1;
        }
        *until = due.map(|(at, _)| at);
        if self.settings.count.is_some_and(|count| shared.next >= count) {
            return None;
        }
        if let Some(Err(wait)) = shared.rate.as_mut().map(|rate| rate.take(now)) {
            *until = Some(until.map_or(now + wait, |at| at.min(now + wait)));
            return None;
        }
        shared.next += 1;
        Some(shared.next - 1)
    }

    /// What can be handed out now; otherwise until when to wait, if there is anything to wait for.
    fn take(&self, want: Want) -> Result<(Vec<Incoming>, Option<Instant>, bool), ConnectorError> {
        let shared = &mut *self.shared.lock();
        if shared.closed {
            return Err(ConnectorError::closed(&self.name));
        }
        let (now, mut until) = (Instant::now(), None);
        let taken = want.fill(|| {
            let n = self.next(shared, now, &mut until)?;
            let counts = *shared.out.entry(n).or_default();
            Some(self.make(n, counts))
        });
        let ended = taken.is_empty() && until.is_none() && shared.out.is_empty();
        Ok((taken, until, ended))
    }
}

#[async_trait]
impl Consumer for GeneratorConsumer {
    fn features(&self) -> Features {
        features(&self.settings)
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            let changed = self.changed.notified();
            let (taken, until, ended) = self.take(want)?;
            if !taken.is_empty() || ended {
                return Ok(taken);
            }
            match until {
                None => changed.await,
                Some(at) => {
                    let _ = tokio::time::timeout_at(at.into(), changed).await;
                }
            }
        }
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        mut ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        let _one_at_a_time = self.acking.lock().await;
        if self.shared.lock().closed {
            return Err(ConnectorError::closed(&self.name));
        }
        let mut resolved = self.shared.lock().resolved.clone();
        receipts.iter().for_each(|receipt| resolved.resolve(receipt.position));
        let value = serde_json::to_vec(&resolved).expect("numbers always encode").into();
        let (space, key) = (Arc::clone(&self.space), POSITION.to_owned());
        ops.push(StoreOp::Put { space, key, value });
        match receipts.len() {
            1 => self.state.commit_of_one(ops).await?,
            _ => self.state.commit(ops).await?,
        }
        let mut shared = self.shared.lock();
        shared.resolved = resolved;
        for receipt in receipts {
            shared.out.remove(&receipt.position);
        }
        drop(shared);
        self.changed.notify_one();
        Ok(Acked::default())
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        let mut shared = self.shared.lock();
        for Failed { receipt, reason, delay } in failed {
            let Some((tried, redeliveries)) = shared.out.get_mut(&receipt.position) else {
                continue;
            };
            match reason.attempts() {
                Some(attempts) => *tried = attempts,
                None => *redeliveries += 1,
            }
            let at = if delay.is_zero() { self.opened } else { Instant::now() + delay };
            shared.returned.insert((at, receipt.position), ());
        }
        drop(shared);
        self.changed.notify_one();
        Ok(Acked::default())
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let shared = self.shared.lock();
        let returned = shared.returned.len() as u64;
        let left = self.settings.count.map(|count| count.saturating_sub(shared.next));
        Ok(Lag {
            ready: left,
            delayed: Some(returned),
            in_flight: Some(shared.out.len() as u64 - returned),
            at_end: left == Some(0) && shared.out.is_empty(),
            ..Lag::default()
        })
    }

    fn locate(&self, receipt: Receipt) -> String {
        format!("{}#{}", self.name, receipt.position)
    }

    fn store(&self) -> Option<StoreId> {
        Some(self.state.store_id())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.shared.lock().closed = true;
        self.changed.notify_one();
        // Another process may take over, but not before a pending ack is written: the state handles
        // requests in order.
        self.state.load(&self.space, POSITION).await?;
        drop(self.lock.lock().take());
        Ok(())
    }
}

/// An error for a stored position that cannot be read: starting over would make everything twice.
fn unreadable(queue: &QueueSpec, error: &serde_json::Error) -> ConnectorError {
    ConnectorError::permanent(format!(
        "queue `{}`: the state keeps a position that this program cannot read ({error}): use the \
         program that wrote it, or another `state`",
        queue.name
    ))
}
