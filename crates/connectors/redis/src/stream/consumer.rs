//! Reading a stream as a member of a group.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use brigade_core::IncarnationId;
use brigade_core::connector::{
    Acked, ConnectorError, Consumer, Failed, Features, Incoming, Lag, Receipt, Want,
};
use brigade_core::state::{StoreId, StoreOp};
use redis::{FromRedisValue, ScriptInvocation, Value, cmd};
use tokio::sync::{Mutex, Notify};

use super::connector::Keys;
use super::entry::{EntryId, incoming};
use super::groups::{self, make_groups, mend_groups};
use super::held::Held;
use super::lag::lag;
use super::members::{HEARTBEAT, HEARTBEAT_AGAIN, LOOK, OURS};
use super::process::Process;
use super::retention::Retention;
use super::scripts::{ACK, CLAIM_DUE, CLAIM_OWN, FIND_TIMELESS, HELD};
use crate::failure::is_no_group;
use crate::output::{self, Settled};
use crate::pace::Paced;
use crate::redeliveries::too_often;
use crate::server::Place;
use crate::thread::Task;
use crate::wire::Wire;

/// How long a read waits for new entries.
const BLOCK: Duration = Duration::from_millis(500);
/// The most entries that are read at once.
pub(super) const READ_MAX: usize = 1000;
/// How many entries the server names at once that it believes this member to hold.
const HELD_MAX: usize = 10_000;
/// How often to check for due entries while new ones keep coming: a check before each read would
/// wait behind the acks.
const LOOK_DUE: Duration = Duration::from_millis(20);

/// A consumer's settings, apart from keys and address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) max_redeliveries: u32,
    pub(crate) claim_idle: Duration,
    pub(crate) retention: Option<Retention>,
}

/// What a script has claimed: entries, and how many are not there any more.
pub(super) type Claimed = (Vec<Value>, u64);

/// Takes messages from a stream, as one member of its group.
pub(crate) struct StreamConsumer {
    site: Arc<Site>,
    fetch: Mutex<Fetch>,
    woken: Notify,
    /// Keeps showing that the member is alive, until this is taken away.
    heartbeat: parking_lot::Mutex<Option<Task<()>>>,
}

/// What reading needs, even while no `consume` waits for it.
pub(super) struct Site {
    pub(super) keys: Keys,
    /// All groups as which the file's stages read the stream.
    groups: Vec<String>,
    features: Features,
    pub(super) bounds: Bounds,
    pub(super) member: String,
    /// This process, if others on this machine can see when it is gone.
    pub(super) process: Option<Process>,
    /// Which stream of this name was last read.
    incarnation: parking_lot::Mutex<IncarnationId>,
    /// The connection that waits for new entries; commands use the other one.
    reading: Arc<Wire>,
    pub(super) wire: Arc<Wire>,
    /// What was received and is unresolved.
    held: parking_lot::Mutex<Held>,
    pace: Paced,
    /// An answer may have been lost: the server may have handed out entries that never arrived
    /// here.
    pub(super) lost: AtomicBool,
    /// What is read from now on is neither handed out nor resolved.
    pub(super) closed: AtomicBool,
    /// Held during a read: closing waits for its end, even if the consumer's lane stalls.
    pub(super) reads: Mutex<()>,
    /// When due entries were last checked for, if new entries have come since.
    pub(super) looked: parking_lot::Mutex<Option<Instant>>,
    /// When it was last found that others had left nothing behind.
    looked_after: parking_lot::Mutex<Option<Instant>>,
    /// When entries that wait without a time were last looked for.
    pub(super) looked_timeless: parking_lot::Mutex<Instant>,
    /// For members without a key that have done nothing meanwhile: since when.
    pub(super) missing: parking_lot::Mutex<HashMap<Vec<u8>, Instant>>,
}

/// Reads that outlive the call that started them, so that a dropped `consume` loses nothing.
#[derive(Default)]
struct Fetch {
    reading: Option<Task<Result<Vec<Incoming>, ConnectorError>>>,
    ready: VecDeque<Incoming>,
}

