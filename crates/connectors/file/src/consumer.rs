use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use brigade_core::connector::{
    Acked, ConnectorError, Consumer, Defect, Failed, Features, Incoming, Lag, Order, QueueSpec,
    Reader, Receipt, Want,
};
use brigade_core::state::{KeptPositions, StateLock, StateStore, StoreId, StoreOp};
use brigade_core::{CauseKind, Message, MessageId};
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::connector::features;
use crate::ledger::{Position, Positions, Progress};
use crate::lines::Record;
use crate::reader::{Numbered, Pending, Reader as ReaderThread, Said};
use crate::settings::Settings;

/// Chunks that are read ahead; each is at most 256 records or about 1 MiB.
const AHEAD: usize = 4;

/// Takes records from files.
pub(crate) struct FileConsumer {
    name: Arc<str>,
    settings: Settings,
    state: Arc<dyn StateStore>,
    /// The space of the files' positions in the state.
    space: Arc<str>,
    said: tokio::sync::Mutex<mpsc::Receiver<Vec<Said>>>,
    shared: Mutex<Shared>,
    /// Something was resolved or put back.
    changed: Notify,
    /// One ack writes at a time: each writes the position as a whole.
    acking: tokio::sync::Mutex<()>,
    stop: Arc<AtomicBool>,
    order: Order,
    /// When what is put back without a delay may be handed out again: in its place, whenever that was.
    opened: Instant,
    /// Keeps others from reading the same queue for the same group.
    lock: Mutex<Option<StateLock>>,
}

#[derive(Default)]
struct Shared {
    files: Vec<Progress>,
    /// Of each file by its key, which of them is its newest life.
    newest: HashMap<String, usize>,
    /// The file whose records the thread is reading.
    current: usize,
    /// Files of which the state does not know yet that they are read.
    begun: Vec<usize>,
    /// Records read and not yet handed out.
    ahead: VecDeque<Out>,
    /// By the positions of their receipts: the how manieth record of all files each is.
    out: HashMap<u64, Out>,
    /// The position of the next record that is read.
    next: u64,
    /// What was put back: when it may be handed out again.
    returned: BTreeMap<(Instant, u64), ()>,
    at_end: bool,
    failed: Option<ConnectorError>,
    closed: bool,
}

/// A message that is read and not resolved.
#[derive(Clone)]
struct Out {
    /// Its file, by its place among those of this consumer, and its number there.
    place: (usize, u64),
    /// With the receipt of the last handing-over.
    incoming: Incoming,
    /// Whether it is put back: no receipt stands then.
    returned: bool,
}

impl Shared {
    /// The file whose records come next: one that goes on where it was, or another.
    fn go_on_with(&mut self, key: Option<String>, position: Position) {
        let newest = key.as_ref().and_then(|key| self.newest.get(key)).copied();
        let same = newest.filter(|at| self.files[*at].goes_on_at(&position));
        self.current = same.unwrap_or(self.files.len());
        if let Some(same) = same {
            self.files[same].position.fingerprint = position.fingerprint;
            return;
        }
        if let Some(key) = &key {
            self.begun.extend(position.is_beginning().then_some(self.current));
            self.newest.insert(key.clone(), self.current);
        }
        self.files.push(Progress::new(key, position));
    }

    /// Whether a handing-over still stands.
    fn stands(&self, receipt: Receipt) -> bool {
        let out = self.out.get(&receipt.position);
        out.is_some_and(|out| !out.returned && out.incoming.receipt == receipt)
    }

    /// Hands a message out that was put back and whose time has come.
    fn hand_out_again(&mut self, now: Instant) -> Option<Incoming> {
        let entry = self.returned.first_entry().filter(|entry| entry.key().0 <= now)?;
        let ((_, position), ()) = entry.remove_entry();
        let out = self.out.get_mut(&position)?;
        out.returned = false;
        out.incoming.receipt.fence += 1;
        Some(out.incoming.clone())
    }

    /// Hands the next message out for the first time.
    fn hand_out(&mut self) -> Option<Incoming> {
        let out = self.ahead.pop_front()?;
        let incoming = out.incoming.clone();
        self.out.insert(incoming.receipt.position, out);
        Some(incoming)
    }

