use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::connector::{
    Acked, ConnectorError, Consumer, Failed, FailedReason, Features, Incoming, Lag, Receipt, Want,
};
use brigade_core::state::{StoreId, StoreOp};
use brigade_core::{IncarnationId, Message, MessageId, Timestamp};
use futures_util::future::BoxFuture;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::connector::Site;
use super::scripts::{DELETE, HIDE, LAG, RECEIVE};
use crate::output::{self, Settled};
use crate::pace::Paced;

/// The most messages that are received at once.
const RECEIVE_MAX: usize = 500;
/// How often an empty queue is looked into.
const LOOK: Duration = Duration::from_millis(50);
/// The same where sendings are heard of: not all senders publish them.
const LOOK_LISTENING: Duration = Duration::from_secs(1);
/// How long to wait before listening again after a connection broke.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// A received message: id, body, receive count, first receiving, failed attempts.
type Received = (String, Option<Vec<u8>>, u64, Option<String>, Option<u32>);

/// Receives messages of an RSMQ queue.
pub(crate) struct RsmqConsumer {
    site: Arc<Site>,
    shared: Mutex<Shared>,
    pace: Paced,
    /// A receiving that outlives who asked for it.
    fetch: tokio::sync::Mutex<Option<Fetch>>,
    closed: AtomicBool,
    /// One change of times after the other.
    hiding: tokio::sync::Mutex<()>,
    woken: Arc<Notify>,
    /// Hears of sendings, if the queue is `realtime`.
    listening: Option<JoinHandle<()>>,
}

