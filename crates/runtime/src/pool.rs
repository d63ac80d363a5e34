//! A stage's workers as their senders see them: ports that stay while the actors behind them come
//! and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use actix::Addr;
use arc_swap::{ArcSwap, ArcSwapOption};
use brigade_core::books::Page;
use brigade_core::connector::Order;
use brigade_core::delivery::Delivery;
use brigade_core::order::shard;
use brigade_core::outcome::Ledger;
use parking_lot::Mutex;

use crate::actors::{Desk, Halt, Work, Worker};

/// The most deliveries that a worker takes from its desk, or sends over a direct edge, at once:
/// with 64, each costs 0.1 us, and more gains little.
pub(crate) const CHUNK_MAX: usize = 64;

/// How much work one chunk should be, so that a lane's actors take turns.
const CHUNK_TIME: Duration = Duration::from_millis(2);

/// All workers of a stage in this process.
pub(crate) struct Pool {
    ports: ArcSwap<Vec<Arc<Port>>>,
}

/// The way to one worker.
pub(crate) struct Port {
    pub(crate) lane: usize,
    /// Its index among the stage's workers.
    pub(crate) index: usize,
    addr: ArcSwapOption<Addr<Worker>>,
    /// What was sent while no actor was there. Bounded by the senders' credit.
    held: Mutex<Vec<Delivery>>,
    /// Deliveries sent and not yet handled, retries that wait not counted.
    queued: AtomicUsize,
    /// Set when a consumer found no room here and is to be notified when there is some.
    wanted: AtomicBool,
    mail: Mail,
    /// The worker's desk, while there is a worker.
    desk: ArcSwapOption<Desk>,
    /// How many workers have died here; it grows under the lock of `held`.
    deaths: AtomicU64,
    /// Set when there must not be a worker any more.
    closed: AtomicBool,
    #[cfg(feature = "sabotage")]
    pub(crate) sabotage: crate::sabotage::Sabotage,
    /// How long one message takes, as a moving average, in nanoseconds; 0 if unknown.
    pace_ns: AtomicU64,
    /// What came to its lane over a direct edge, if its stage is fed directly.
    ledger: Option<Arc<Ledger>>,
}

/// What was sent to a worker.
#[derive(Default)]
struct Mail {
    sent: AtomicU64,
    /// In the mailbox now.
    posted: AtomicU64,
    arrived: AtomicU64,
    lost: AtomicU64,
}

impl Pool {
    pub(crate) fn new(ports: Vec<Arc<Port>>) -> Arc<Self> {
        Arc::new(Self { ports: ArcSwap::from_pointee(ports) })
    }

    /// Replaces the workers; nothing may be in flight in the stage.
    pub(crate) fn replace(&self, ports: Vec<Arc<Port>>) {
        self.ports.store(Arc::new(ports));
    }

    pub(crate) fn ports(&self) -> Arc<Vec<Arc<Port>>> {
        self.ports.load_full()
    }

    /// Sends a delivery that came over a direct edge: by key if the stage has an order, otherwise
    /// to the worker with the least to do, those on the sender's lane first.
    pub(crate) fn send_direct(&self, order: Order, lane: usize, deliveries: Vec<Delivery>) {
        let ports = self.ports.load();
        match order {
            Order::Queue => ports[0].send_direct(deliveries),
            Order::None => {
                let mut deliveries = deliveries.into_iter();
                loop {
                    let port = least_busy(&ports, lane);
                    let chunk: Vec<Delivery> = deliveries.by_ref().take(port.chunk()).collect();
                    if chunk.is_empty() {
                        return;
                    }
                    port.send_direct(chunk);
                }
            }
            Order::Key => {
                let mut lines: Vec<Vec<Delivery>> = ports.iter().map(|_| Vec::new()).collect();
                for delivery in deliveries {
                    let key = delivery.message.key.as_ref();
                    let line = key.map_or(0, |key| shard(key, ports.len()));
                    lines[line].push(delivery);
                }
                for (port, line) in ports.iter().zip(lines).filter(|(_, line)| !line.is_empty()) {
                    port.send_direct(line);
                }
            }
        }
    }
}