    /// The files and records of what is out.
    fn places(&self, receipts: &[Receipt]) -> Vec<(usize, u64)> {
        let out = receipts.iter().filter_map(|receipt| self.out.get(&receipt.position));
        out.map(|out| out.place).collect()
    }
}

impl FileConsumer {
    pub(crate) async fn open(
        queue: &QueueSpec,
        reader: &Reader,
        state: &Arc<dyn StateStore>,
    ) -> Result<Self, ConnectorError> {
        let settings: Settings = queue.settings()?;
        let (space, lock, kept) = match settings.is_standard() {
            true => ("".into(), None, Vec::new()),
            false => {
                let KeptPositions { space, lock, kept } =
                    KeptPositions::open(&**state, "file", queue, reader).await?;
                (space, Some(lock), kept)
            }
        };
        let read = |(key, bytes): (String, Bytes)| match Position::decode(&bytes) {
            Some(position) => Ok((key, position)),
            None => Err(unreadable(queue, &key)),
        };
        let positions: Vec<_> = kept.into_iter().map(read).collect::<Result<_, _>>()?;
        let (say, said) = mpsc::channel(AHEAD);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = ReaderThread {
            queue: Arc::clone(&queue.name),
            settings: settings.clone(),
            positions: Positions::new(positions),
            pending: Pending::default(),
            say,
            stop: Arc::clone(&stop),
        };
        let name = format!("brigade-read-{}", queue.name);
        std::thread::Builder::new().name(name).spawn(move || thread.run()).map_err(|error| {
            ConnectorError::transient(format!(
                "queue `{}`: no thread to be had: {error}",
                queue.name
            ))
        })?;
        Ok(Self {
            name: Arc::clone(&queue.name),
            settings,
            state: Arc::clone(state),
            space,
            said: tokio::sync::Mutex::new(said),
            shared: Mutex::default(),
            changed: Notify::new(),
            acking: tokio::sync::Mutex::default(),
            stop,
            order: reader.order,
            opened: Instant::now(),
            lock: Mutex::new(lock),
        })
    }

    /// Enters what the thread said.
    fn hear(&self, said: Said) {
        let shared = &mut *self.shared.lock();
        match said {
            Said::File { key, position } => shared.go_on_with(key, *position),
            Said::Records(records) => {
                let file = shared.current;
                let progress = &mut shared.files[file];
                let identity = progress.key.clone().unwrap_or_default();
                let incarnation = progress.position.incarnation(&identity);
                let mut fresh = Vec::with_capacity(records.len());
                for Numbered { number, record, resolved } in records {
                    if resolved {
                        progress.pass_over(number, &record);
                        continue;
                    }
                    progress.hand_out(number, &record);
                    let incarnation = match record.unfinished {
                        true => progress.position.incarnation_of_part(&identity, &record),
                        false => incarnation,
                    };
                    let id = MessageId::root(incarnation, number);
                    let receipt = Receipt { position: shared.next, fence: 0 };
                    shared.next += 1;
                    let incoming = self.incoming(record, id, receipt);
                    fresh.push(Out { place: (file, number), incoming, returned: false });
                }
                shared.ahead.extend(fresh);
            }
            Said::End => shared.at_end = true,
            Said::Failed(error) => {
                tracing::warn!(queue = %self.name, %error, "reading has ended; what was read before is resolved first");
                shared.failed = Some(error);
            }
        }
    }

    fn incoming(&self, record: Record, id: MessageId, receipt: Receipt) -> Incoming {
        let mut incoming = Incoming::new(Message::new(record.bytes).with_id(id), receipt);
        incoming.defect = record.truncated.map(|truncated| {
            let message = format!(
                "{} bytes, longer than `max_message_bytes` ({}) of queue `{}`",
                truncated.bytes, self.settings.max_message_bytes, self.name
            );
            Box::new(Defect { kind: CauseKind::TooLarge, message, truncated: Some(truncated) })
        });
        if let (None, Some(message)) = (&incoming.defect, record.broken) {
            let message = format!("not a row of CSV: {message}");
            let defect = Defect { kind: CauseKind::Decode, message, truncated: None };
            incoming.defect = Some(Box::new(defect));
        }
        incoming
    }