/// How many messages it asked for, and the answer.
type Fetch = (usize, BoxFuture<'static, Fetched>);

type Fetched = Result<(Vec<Received>, i64), ConnectorError>;

#[derive(Default)]
struct Shared {
    /// Received, and not yet handed out.
    ready: VecDeque<Incoming>,
    /// The ids of what is received and unresolved, by the numbers that receipts have.
    held: HashMap<u64, (String, u64)>,
    next: u64,
}

impl RsmqConsumer {
    pub(crate) fn new(site: Site) -> Self {
        let (site, woken) = (Arc::new(site), Arc::new(Notify::new()));
        let channel = site.realtime.clone();
        let listening = channel
            .map(|channel| tokio::spawn(listen(Arc::clone(&site), channel, Arc::clone(&woken))));
        Self {
            site,
            shared: Mutex::default(),
            pace: Paced::new(RECEIVE_MAX),
            fetch: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            hiding: tokio::sync::Mutex::default(),
            woken,
            listening,
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, want: Want) -> Vec<Incoming> {
        let mut shared = self.shared();
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < want.messages && (bytes < want.bytes || taken.is_empty()) {
            let Some(next) = shared.ready.pop_front() else { break };
            bytes += next.message.size();
            taken.push(next);
        }
        taken
    }

    /// Enters what a receiving brought that asked for so many.
    fn enter(&self, asked: usize, received: Vec<Received>) {
        let mut shared = self.shared();
        let before = shared.ready.len();
        for (id, body, count, first, attempts) in received {
            let position = shared.next;
            shared.next += 1;
            let message = Message {
                id: MessageId::root(IncarnationId::of(id.as_bytes()), 0),
                payload: body.map(Into::into),
                ..Message::default()
            };
            let mut incoming = Incoming::new(message, Receipt { position, fence: count });
            incoming.attempts = attempts.unwrap_or(0);
            let handed_out = u32::try_from(count).unwrap_or(u32::MAX);
            incoming.redeliveries = handed_out.saturating_sub(1).saturating_sub(incoming.attempts);
            let sent = id.get(..10).and_then(|time| i64::from_str_radix(time, 36).ok());
            incoming.enqueued_at = sent.map(|usec| Timestamp(usec / 1000));
            incoming.defect = self.site.handed_out_too_often(incoming.redeliveries);
            if incoming.attempts > 0 {
                incoming.first_failed_at = first.and_then(|ms| ms.parse().ok()).map(Timestamp);
            }
            shared.held.insert(position, (id, count));
            shared.ready.push_back(incoming);
        }
        self.pace.read::<()>(asked, Ok(&shared.ready.make_contiguous()[before..]));
    }

    /// The ids behind receipts, as far as they stand here; the rest are fenced.
    fn ids(&self, receipts: &[Receipt]) -> (Vec<(Receipt, String)>, Vec<Receipt>) {
        let shared = self.shared();
        let (mut known, mut fenced) = (Vec::new(), Vec::new());
        for receipt in receipts {
            match shared.held.get(&receipt.position) {
                Some((id, count)) if *count == receipt.fence => known.push((*receipt, id.clone())),
                _ => fenced.push(*receipt),
            }
        }
        (known, fenced)
    }

    /// Hides messages for a while, counted from now.
    async fn hide(
        &self,
        receipts: Vec<(Receipt, String, Duration, i64)>,
    ) -> Result<Vec<String>, ConnectorError> {
        if receipts.is_empty() {
            return Ok(Vec::new());
        }
        let mut hide = HIDE.key(&self.site.messages);
        hide.key(&self.site.hash).key(&self.site.attempts);
        for (receipt, id, period, attempts) in receipts {
            hide.arg(id).arg(receipt.fence).arg(period.as_millis().to_string()).arg(attempts);
        }
        self.site.wire.script(&hide).await
    }

    /// What is held, to be given back.
    fn give_up(&self) -> Vec<(Receipt, String, Duration, i64)> {
        let mut shared = self.shared();
        shared.ready.clear();
        let held = shared.held.drain();
        held.map(|(position, (id, fence))| (Receipt { position, fence }, id, Duration::ZERO, -1))
            .collect()
    }
}

/// Wakes the consumer whenever something is sent, for as long as it is there.
async fn listen(site: Arc<Site>, channel: String, woken: Arc<Notify>) {
    loop {
        if let Err(error) = site.wire.listen(&channel, || woken.notify_waiters()).await {
            tracing::debug!(queue = %site.queue, %error, "does not hear of sendings");
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

async fn receive(site: Arc<Site>, max: usize) -> Fetched {
    let mut receive = RECEIVE.key(&site.messages);
    receive.key(&site.hash).key(&site.attempts).arg(max).arg(site.vt.as_millis().to_string());
    match site.wire.try_script(&receive).await {
        Err(failure) if failure.is_no_queue() => {
            site.made.make_again(&site.wire).await?;
            site.wire.script(&receive).await
        }
        answer => answer.map_err(|failure| site.wire.told(&failure)),
    }
}

fn fenced_of(known: &[(Receipt, String)], ids: &[String]) -> Vec<Receipt> {
    let gone = known.iter().filter(|(_, id)| ids.contains(id));
    gone.map(|(receipt, _)| *receipt).collect()
}

#[async_trait]
impl Consumer for RsmqConsumer {
    fn features(&self) -> Features {
        self.site.features.clone()
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            let woken = self.woken.notified();
            if self.closed.load(Ordering::Relaxed) {
                return Err(ConnectorError::closed(&self.site.queue));
            }
            let mut fetch = self.fetch.lock().await;
            let taken = self.take(want);
            if !taken.is_empty() {
                return Ok(taken);
            }
            let (asked, fetching) = fetch.get_or_insert_with(|| {
                let asked = self.pace.count(want);
                (asked, Box::pin(receive(Arc::clone(&self.site), asked)))
            });
            let (asked, fetched) = (*asked, fetching.await);
            *fetch = None;
            drop(fetch);
            if fetched.is_err() {
                self.pace.read(asked, Err(()));
            }
            let (received, next_ms) = fetched?;
            if received.is_empty() {
                let look = if self.listening.is_some() { LOOK_LISTENING } else { LOOK };
                let next = u64::try_from(next_ms).map_or(look, Duration::from_millis);
                let wait = next.clamp(Duration::from_millis(1), look);
                let _ = tokio::time::timeout(wait, woken).await;
            }
            self.enter(asked, received);
        }
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        let (known, mut fenced) = self.ids(&receipts);
        // All or nothing: with a lost lease what the others became is not put either.
        if !fenced.is_empty() && !ops.is_empty() {
            return Ok(fenced.into());
        }
        if !known.is_empty() || !ops.is_empty() {
            let mut delete = DELETE.key(&self.site.messages);
            delete.key(&self.site.hash).key(&self.site.attempts).arg(known.len());
            for (receipt, id) in &known {
                delete.arg(id).arg(receipt.fence);
            }
            let gone = match output::settle(&self.site.wire, &mut delete, &ops).await? {
                Settled::Done(gone) => gone,
                Settled::Refused(refused) => return Ok(Acked { fenced, refused }),
            };
            fenced.extend(fenced_of(&known, &gone));
        }
        let undone = !fenced.is_empty() && !ops.is_empty();
        let mut shared = self.shared();
        for (receipt, _) in known {
            if !undone || fenced.contains(&receipt) {
                shared.held.remove(&receipt.position);
            }
        }
        Ok(fenced.into())
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        let receipts: Vec<Receipt> = failed.iter().map(|failed| failed.receipt).collect();
        let (known, mut fenced) = self.ids(&receipts);
        let hidden = known.iter().filter_map(|(receipt, id)| {
            let failed = failed.iter().find(|failed| failed.receipt == *receipt)?;
            let attempts = match failed.reason {
                FailedReason::Attempt { attempts, .. } | FailedReason::Parked { attempts, .. } => {
                    i64::from(attempts)
                }
                FailedReason::Released => -1,
            };
            Some((*receipt, id.clone(), failed.delay, attempts))
        });
        let hidden = hidden.collect();
        // Before it is on its way: a renewal that followed would override its delay.
        for (receipt, _) in &known {
            self.shared().held.remove(&receipt.position);
        }
        let turn = self.hiding.lock().await;
        let gone = self.hide(hidden).await;
        drop(turn);
        let gone = gone.inspect_err(|_| {
            let back = known.iter().cloned();
            let back = back.map(|(receipt, id)| (receipt.position, (id, receipt.fence)));
            self.shared().held.extend(back);
        })?;
        fenced.extend(fenced_of(&known, &gone));
        self.woken.notify_waiters();
        Ok(fenced.into())
    }

    fn lease(&self) -> Option<Duration> {
        Some(self.site.vt)
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<(), ConnectorError> {
        let _turn = self.hiding.lock().await;
        let (known, _) = self.ids(receipts);
        let vt = self.site.vt;
        let again = known.into_iter().map(|(receipt, id)| (receipt, id, vt, -1));
        self.hide(again.collect()).await.map(drop)
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let lag = LAG.key(&self.site.messages);
        let (ready, hidden): (u64, u64) = self.site.wire.script(&lag).await?;
        // Hidden are those that wait for their time and those that somebody works on.
        Ok(Lag { ready: Some(ready), in_flight: Some(hidden), ..Lag::default() })
    }

    fn store(&self) -> Option<StoreId> {
        self.site.wire.store()
    }

    fn locate(&self, receipt: Receipt) -> String {
        let shared = self.shared();
        let id = shared.held.get(&receipt.position).map_or("?", |(id, _)| id);
        format!("{}#{id}", self.site.messages)
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        if self.closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.woken.notify_waiters();
        // A receiving that is under way has hidden messages; they are given back too.
        if let Some((asked, fetching)) = self.fetch.lock().await.take()
            && let Ok((received, _)) = fetching.await
        {
            self.enter(asked, received);
        }
        let held = self.give_up();
        self.hide(held).await.map(drop)
    }
}

impl Drop for RsmqConsumer {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
        let held = self.give_up();
        if held.is_empty() {
            return;
        }
        // If it cannot be given back, it is visible again when the visibility timeout is over.
        let mut hide = HIDE.prepare_invoke();
        hide.key(&self.site.messages).key(&self.site.hash).key(&self.site.attempts);
        for (receipt, id, period, attempts) in held {
            hide.arg(id).arg(receipt.fence).arg(period.as_millis().to_string()).arg(attempts);
        }
        self.site.wire.at_last(hide);
    }
}