impl StreamConsumer {
    pub(crate) async fn open(
        keys: Keys,
        mut groups: Vec<String>,
        place: &Place,
        features: Features,
        bounds: Bounds,
    ) -> Result<Self, ConnectorError> {
        let (reading, wire) = (Wire::new(&keys.queue, place)?, Wire::new(&keys.queue, place)?);
        if !groups.contains(&keys.group) {
            groups.push(keys.group.clone());
        }
        let incarnation = parking_lot::Mutex::new(make_groups(&wire, &keys, &groups).await?);
        let member = format!("{OURS}{:016x}", fastrand::u64(..));
        let site = Arc::new(Site {
            keys,
            groups,
            features,
            bounds,
            member,
            process: Process::current(),
            incarnation,
            reading,
            wire,
            held: parking_lot::Mutex::default(),
            pace: Paced::new(READ_MAX),
            lost: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            reads: Mutex::default(),
            looked: parking_lot::Mutex::default(),
            looked_after: parking_lot::Mutex::default(),
            looked_timeless: parking_lot::Mutex::new(Instant::now()),
            missing: parking_lot::Mutex::default(),
        });
        site.find_timeless().await?;
        if let Err(error) = site.say_alive().await {
            // Otherwise each try would leave a member behind.
            let _ = site.wire.script::<Value>(site.give_back()).await;
            return Err(error);
        }
        let beating = Arc::clone(&site);
        let heartbeat = site.wire.spawn(async move {
            let mut pause = HEARTBEAT;
            loop {
                tokio::time::sleep(pause).await;
                pause = HEARTBEAT;
                if let Err(error) = beating.beat().await {
                    tracing::warn!(queue = %beating.keys.queue, %error, "no heartbeat");
                    pause = HEARTBEAT_AGAIN;
                }
            }
        });
        Ok(Self {
            site,
            fetch: Mutex::default(),
            woken: Notify::new(),
            heartbeat: parking_lot::Mutex::new(Some(heartbeat)),
        })
    }

    fn end_heartbeat(&self) {
        *self.heartbeat.lock() = None;
    }

    fn refuse_if_closed(&self) -> Result<(), ConnectorError> {
        match self.site.closed.load(Ordering::Relaxed) {
            true => Err(ConnectorError::closed(&self.site.keys.queue)),
            false => Ok(()),
        }
    }
}

impl Site {
    pub(super) async fn incoming(
        &self,
        entries: Vec<Value>,
    ) -> Result<Vec<Incoming>, ConnectorError> {
        let of = *self.incarnation.lock();
        let read = entries.into_iter().filter_map(|one| incoming(&self.keys, one, of).transpose());
        let read: Vec<(EntryId, Incoming)> = read.collect::<Result<_, _>>()?;
        if read.iter().any(|(id, incoming)| id.names(&incoming.message, of))
            && !self.is_still(of).await?
        {
            return Ok(Vec::new());
        }
        let mut held = self.held();
        let entered = read.into_iter().map(|(id, mut incoming)| {
            incoming.receipt.position = held.enter(id, incoming.receipt.fence);
            let too_often = || too_often(incoming.redeliveries, self.bounds.max_redeliveries);
            incoming.defect = incoming.defect.take().or_else(too_often);
            incoming
        });
        Ok(entered.collect())
    }

    /// Whether what was read belongs to the stream that it was attributed to: the script that makes
    /// the groups of a recreated stream marks it as another stream in the same step. If it does
    /// not, nothing that is held belongs to the new stream, and what was read is looked for as if
    /// it had never arrived: what is found then does.
    async fn is_still(&self, of: IncarnationId) -> Result<bool, ConnectorError> {
        let noted = groups::incarnation(&self.wire, &self.keys).await?;
        let now = match noted {
            Some(now) => now,
            None => make_groups(&self.wire, &self.keys, &self.groups).await?,
        };
        if now != of {
            if noted.is_none() {
                tracing::warn!(
                    queue = %self.keys.queue, key = %self.keys.incarnation,
                    "somebody has deleted this key, or the server has evicted it: what is in flight is handed out \
                     again, and what comes without an id gets other ids"
                );
            }
            *self.incarnation.lock() = now;
            *self.held() = Held::default();
            self.lost.store(true, Ordering::Relaxed);
        }
        Ok(now == of)
    }