    /// What can be handed out now, or until when to wait for what was put back.
    fn take(&self, want: Want) -> Result<Taken, ConnectorError> {
        let mut shared = self.shared.lock();
        if shared.closed {
            return Err(ConnectorError::closed(&self.name));
        }
        let now = Instant::now();
        // In queue order whatever is first keeps the rest.
        let in_order = self.order == Order::Queue;
        let taken = want.fill(|| match shared.hand_out_again(now) {
            Some(again) => Some(again),
            None if in_order && !shared.out.is_empty() => None,
            None => shared.hand_out(),
        });
        if !taken.is_empty() {
            return Ok(Taken::Messages(taken));
        }
        // What was read before the fault, or the end, is resolved first: a stage that fails gives all of it back.
        if shared.out.is_empty() {
            match &shared.failed {
                Some(error) => return Err(error.clone()),
                None if shared.at_end => return Ok(Taken::End),
                None => {}
            }
        }
        let until = shared.returned.first_key_value().map(|((at, _), ())| *at);
        let all_said = shared.at_end || shared.failed.is_some();
        Ok(Taken::Nothing { until, all_said })
    }

    /// The positions as they will be when these are resolved, as operations on the state, and the
    /// files concerned.
    fn resolved(&self, places: &[(usize, u64)]) -> (Vec<(usize, Progress)>, Vec<StoreOp>) {
        let shared = self.shared.lock();
        let mut changed: BTreeMap<usize, Progress> = BTreeMap::new();
        for (file, record) in places.iter().copied() {
            let Some(progress) = shared.files.get(file) else { continue };
            let progress = changed.entry(file).or_insert_with(|| progress.clone());
            if progress.is_open(record) {
                progress.resolve(record);
            }
        }
        let mut ops = Vec::new();
        for (file, progress) in &changed {
            // A file that was cut is kept by its newest life alone.
            if progress.key.as_ref().and_then(|key| shared.newest.get(key)) == Some(file) {
                self.keep(progress, &mut ops);
            }
        }
        (changed.into_iter().collect(), ops)
    }

    /// How the state keeps the position of a file.
    fn keep(&self, progress: &Progress, ops: &mut Vec<StoreOp>) {
        let Some(key) = progress.key.clone() else { return };
        let (space, value) = (Arc::clone(&self.space), progress.position.encode().into());
        ops.push(StoreOp::Put { space, key, value });
        if let Some(key) = progress.position.replaces.clone() {
            ops.push(StoreOp::Delete { space: Arc::clone(&self.space), key });
        }
    }

    /// Notes that files have begun, before anything of them is handed out: after a crash, also if nothing of them
    /// was acked, their messages have the same ids, and those that are followed are found by another name.
    async fn keep_begun(&self) -> Result<(), ConnectorError> {
        if self.shared.lock().begun.is_empty() {
            return Ok(());
        }
        // An ack of a former life of the same file would go over it.
        let _one_at_a_time = self.acking.lock().await;
        if self.shared.lock().closed {
            return Err(ConnectorError::closed(&self.name));
        }
        let mut ops = Vec::new();
        let noted = {
            let shared = self.shared.lock();
            shared.begun.iter().for_each(|file| self.keep(&shared.files[*file], &mut ops));
            shared.begun.len()
        };
        self.state.commit(ops).await?;
        self.shared.lock().begun.drain(..noted);
        Ok(())
    }
}

enum Taken {
    Messages(Vec<Incoming>),
    Nothing {
        until: Option<Instant>,
        /// Whether the thread has said its last.
        all_said: bool,
    },
    End,
}

/// The reader's thread says how it ends, unless it panics: nobody knows what is left to be read then.
fn ended_unsaid(queue: &str) -> Said {
    Said::Failed(ConnectorError::stalled(format!(
        "queue `{queue}`: the thread that reads its files has ended before their end, by a defect: what it said is \
         in the log, and what is left is read by another"
    )))
}

/// A position that was kept and cannot be read: to begin again would hand everything out twice.
fn unreadable(queue: &QueueSpec, key: &str) -> ConnectorError {
    ConnectorError::permanent(format!(
        "queue `{}`: the state keeps a position of file {key} that this program cannot read: use \
         the program that wrote it, or another `state`",
        queue.name
    ))
}

