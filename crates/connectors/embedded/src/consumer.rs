//! The consumer of embedded queues: claims rows, acks them and gives them back.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use brigade_core::connector::{
    Acked, ConnectorError, Consumer, Failed, FailedReason, Features, Incoming, Lag, Order,
    QueueSpec, Reader, Receipt, Want,
};
use brigade_core::state::{StateStore, StoreId, StoreOp};
use brigade_core::{IncarnationId, Period};
use parking_lot::Mutex;
use rusqlite::{OptionalExtension, params};
use tokio::sync::Notify;

use crate::claim::{Claimed, claim};
use crate::connector::features;
use crate::lag::lag;
use crate::readers::Readers;
use crate::rows::{
    MadeOf, delete_leased, expire_from, leased, millis, now_ms, promote, queue_id, tell_expired,
};
use crate::settings::Settings;
use crate::store::{Store, Targets, apply};
use crate::thread::{Requests, Work};

/// How long a consumer waits for a notification before it checks by itself, in case one was lost.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Takes messages from an embedded queue.
pub(crate) struct EmbeddedConsumer {
    requests: Requests,
    visible: Arc<Notify>,
    store: StoreId,
    targets: Arc<Targets>,
    incarnation: IncarnationId,
    name: Arc<str>,
    queue: i64,
    order: Order,
    readers: Arc<Readers>,
    features: Features,
    /// What this consumer holds, to give it back when it is dropped.
    held: Arc<Mutex<HashSet<Receipt>>>,
    _open: Arc<Store>,
}

impl EmbeddedConsumer {
    pub(crate) async fn open(
        store: &Store,
        queue: &QueueSpec,
        reader: &Reader,
    ) -> Result<Self, ConnectorError> {
        let readers = Arc::new(Readers::new(queue, reader));
        let settings: Settings = queue.settings()?;
        let retention = settings.retention;
        let opening = Arc::clone(&readers);
        let opened = store.requests().ask(move |work| {
            let Readers { pipeline, name, group, .. } = &*opening;
            let id = queue_id(work.db, pipeline, name, group)?;
            opening.begin(work, id)?;
            set_key_order(work, id, opening.ordered())?;
            Ok(id)
        });
        let id = opened.await?;
        if let Some(retention) = retention {
            remove_old(store, id, &queue.name, retention).await?;
        }
        Ok(Self {
            requests: store.requests().clone(),
            visible: Arc::clone(store.visible()),
            store: store.store_id(),
            targets: Arc::clone(store.targets()),
            incarnation: store.incarnation(),
            name: Arc::clone(&queue.name),
            queue: id,
            order: reader.order,
            readers,
            features: features(&settings),
            held: Arc::default(),
            _open: store.hold(),
        })
    }

    /// Claims in a task of its own, so that a claim whose caller is gone is given back and not
    /// forgotten.
    async fn claim(&self, want: Want) -> Result<Claimed, ConnectorError> {
        let (queue, order, incarnation) = (self.queue, self.order, self.incarnation);
        let (held, requests) = (Arc::clone(&self.held), self.requests.clone());
        let readers = Arc::clone(&self.readers);
        let answer = self.requests.send(move |work| {
            let mut claimed = claim(work, queue, order, want, incarnation)?;
            if claimed.messages.is_empty() && readers.look(work, queue)? {
                claimed = claim(work, queue, order, want, incarnation)?;
            }
            let claimed = Some(claimed);
            let (requests, committed) = (requests.clone(), Arc::clone(&work.committed));
            Ok(ClaimedGuard { claimed, queue, requests, committed })
        });
        let mut guard = answer.await.map_err(|_| ConnectorError::closed(&self.name))??;
        let claimed = guard.claimed.take().expect("it was put there by the request");
        let mut held = held.lock();
        held.extend(claimed.messages.iter().map(|incoming| incoming.receipt));
        Ok(claimed)
    }

    fn forget(&self, receipts: &[Receipt]) {
        let mut held = self.held.lock();
        for receipt in receipts {
            held.remove(receipt);
        }
    }

    fn give_back(&self) -> tokio::sync::oneshot::Receiver<Result<(), ConnectorError>> {
        let mut held = self.held.lock();
        let receipts: Vec<Receipt> = held.drain().collect();
        let queue = self.queue;
        self.requests.send_owed(move |work| Ok(release(work, queue, &receipts)?))
    }
}