    pub(super) fn held(&self) -> parking_lot::MutexGuard<'_, Held> {
        self.held.lock()
    }

    /// Makes entries that wait without a time come now.
    pub(super) async fn find_timeless(&self) -> Result<(), ConnectorError> {
        let keys = &self.keys;
        let mut find = FIND_TIMELESS.key(&keys.stream);
        find.key(&keys.delayed).arg(&keys.group);
        let found: u64 = match self.wire.try_script(find).await {
            // They go on waiting; other messages come and make room.
            Err(failure) if failure.is_full() => 0,
            found => found.map_err(|failure| self.wire.told(&failure))?,
        };
        if found > 0 {
            let queue = &keys.queue;
            tracing::warn!(%queue, count = found, "messages waited without a time: they come now");
        }
        Ok(())
    }

    /// What the server believes it handed to this member, but is not known here, with its fences;
    /// if nothing, nothing is looked for any more.
    pub(super) async fn unknown(&self, max: usize) -> Result<Vec<(EntryId, u64)>, ConnectorError> {
        let keys = &self.keys;
        let (mut unknown, mut from) = (Vec::new(), Some("-".to_owned()));
        while let Some(first) = from.take().filter(|_| unknown.len() < max) {
            let mut held = HELD.key(&keys.stream);
            held.arg(&keys.group).arg(&self.member).arg(first).arg(HELD_MAX);
            let all: Vec<(String, u64)> = self.wire.script(held).await?;
            from = all.last().filter(|_| all.len() == HELD_MAX).map(|(last, _)| format!("({last}"));
            let known = self.held();
            let all = all.iter().filter_map(|(id, fence)| Some((id.parse().ok()?, *fence)));
            let room = max - unknown.len();
            unknown.extend(all.filter(|(id, _)| !known.knows(*id)).take(room));
        }
        if unknown.is_empty() {
            self.lost.store(false, Ordering::Relaxed);
        }
        Ok(unknown)
    }

    /// Claims what the server believes it handed to this member, but never arrived.
    pub(super) async fn find_lost(&self, max: usize) -> Result<Vec<Incoming>, ConnectorError> {
        let (keys, unknown) = (&self.keys, self.unknown(max).await?);
        if unknown.is_empty() {
            return Ok(Vec::new());
        }
        let mut claim = CLAIM_OWN.key(&keys.stream);
        claim.key(&keys.attempts).arg(&keys.group).arg(&self.member);
        for (id, _) in &unknown {
            claim.arg(id.to_string());
        }
        let claimed = self.bring(claim).await?;
        self.incoming(self.there_of(claimed)).await
    }

    /// The entries among what was claimed.
    pub(super) fn there_of(&self, (entries, gone): Claimed) -> Vec<Value> {
        self.tell_gone(gone);
        entries
    }

    /// Tells how many were found to be deleted.
    pub(super) fn tell_gone(&self, gone: u64) {
        if gone > 0 {
            let (queue, key) = (&self.keys.queue, &self.keys.stream);
            tracing::warn!(
                %queue, %key, count = gone,
                "somebody has deleted messages from the stream, or trimmed it, while they waited for their time \
                 or for another member: they are lost"
            );
        }
    }

    /// Runs a script that returns entries, which may be long.
    pub(super) async fn bring<T: FromRedisValue + Send + 'static>(
        &self,
        script: ScriptInvocation<'static>,
    ) -> Result<T, ConnectorError> {
        let answer = self.pace.ask(|answer_max| self.wire.try_script_for(script, answer_max)).await;
        answer.map_err(|failure| self.wire.told(&failure))
    }

    /// What others left behind; else what was put back and is due; else what is new.
    async fn read(self: Arc<Self>, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        let _ends = self.reads.lock().await;
        if self.closed.load(Ordering::Relaxed) {
            return Ok(Vec::new());
        }
        let max = self.pace.count(want);
        let read = self.try_read(max).await;
        self.pace.read(max, read.as_deref());
        if read.is_err() {
            self.lost.store(true, Ordering::Relaxed);
        }
        if self.closed.load(Ordering::Relaxed) {
            // Closing waits for this only a while.
            self.wire.script::<i64>(self.give_back()).await?;
            return Ok(Vec::new());
        }
        self.mend(&read).await?;
        read
    }

    /// Makes the groups again if an answer says that this one is gone, for example because someone
    /// deleted the stream: all groups read what is put from now on. Returns whether it did.
    pub(super) async fn mend<T: Sync>(
        &self,
        answer: &Result<T, ConnectorError>,
    ) -> Result<bool, ConnectorError> {
        let Some(error) = answer.as_ref().err() else { return Ok(false) };
        if !is_no_group(error) {
            return Ok(false);
        }
        let made = mend_groups(&self.wire, &self.keys, &self.groups).await;
        made.map_err(|failure| self.wire.told(&failure))?;
        Ok(true)
    }

    /// Shows that this member is alive, and makes the groups again if they are gone. Who backs off,
    /// is paused or has no credit reads nothing, and would not hear of it; until the groups are there,
    /// whoever else reads the stream knows of none that has not had what it removes.
    async fn beat(&self) -> Result<(), ConnectorError> {
        let alive = self.say_alive().await;
        match self.mend(&alive).await? {
            true => self.say_alive().await,
            false => alive,
        }
    }

    /// The script that acks these, without outputs.
    fn ack(&self, entries: &[(Receipt, EntryId)]) -> ScriptInvocation<'static> {
        let keys = &self.keys;
        let mut ack = ACK.key(&keys.stream);
        ack.key(&keys.attempts).arg(&keys.group).arg(&self.member).arg(entries.len());
        let ids = || entries.iter().map(|(_, id)| id);
        for end in [ids().min(), ids().max()] {
            ack.arg(end.map_or_else(|| "0-0".to_owned(), EntryId::to_string));
        }
        for argument in Retention::arguments(self.bounds.retention) {
            ack.arg(argument);
        }
        ack.arg(self.groups.len()).arg(&self.groups);
        for (receipt, id) in entries {
            ack.arg(id.to_string()).arg(receipt.fence);
        }
        ack
    }

    async fn try_read(&self, max: usize) -> Result<Vec<Incoming>, ConnectorError> {
        let keys = &self.keys;
        if self.lost.load(Ordering::Relaxed) {
            let found = self.find_lost(max).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        // Before new entries, and again until nothing is left: these are older.
        if self.looked_after.lock().is_none_or(|at| at.elapsed() >= LOOK) {
            let taken = self.take_over(max).await?;
            if !taken.is_empty() {
                return Ok(taken);
            }
            // Entries become too old even while nothing is acked; and a group that is gone now, or
            // a retention, may have left some behind.
            Retention::trim(self.bounds.retention, &self.wire, keys, &self.groups).await?;
            *self.looked_after.lock() = Some(Instant::now());
        }
        let looked = *self.looked.lock();
        let left = looked.map(|looked| LOOK_DUE.saturating_sub(looked.elapsed()));
        let wait = match left {
            Some(left) if !left.is_zero() => left,
            _ => {
                let (entries, wait) = self.claim_due(max).await?;
                if !entries.is_empty() {
                    return Ok(entries);
                }
                wait
            }
        };
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(&keys.group).arg(&self.member).arg("COUNT").arg(max);
        read.arg("BLOCK").arg(wait.as_millis().max(1).to_string());
        read.arg("STREAMS").arg(&keys.stream).arg(">");
        let reading = |answer_max| self.reading.try_command_for(&read, answer_max);
        let answer = self.pace.ask(reading).await;
        let answer: Value = answer.map_err(|failure| self.reading.told(&failure))?;
        let read = self.incoming(entries_of(answer)).await?;
        if read.is_empty() {
            *self.looked.lock() = None;
        }
        Ok(read)
    }

    /// What was put back and is due, and how long a read may wait.
    async fn claim_due(&self, max: usize) -> Result<(Vec<Incoming>, Duration), ConnectorError> {
        let keys = &self.keys;
        let mut due = CLAIM_DUE.key(&keys.stream);
        due.key(&keys.delayed).key(&keys.attempts).key(&keys.later);
        due.arg(&keys.group).arg(&self.member).arg(max);
        *self.looked.lock() = Some(Instant::now());
        let (claimed, next_ms): (Claimed, i64) = self.bring(due).await?;
        let entries = self.there_of(claimed);
        if !entries.is_empty() {
            // There may be more.
            *self.looked.lock() = None;
        }
        let wait = match u64::try_from(next_ms) {
            Ok(ms) => BLOCK.min(Duration::from_millis(ms.max(1))),
            Err(_) => BLOCK,
        };
        Ok((self.incoming(entries).await?, wait))
    }
}

