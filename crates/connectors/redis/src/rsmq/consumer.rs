//! Receiving messages of an RSMQ queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::connector::{
    Acked, ConnectorError, Consumer, Failed, Features, Incoming, Lag, Receipt, Want,
};
use brigade_core::state::{StoreId, StoreOp};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::connector::Site;
use super::received::{Fetched, Hide, Received, hiding};
use super::scripts::{DELETE, LAG};
use crate::output::{self, Settled};
use crate::thread::Task;

/// How often an empty queue is polled.
const LOOK: Duration = Duration::from_millis(50);
/// The same while listening for announcements: not all senders make them.
const LOOK_LISTENING: Duration = Duration::from_secs(1);
/// How long to wait before listening again after a connection broke.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Receives messages of an RSMQ queue.
pub(crate) struct RsmqConsumer {
    received: Arc<Received>,
    /// A receive, or a putting back, that outlives the call that started it.
    fetch: tokio::sync::Mutex<Option<Task<Fetched>>>,
    woken: Arc<Notify>,
    /// Keeps what is received hidden from others, until this is taken away.
    keeping: Mutex<Option<Task<()>>>,
    /// Listens for announcements of sent messages, if the queue is `realtime`.
    _listening: Option<Task<()>>,
    /// Whether it is listening now.
    hears: Arc<AtomicBool>,
}

impl RsmqConsumer {
    pub(crate) fn new(site: Site) -> Self {
        let (received, woken) = (Received::new(site), Arc::new(Notify::new()));
        let site = &received.site;
        let hears = Arc::new(AtomicBool::new(false));
        let listen =
            |channel| listen(site.clone(), channel, Arc::clone(&woken), Arc::clone(&hears));
        let _listening = site.realtime.clone().map(|channel| site.wire.spawn(listen(channel)));
        let keeping = Mutex::new(Some(site.wire.spawn(Arc::clone(&received).keep())));
        Self { received, fetch: tokio::sync::Mutex::default(), woken, keeping, _listening, hears }
    }

    fn site(&self) -> &Site {
        &self.received.site
    }

    /// Hides messages for a while. Returns the places of the fenced.
    async fn hide(&self, all: Vec<Hide>) -> Result<Vec<usize>, ConnectorError> {
        if all.is_empty() {
            return Ok(Vec::new());
        }
        // On that thread, so that a lane that stalls meanwhile does not hold up the others' turns.
        self.site().wire.spawn(Arc::clone(&self.received).hide(all)).await
    }

    /// What is held, to be given back: it is no longer renewed.
    fn give_up(&self) -> Vec<Hide> {
        *self.keeping.lock() = None;
        self.received.give_up()
    }
}