/// Removes what nobody took for as long as `retention`, in steps between which others do theirs.
async fn remove_old(
    store: &Store,
    queue: i64,
    name: &str,
    retention: Period,
) -> Result<(), ConnectorError> {
    let before = now_ms().saturating_sub(millis(retention));
    let (mut next, mut gone) = (Some(0), 0);
    while let Some(from) = next {
        let step = move |work: &mut Work<'_>| Ok(expire_from(work, queue, before, from)?);
        let (following, removed) = store.requests().ask(step).await?;
        (next, gone) = (following, gone + removed);
    }
    tell_expired(name, gone, retention);
    Ok(())
}

/// A claim that has not reached its caller: given back if it never does.
struct ClaimedGuard {
    claimed: Option<Claimed>,
    queue: i64,
    requests: Requests,
    /// A claim that was rolled back need not be given back, and somebody else may have its rows by
    /// now.
    committed: Arc<AtomicBool>,
}

impl Drop for ClaimedGuard {
    fn drop(&mut self) {
        let Some(claimed) = self.claimed.take() else { return };
        if !self.committed.load(Ordering::Relaxed) {
            return;
        }
        let receipts: Vec<Receipt> = claimed.messages.iter().map(|m| m.receipt).collect();
        if !receipts.is_empty() {
            let queue = self.queue;
            drop(self.requests.send_owed(move |work| Ok(undo(work, queue, &receipts)?)));
        }
    }
}

/// Undoes a claim that nobody saw, as if it had not happened.
fn undo(work: &mut Work<'_>, queue: i64, receipts: &[Receipt]) -> rusqlite::Result<()> {
    put_back(work, queue, receipts, 0)
}

/// Gives back rows undecided: they can be handed out again at once.
fn release(work: &mut Work<'_>, queue: i64, receipts: &[Receipt]) -> rusqlite::Result<()> {
    put_back(work, queue, receipts, 1)
}

fn put_back(
    work: &mut Work<'_>,
    queue: i64,
    receipts: &[Receipt],
    redelivered: u32,
) -> rusqlite::Result<()> {
    let now = now_ms();
    for receipt in receipts {
        let sql = "UPDATE messages SET holder = 0, redeliveries = redeliveries + ?4,
                     visible_at = CASE WHEN order_key IS NULL THEN max(visible_at, ?5)
                                       ELSE enqueued_at END,
                     state = CASE WHEN order_key IS NULL THEN 0 ELSE 3 END
                   WHERE id = ?1 AND fence = ?2 AND state = 2 AND queue = ?3
                   RETURNING order_key";
        let values = params![receipt.position, receipt.fence, queue, redelivered, now];
        let mut update = work.db.prepare_cached(sql)?;
        let key = update.query_row(values, |row| row.get::<_, Option<Vec<u8>>>(0)).optional()?;
        if let Some(Some(key)) = key {
            promote(work.db, queue, &key, now)?;
        }
        work.leases.forget(*receipt);
    }
    work.woke |= !receipts.is_empty();
    Ok(())
}

/// Makes a queue keep the order of keys from now on, or stop doing so.
fn set_key_order(work: &mut Work<'_>, queue: i64, ordered: bool) -> rusqlite::Result<()> {
    let sql = "SELECT key_order FROM queues WHERE id = ?1";
    let before: bool = work.db.prepare_cached(sql)?.query_row([queue], |row| row.get(0))?;
    if before != ordered {
        arrange(work, queue, ordered)?;
    }
    Ok(())
}

/// Arranges the rows of a queue in the order of their keys, or drops that order.
pub(crate) fn arrange(work: &mut Work<'_>, queue: i64, ordered: bool) -> rusqlite::Result<()> {
    work.db.execute("UPDATE queues SET key_order = ?2 WHERE id = ?1", params![queue, ordered])?;
    if ordered {
        work.db.execute("UPDATE messages SET order_key = key WHERE queue = ?1", [queue])?;
        // The first row of each key keeps its state; all others wait behind it, parked or not.
        work.db.execute(
            "UPDATE messages SET state = 3 WHERE queue = ?1 AND order_key IS NOT NULL AND state != 2
               AND id NOT IN (SELECT min(id) FROM messages
                              WHERE queue = ?1 AND order_key IS NOT NULL GROUP BY order_key)",
            [queue],
        )?;
    } else {
        // Rows that were parked or waited behind another could not be taken before.
        work.db.execute(
            "UPDATE messages SET order_key = NULL,
               state = CASE WHEN state NOT IN (3, 4) THEN state
                 WHEN state = 3 AND visible_at > ?2 AND visible_at > enqueued_at THEN 1 ELSE 0 END,
               visible_at = CASE WHEN state IN (3, 4) THEN max(visible_at, ?2) ELSE visible_at END
             WHERE queue = ?1",
            params![queue, now_ms()],
        )?;
    }
    work.woke = true;
    Ok(())
}