#[async_trait]
impl Consumer for FileConsumer {
    fn features(&self) -> Features {
        features(&self.settings)
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            let changed = self.changed.notified();
            self.keep_begun().await?;
            let (until, all_said) = match self.take(want)? {
                Taken::Messages(messages) => return Ok(messages),
                Taken::End => return Ok(Vec::new()),
                Taken::Nothing { until, all_said } => (until, all_said),
            };
            let due = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let hear = async {
                match all_said {
                    true => std::future::pending().await,
                    false => self.said.lock().await.recv().await,
                }
            };
            tokio::select! {
                said = hear => {
                    let said = said.unwrap_or_else(|| vec![ended_unsaid(&self.name)]);
                    said.into_iter().for_each(|said| self.hear(said));
                }
                () = due => {}
                () = changed => {}
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
        let ((receipts, fenced), places): ((Vec<_>, Vec<_>), _) = {
            let shared = self.shared.lock();
            let parts: (Vec<_>, _) = receipts.into_iter().partition(|one| shared.stands(*one));
            let places = shared.places(&parts.0);
            (parts, places)
        };
        if !fenced.is_empty() && !ops.is_empty() {
            return Ok(fenced.into());
        }
        let (changed, positions) = self.resolved(&places);
        ops.extend(positions);
        if !ops.is_empty() {
            match receipts.len() {
                1 => self.state.commit_of_one(ops).await?,
                _ => self.state.commit(ops).await?,
            }
        }
        let mut shared = self.shared.lock();
        for (file, resolved) in changed {
            // Records may have been read meanwhile; only what was resolved is taken over.
            let progress = &mut shared.files[file];
            for (_, record) in places.iter().filter(|(of, _)| *of == file) {
                progress.resolve(*record);
            }
            progress.position.replaces = None;
            debug_assert!(progress.position.records.low() >= resolved.position.records.low());
        }
        for receipt in &receipts {
            shared.out.remove(&receipt.position);
        }
        drop(shared);
        self.changed.notify_one();
        Ok(fenced.into())
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        let mut shared = self.shared.lock();
        let (now, mut fenced) = (Instant::now(), Vec::new());
        for Failed { receipt, reason, delay } in failed {
            if !shared.stands(receipt) {
                fenced.push(receipt);
                continue;
            }
            let out = shared.out.get_mut(&receipt.position).expect("what stands is out");
            out.returned = true;
            match reason.attempts() {
                Some(attempts) => out.incoming.attempts = attempts,
                None => out.incoming.redeliveries += 1,
            }
            let at = match delay.is_zero() {
                true => self.opened,
                false => {
                    now.checked_add(delay).unwrap_or(now + Duration::from_secs(u32::MAX.into()))
                }
            };
            shared.returned.insert((at, receipt.position), ());
        }
        drop(shared);
        self.changed.notify_one();
        Ok(fenced.into())
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        let shared = self.shared.lock();
        let returned = shared.returned.len();
        let out = shared.out.len() - returned;
        let end = shared.at_end && shared.ahead.is_empty();
        Ok(Lag {
            ready: shared.at_end.then_some(shared.ahead.len() as u64),
            delayed: Some(returned as u64),
            in_flight: Some(out as u64),
            at_end: end,
            ..Lag::default()
        })
    }

    fn locate(&self, receipt: Receipt) -> String {
        let shared = self.shared.lock();
        let place = shared.out.get(&receipt.position).map(|out| out.place);
        let file = place.and_then(|(file, record)| Some((shared.files.get(file)?, record)));
        file.map_or_else(
            || format!("queue {}", self.name),
            |(progress, record)| format!("{}:record {}", progress.position.path, record + 1),
        )
    }

    fn store(&self) -> Option<StoreId> {
        Some(self.state.store_id())
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.stop.store(true, Ordering::Relaxed);
        self.shared.lock().closed = true;
        // The thread may wait for room in the channel.
        if let Ok(mut said) = self.said.try_lock() {
            said.close();
        }
        self.changed.notify_one();
        // Another process may take over, but not before an ack that is under way is written: the
        // state does what it is asked in order.
        let asked = self.state.load(&self.space, "").await;
        asked.map(drop)?;
        drop(self.lock.lock().take());
        Ok(())
    }
}

impl Drop for FileConsumer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