/// The worker that is done first, in steps of a chunk's time: staying on its lane is worth more to
/// a message than waiting a little less.
fn least_busy(ports: &[Arc<Port>], lane: usize) -> &Arc<Port> {
    let cost = |port: &&Arc<Port>| (port.chunks(), port.lane != lane, port.queued());
    ports.iter().min_by_key(cost).expect("a stage has at least one worker")
}

impl Port {
    pub(crate) fn new(lane: usize, index: usize, ledger: Option<Arc<Ledger>>) -> Arc<Self> {
        Arc::new(Self {
            lane,
            index,
            addr: ArcSwapOption::empty(),
            held: Mutex::default(),
            queued: AtomicUsize::new(0),
            wanted: AtomicBool::new(false),
            mail: Mail::default(),
            desk: ArcSwapOption::empty(),
            deaths: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            #[cfg(feature = "sabotage")]
            sabotage: Default::default(),
            pace_ns: AtomicU64::new(0),
            ledger,
        })
    }

    /// The worker's current life, or its next one while it is down.
    pub(crate) fn life(&self) -> u64 {
        self.deaths.load(Ordering::SeqCst)
    }

    /// Hands over deliveries that came over a direct edge: they are counted in this stage.
    fn send_direct(self: &Arc<Self>, mut deliveries: Vec<Delivery>) {
        if let Some(ledger) = &self.ledger {
            ledger.receive(deliveries.len() as u64);
            deliveries.iter_mut().for_each(|delivery| delivery.count_in(ledger));
        }
        self.send(None, deliveries);
    }

    /// Hands deliveries to the worker, or keeps them until it is back. Those for one of its lives
    /// never go to a later one: they are given back.
    pub(crate) fn send(self: &Arc<Self>, life: Option<u64>, deliveries: Vec<Delivery>) {
        let is_over = || life.is_some_and(|life| life != self.life());
        // Loaded before checking its life: the worker loaded has that life, or is dead when they
        // arrive.
        let addr = self.addr.load();
        if is_over() {
            return;
        }
        self.queued.fetch_add(deliveries.len(), Ordering::Relaxed);
        self.mail.sent.fetch_add(deliveries.len() as u64, Ordering::Relaxed);
        #[cfg(feature = "sabotage")]
        let deliveries = self.lose_one(deliveries);
        match &*addr {
            Some(addr) => addr.do_send(Work::new(deliveries, Arc::clone(self))),
            None => {
                let mut held = self.held.lock();
                if is_over() {
                    drop(held);
                    return self.lose(deliveries);
                }
                held.extend(deliveries);
                drop(held);
                // The worker may have come up between the check and the push.
                if let Some(addr) = &*self.addr.load() {
                    let held = std::mem::take(&mut *self.held.lock());
                    addr.do_send(Work::new(held, Arc::clone(self)));
                }
            }
        }
    }

    #[cfg(feature = "sabotage")]
    fn lose_one(&self, mut deliveries: Vec<Delivery>) -> Vec<Delivery> {
        if self.sabotage.strike(crate::sabotage::LOSE) {
            std::mem::forget(deliveries.pop());
        }
        deliveries
    }

    /// Records that a worker is up; returns what was sent meanwhile.
    pub(crate) fn up(&self, addr: Addr<Worker>, desk: Arc<Desk>) -> Vec<Delivery> {
        self.addr.store(Some(Arc::new(addr)));
        self.desk.store(Some(desk));
        let held = std::mem::take(&mut *self.held.lock());
        self.queued.store(held.len(), Ordering::Relaxed);
        self.mail.arrived.fetch_add(held.len() as u64, Ordering::Relaxed);
        held
    }

    /// Records that the worker is gone, and with it what was sent to it. Repeating this is
    /// harmless.
    pub(crate) fn down(&self) {
        let mut held = self.held.lock();
        // What was sent since then is for the next one.
        if self.addr.swap(None).is_none() {
            return;
        }
        self.deaths.fetch_add(1, Ordering::SeqCst);
        let lost = std::mem::take(&mut *held);
        drop(held);
        self.desk.store(None);
        self.lose(lost);
    }