/// Puts a failed row back, to be handed out after its delay.
fn fail(work: &mut Work<'_>, queue: i64, failed: &Failed) -> rusqlite::Result<bool> {
    let attempts = match &failed.reason {
        FailedReason::Attempt { attempts, .. } => attempts,
        FailedReason::Parked { attempts, error } => {
            return park(work, queue, failed.receipt, *attempts, error);
        }
        FailedReason::Released => {
            put_back(work, queue, &[failed.receipt], 1)?;
            return Ok(true);
        }
    };
    let delay = i64::try_from(failed.delay.as_millis()).unwrap_or(i64::MAX);
    let now = now_ms();
    let visible_at = now.saturating_add(delay);
    let sql = "UPDATE messages SET holder = 0, suspect = 0, deaths = 0, crashes = 0, attempts = ?4,
                 visible_at = CASE WHEN ?7 OR order_key IS NULL THEN ?5 ELSE enqueued_at END,
                 first_failed_at = coalesce(first_failed_at, ?6),
                 state = CASE WHEN order_key IS NOT NULL THEN 3 WHEN ?7 THEN 1 ELSE 0 END
               WHERE id = ?1 AND fence = ?2 AND state = 2 AND queue = ?3 RETURNING order_key";
    let Receipt { position, fence } = failed.receipt;
    let values = params![position, fence, queue, attempts, visible_at, now, delay > 0];
    let mut update = work.db.prepare_cached(sql)?;
    let row = update.query_row(values, |row| row.get::<_, Option<Vec<u8>>>(0)).optional()?;
    work.leases.forget(failed.receipt);
    if let Some(Some(key)) = &row {
        promote(work.db, queue, key, now)?;
    }
    work.woke = true;
    Ok(row.is_some())
}

/// Parks a row: it stays the first of its key, and is not handed out.
fn park(
    work: &mut Work<'_>,
    queue: i64,
    receipt: Receipt,
    attempts: u32,
    error: &str,
) -> rusqlite::Result<bool> {
    let sql = "UPDATE messages SET holder = 0, suspect = 0, deaths = 0, crashes = 0, state = 4,
                 attempts = ?4, error = ?5, first_failed_at = coalesce(first_failed_at, ?6)
               WHERE id = ?1 AND fence = ?2 AND state = 2 AND queue = ?3";
    let values = params![receipt.position, receipt.fence, queue, attempts, error, now_ms()];
    let parked = work.db.prepare_cached(sql)?.execute(values)?;
    work.leases.forget(receipt);
    Ok(parked > 0)
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    fn features(&self) -> Features {
        self.features.clone()
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            // Listening begins before the check, so that no notification in between is missed.
            let visible = self.visible.notified();
            tokio::pin!(visible);
            visible.as_mut().enable();
            let claimed = self.claim(want).await?;
            if !claimed.messages.is_empty() {
                return Ok(claimed.messages);
            }
            let wait = claimed.again_at.map_or(LOOK_MAX, |at| {
                let ms = u64::try_from(at - now_ms()).unwrap_or(0).max(1);
                Duration::from_millis(ms).min(LOOK_MAX)
            });
            let _ = tokio::time::timeout(wait, visible).await;
        }
    }

    async fn ack(
        &self,
        receipts: Vec<Receipt>,
        ops: Vec<StoreOp>,
    ) -> Result<Acked, ConnectorError> {
        let ops = self.targets.resolve(ops)?;
        let queue = self.queue;
        let rows: Vec<(u64, u64)> = receipts.iter().map(|r| (r.position, r.fence)).collect();
        let (own, writes) = (receipts.clone(), !ops.is_empty());
        let acked = self.requests.ask(move |work| {
            let (leased, fenced) = leased(work, queue, &rows)?;
            // All or nothing: with a lost lease, what became of the others is not written either.
            let undone = !fenced.is_empty() && !ops.is_empty();
            if !undone {
                delete_leased(work, queue, &leased)?;
                apply(work, &ops, MadeOf::acked(rows.len()))?;
            }
            work.woke |= work.leases.in_quarantine();
            for receipt in own.iter().filter(|r| !undone || fenced.contains(&r.position)) {
                work.leases.forget(*receipt);
            }
            Ok(fenced)
        });
        let fenced = acked.await?;
        let fenced: Vec<Receipt> =
            receipts.iter().filter(|r| fenced.contains(&r.position)).copied().collect();
        let undone = !fenced.is_empty() && writes;
        self.forget(if undone { &fenced } else { &receipts });
        Ok(fenced.into())
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        let receipts: Vec<Receipt> = failed.iter().map(|failed| failed.receipt).collect();
        let queue = self.queue;
        let put_back = self.requests.ask(move |work| {
            let mut fenced = Vec::new();
            for failed in &failed {
                if !fail(work, queue, failed)? {
                    fenced.push(failed.receipt);
                }
            }
            Ok(fenced)
        });
        let fenced = put_back.await?;
        self.forget(&receipts);
        Ok(fenced.into())
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let queue = self.queue;
        self.requests.look(move |work| Ok(lag(work, queue)?)).await
    }

    fn locate(&self, receipt: Receipt) -> String {
        format!("{}#{}", self.name, receipt.position)
    }

    fn store(&self) -> Option<StoreId> {
        Some(self.store.clone())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        // A closed store has given back everything.
        self.give_back().await.unwrap_or(Ok(()))
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        drop(self.give_back());
    }
}