/// The entries of the one stream in an answer to `XREADGROUP`.
fn entries_of(answer: Value) -> Vec<Value> {
    let Value::Array(mut streams) = answer else { return Vec::new() };
    match streams.pop() {
        Some(Value::Array(mut stream)) => match stream.pop() {
            Some(Value::Array(entries)) => entries,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

#[async_trait]
impl Consumer for StreamConsumer {
    fn features(&self) -> Features {
        self.site.features.clone()
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            let woken = self.woken.notified();
            let fetch = &mut *self.fetch.lock().await;
            self.refuse_if_closed()?;
            let taken = want.fill(|| fetch.ready.pop_front());
            if !taken.is_empty() {
                return Ok(taken);
            }
            let read = || self.site.wire.spawn(Arc::clone(&self.site).read(want));
            let reading = fetch.reading.get_or_insert_with(read);
            tokio::select! {
                read = reading => {
                    fetch.reading = None;
                    fetch.ready.extend(read?);
                }
                () = woken => {}
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
        let (entries, gone) = self.site.held().ids(&receipts);
        if !gone.is_empty() && !ops.is_empty() {
            return Ok(gone.into());
        }
        let site = &*self.site;
        let mut settled = output::settle(&site.wire, site.ack(&entries), &ops).await;
        // A caller that reads no more until these are resolved would otherwise never find out.
        if site.mend(&settled).await? {
            settled = output::settle(&site.wire, site.ack(&entries), &ops).await;
        }
        let fenced = match settled? {
            Settled::Done(fenced) => fenced,
            Settled::Refused(refused) => return Ok(Acked { fenced: Vec::new(), refused }),
        };
        let fenced = those(&entries, &fenced);
        // If there were outputs, a lost lease means that nothing was done.
        let undone = !fenced.is_empty() && !ops.is_empty();
        self.site.held().forget(if undone { &fenced } else { &receipts });
        Ok([fenced, gone].concat().into())
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        if failed.is_empty() {
            return Ok(Acked::default());
        }
        let (fail, entries, gone) = self.site.failing(&failed);
        let fenced = self.site.fail(fail).await?;
        self.site.held().forget(failed.iter().map(|failed| &failed.receipt));
        Ok([those(&entries, &fenced), gone].concat().into())
    }

    async fn put_back(&self) -> Result<(), ConnectorError> {
        let fetch = &mut *self.fetch.lock().await;
        if let Some(reading) = &mut fetch.reading {
            let read = reading.await;
            fetch.reading = None;
            fetch.ready.extend(read?);
        }
        if fetch.ready.is_empty() && !self.site.lost.load(Ordering::Relaxed) {
            return Ok(());
        }
        // Instead of a read: if nobody waits for its end, the next read does.
        let ready = fetch.ready.drain(..).map(|incoming| incoming.receipt).collect();
        let back = Arc::clone(&self.site).put_back(ready);
        let put_back = fetch.reading.insert(self.site.wire.spawn(back)).await;
        fetch.reading = None;
        put_back.map(drop)
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        lag(&self.site.wire, &self.site.keys, self.site.bounds.retention).await
    }

    fn store(&self) -> Option<StoreId> {
        self.site.wire.store()
    }

    fn locate(&self, receipt: Receipt) -> String {
        let stream = &self.site.keys.stream;
        match self.site.held().id(receipt.position) {
            Some(id) => format!("{stream}#{id}"),
            None => stream.clone(),
        }
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        if self.site.closed.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.end_heartbeat();
        self.woken.notify_waiters();
        // What the read under way still brings has not been handed out: it is given back too. For a
        // read that went on waiting, the server would make the member again.
        let _ended = tokio::time::timeout(BLOCK * 2, self.site.reads.lock()).await;
        self.site.wire.script::<i64>(self.site.give_back()).await.map(drop)
    }
}

/// The receipts at these places: of one entry there may be two.
fn those(entries: &[(Receipt, EntryId)], places: &[usize]) -> Vec<Receipt> {
    places.iter().filter_map(|place| Some(entries.get(*place)?.0)).collect()
}

impl Drop for StreamConsumer {
    fn drop(&mut self) {
        self.end_heartbeat();
        let was_closed = self.site.closed.swap(true, Ordering::Relaxed);
        if let Some(reading) = self.fetch.get_mut().reading.take() {
            // Run to the end: it gives back what it brings.
            self.site.wire.spawn_to_the_end(async move { drop(reading.await) });
        }
        if was_closed {
            return;
        }
        // What cannot be given back is taken over by others when this member has shown no sign of
        // life for a while.
        self.site.wire.at_last(self.site.give_back());
    }
}