    /// Ends the worker, even one that is not up yet.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(addr) = self.addr() {
            addr.do_send(Halt);
        }
    }

    /// Whether the worker has to end; it checks this once it is up.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Records that `n` deliveries were put in the worker's mailbox.
    pub(crate) fn posted(&self, n: usize) {
        self.mail.posted.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Records that `n` deliveries came out of the mailbox.
    pub(crate) fn arrived(&self, n: usize) {
        self.mail.arrived.fetch_add(n as u64, Ordering::Relaxed);
        self.mail.posted.fetch_sub(n as u64, Ordering::Relaxed);
    }

    /// Records that `n` deliveries were lost with the mailbox; their guards give them back.
    pub(crate) fn lost(&self, n: usize) {
        if n > 0 {
            self.mail.lost.fetch_add(n as u64, Ordering::Relaxed);
            self.mail.posted.fetch_sub(n as u64, Ordering::Relaxed);
        }
    }

    /// The page in the books for the way to the worker.
    pub(crate) fn page(&self) -> Page {
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let mail = &self.mail;
        let held = load(&mail.posted) + self.held.lock().len() as u64;
        Page { came: load(&mail.sent), went: load(&mail.arrived) + load(&mail.lost), held }
    }

    /// The worker's page in the books, if there is a worker.
    pub(crate) fn worker_page(&self) -> Option<Page> {
        self.desk.load().as_ref().map(|desk| desk.page())
    }

    /// The worker, if it is there.
    pub(crate) fn addr(&self) -> Option<Arc<Addr<Worker>>> {
        self.addr.load_full()
    }

    /// Drops what waits for a worker that will not come, which gives it back.
    pub(crate) fn give_back(&self) {
        let held = std::mem::take(&mut *self.held.lock());
        self.lose(held);
    }

    /// Drops these deliveries; their guards give them back.
    fn lose(&self, deliveries: Vec<Delivery>) {
        self.mail.lost.fetch_add(deliveries.len() as u64, Ordering::Relaxed);
        drop(deliveries);
    }

    /// Records that deliveries wait for room here. The caller has to check for room once more: room
    /// freed earlier is not reported.
    pub(crate) fn want_room(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    /// Records that `n` deliveries were handled in this time; returns whether a consumer waits for
    /// room.
    #[must_use]
    pub(crate) fn handled(&self, n: usize, took: Duration) -> bool {
        let each = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / n.max(1) as u64;
        let old = self.pace_ns.load(Ordering::Relaxed);
        // A moving average over about four chunks.
        let new = if old == 0 { each } else { old - old / 4 + each / 4 };
        self.pace_ns.store(new.max(1), Ordering::Relaxed);
        self.freed(n)
    }

    /// Records that `n` deliveries no longer wait here; returns whether a consumer waits for room.
    #[must_use]
    pub(crate) fn freed(&self, n: usize) -> bool {
        // Never below zero: a worker that was given up on may still report after another started
        // counting.
        let fewer = |queued: usize| Some(queued.saturating_sub(n));
        let _ = self.queued.fetch_update(Ordering::SeqCst, Ordering::Relaxed, fewer);
        self.wanted.swap(false, Ordering::SeqCst)
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::SeqCst)
    }

    /// How many chunks' time the worker needs for what it has.
    fn chunks(&self) -> usize {
        self.queued() / self.ahead(usize::MAX)
    }

    /// How many messages make one chunk: few if each takes long, so that a worker does not sit on
    /// work that another could do.
    pub(crate) fn chunk(&self) -> usize {
        self.ahead(CHUNK_MAX)
    }

    /// How many messages the worker does in a chunk's time, at most `max`.
    pub(crate) fn ahead(&self, max: usize) -> usize {
        let chunk_ns = u64::try_from(CHUNK_TIME.as_nanos()).expect("a few milliseconds");
        match self.pace_ns.load(Ordering::Relaxed) {
            0 => 1,
            pace => usize::try_from(chunk_ns / pace).unwrap_or(max).clamp(1, max),
        }
    }
}