#[cfg(test)]
mod tests {
    use brigade_core::connector::Producer;

    use super::*;
    use crate::{Options, Store};

    const WANT: Want = Want { messages: 1, bytes: usize::MAX };

    /// Takes a row from a consumer, as another process does that believes it dead.
    fn fence(directory: &tempfile::TempDir, row: u64, suspect: bool) {
        let db = rusqlite::Connection::open(directory.path().join("brigade.db")).unwrap();
        let sql = "UPDATE messages SET state = 0, holder = 0, fence = fence + 1, suspect = ?2
                   WHERE id = ?1";
        assert_eq!(db.execute(sql, params![row, suspect]).unwrap(), 1);
    }

    async fn opened(messages: u128) -> (tempfile::TempDir, Arc<dyn Producer>, EmbeddedConsumer) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), Options::default()).unwrap();
        let queue = QueueSpec::new("p", "q", serde_json::json!({}));
        let producer = store.queue_producer(&queue).await.unwrap();
        let batch: Vec<_> = (1..=messages)
            .map(|n| brigade_core::Message::new("x").with_id(brigade_core::MessageId(n)).into())
            .collect();
        producer.produce(&batch).await.unwrap();
        let reader = Reader { stage: "s".into(), group: "".into(), order: Order::None };
        let consumer = EmbeddedConsumer::open(&store, &queue, &reader).await.unwrap();
        (directory, producer, consumer)
    }

    fn held(consumer: &EmbeddedConsumer) -> usize {
        consumer.held.lock().len()
    }

    /// It would otherwise count as in flight for ever, and a suspect waits until nothing is.
    #[tokio::test]
    async fn a_lease_that_was_lost_does_not_keep_a_suspect_waiting() {
        let (directory, _producer, consumer) = opened(1).await;
        let taken = consumer.consume(WANT).await.unwrap();
        fence(&directory, taken[0].receipt.position, true);
        let op = StoreOp::Put { space: "s".into(), key: "k".into(), value: "v".into() };
        let acked = consumer.ack(vec![taken[0].receipt], vec![op]).await.unwrap();
        assert_eq!((acked.fenced.len(), held(&consumer)), (1, 0));
        let again = tokio::time::timeout(Duration::from_secs(180), consumer.consume(WANT));
        assert_eq!(again.await.expect("the suspect is handed out").unwrap().len(), 1);
    }

    #[tokio::test]
    async fn what_was_acked_beside_a_lost_lease_is_not_held_any_more() {
        let (directory, _producer, consumer) = opened(2).await;
        let want = Want { messages: 2, ..WANT };
        let receipts: Vec<Receipt> =
            consumer.consume(want).await.unwrap().iter().map(|taken| taken.receipt).collect();
        fence(&directory, receipts[0].position, false);
        let acked = consumer.ack(receipts.clone(), Vec::new()).await.unwrap();
        assert_eq!((acked.fenced, held(&consumer)), (vec![receipts[0]], 0));
    }
}