/// Wakes the consumer whenever a message is announced, until the task is dropped.
async fn listen(site: Site, channel: String, woken: Arc<Notify>, hears: Arc<AtomicBool>) {
    loop {
        let (heard, hears_now) = (Arc::clone(&woken), Arc::clone(&hears));
        let heard = move || {
            hears_now.store(true, Ordering::Relaxed);
            heard.notify_waiters();
        };
        if let Err(error) = site.wire.listen(&channel, heard).await {
            tracing::debug!(queue = %site.queue, %error, "does not hear of sendings");
        }
        hears.store(false, Ordering::Relaxed);
        // A waiting `consume` now polls more often.
        woken.notify_waiters();
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

#[async_trait]
impl Consumer for RsmqConsumer {
    fn features(&self) -> Features {
        self.site().features.clone()
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            let woken = self.woken.notified();
            let mut fetch = self.fetch.lock().await;
            if self.received.is_given_up() {
                return Err(ConnectorError::closed(&self.site().queue));
            }
            if self.received.is_stale() {
                self.site().wire.spawn(Arc::clone(&self.received).renew()).await?;
            }
            let taken = self.received.take(want);
            if !taken.is_empty() {
                return Ok(taken);
            }
            let receive = || self.site().wire.spawn(Arc::clone(&self.received).receive(want));
            let fetched = fetch.get_or_insert_with(receive).await;
            *fetch = None;
            drop(fetch);
            if let Some(next_ms) = fetched? {
                let hears = self.hears.load(Ordering::Relaxed);
                let look = if hears { LOOK_LISTENING } else { LOOK };
                let next = u64::try_from(next_ms).map_or(look, Duration::from_millis);
                let wait = next.clamp(Duration::from_millis(1), look);
                let _ = tokio::time::timeout(wait, woken).await;
            }
        }
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        let (known, mut fenced) = self.received.ids(&receipts);
        // All or nothing: after a lost lease, the outputs of the others are not put either.
        if !fenced.is_empty() && !ops.is_empty() {
            return Ok(fenced.into());
        }
        if !known.is_empty() || !ops.is_empty() {
            let site = self.site();
            let mut delete = DELETE.key(&site.messages);
            delete.key(&site.hash).key(&site.attempts).arg(known.len());
            for (receipt, id) in &known {
                delete.arg(id).arg(receipt.fence);
            }
            let gone = match output::settle(&site.wire, delete, &ops).await? {
                Settled::Done(gone) => gone,
                Settled::Refused(refused) => return Ok(Acked { fenced, refused }),
            };
            fenced.extend(gone.into_iter().filter_map(|place| Some(known.get(place)?.0)));
        }
        let undone = !fenced.is_empty() && !ops.is_empty();
        let resolved = known.iter().map(|(receipt, _)| receipt);
        self.received.forget(resolved.filter(|receipt| !undone || fenced.contains(receipt)));
        Ok(fenced.into())
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        let receipts: Vec<Receipt> = failed.iter().map(|failed| failed.receipt).collect();
        let (known, mut fenced) = self.received.ids(&receipts);
        let hidden = known.iter().filter_map(|(receipt, id)| {
            let failed = failed.iter().find(|failed| failed.receipt == *receipt)?;
            let attempts = failed.reason.attempts().map_or(-1, i64::from);
            Some((id.clone(), receipt.fence, failed.delay, attempts))
        });
        let hidden = hidden.collect();
        // Forgotten before the script is sent: a renewal after it would override its delay.
        let forgotten = self.received.forget(known.iter().map(|(receipt, _)| receipt));
        let gone = match self.hide(hidden).await {
            Ok(gone) => gone,
            Err(error) => {
                self.received.remember(forgotten);
                return Err(error);
            }
        };
        fenced.extend(gone.into_iter().filter_map(|place| Some(known.get(place)?.0)));
        self.woken.notify_waiters();
        Ok(fenced.into())
    }

    async fn put_back(&self) -> Result<(), ConnectorError> {
        let mut fetch = self.fetch.lock().await;
        if let Some(fetching) = &mut *fetch {
            let fetched = fetching.await;
            *fetch = None;
            fetched?;
        }
        // Instead of a receive: if nobody waits for its end, the next receive does.
        let back = self.site().wire.spawn(Arc::clone(&self.received).put_back());
        let put_back = fetch.insert(back).await;
        *fetch = None;
        put_back.map(drop)
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let lag = LAG.key(&self.site().messages);
        let (ready, hidden): (u64, u64) = self.site().wire.script(lag).await?;
        // Hidden messages wait for their time, or are being worked on.
        Ok(Lag { ready: Some(ready), in_flight: Some(hidden), ..Lag::default() })
    }

    fn store(&self) -> Option<StoreId> {
        self.site().wire.store()
    }

    fn locate(&self, receipt: Receipt) -> String {
        let id = self.received.id(receipt.position);
        let id = id.as_deref().map_or("?".into(), String::from_utf8_lossy);
        format!("{}#{id}", self.site().messages)
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        let held = self.give_up();
        self.woken.notify_waiters();
        let given_back = self.hide(held).await;
        // A receive under way has hidden messages: it gives them back.
        self.received.ended().await;
        given_back.map(drop)
    }
}

impl Drop for RsmqConsumer {
    fn drop(&mut self) {
        let held = self.give_up();
        if let Some(fetching) = self.fetch.get_mut().take() {
            // Run to the end: it gives back what it brings.
            self.site().wire.spawn_to_the_end(async move { drop(fetching.await) });
        }
        if held.is_empty() {
            return;
        }
        // What cannot be given back is visible again when the visibility timeout is over.
        self.site().wire.at_last(hiding(self.site(), &held));
    }
}
