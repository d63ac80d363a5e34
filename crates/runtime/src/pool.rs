//! A stage's workers as their senders see them: ports that stay while the actors behind them come
//! and go.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::Addr;
use arc_swap::{ArcSwap, ArcSwapOption};
use brigade_core::connector::Order;
use brigade_core::delivery::Delivery;
use brigade_core::order::shard;

use crate::actors::{Work, Worker};

/// The most deliveries in one mailbox message: 64 cost 0.1 us each, and more gains little.
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
    /// Its place among the stage's workers.
    pub(crate) index: usize,
    addr: ArcSwapOption<Addr<Worker>>,
    /// What was sent while no actor was there. Bounded by the senders' credit.
    held: Mutex<Vec<Delivery>>,
    /// Deliveries sent and not yet handled, retries that wait not counted.
    queued: AtomicUsize,
    /// How long one message takes, as a moving average, in nanoseconds; 0 is not known.
    pace_ns: AtomicU64,
}

impl Pool {
    pub(crate) fn new(ports: Vec<Arc<Port>>) -> Arc<Self> {
        Arc::new(Self { ports: ArcSwap::from_pointee(ports) })
    }

    /// Other workers from now on; nothing may be in flight in the stage.
    pub(crate) fn replace(&self, ports: Vec<Arc<Port>>) {
        self.ports.store(Arc::new(ports));
    }

    pub(crate) fn ports(&self) -> Arc<Vec<Arc<Port>>> {
        self.ports.load_full()
    }

    /// Sends a delivery that came over a direct edge: by key where order is asked for, otherwise to
    /// the worker that has least to do, those on the sender's lane first.
    pub(crate) fn send_direct(&self, order: Order, lane: usize, deliveries: Vec<Delivery>) {
        let ports = self.ports.load();
        match order {
            Order::Queue => ports[0].send(deliveries),
            Order::None => {
                let mut deliveries = deliveries.into_iter();
                loop {
                    let port = least_busy(&ports, lane);
                    let chunk: Vec<Delivery> = deliveries.by_ref().take(port.chunk()).collect();
                    if chunk.is_empty() {
                        return;
                    }
                    port.send(chunk);
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
                    port.send(line);
                }
            }
        }
    }
}

/// The worker that is done first, in steps of a chunk's time: a message that stays on its lane is
/// cheaper than one that waits a little less.
fn least_busy(ports: &[Arc<Port>], lane: usize) -> &Arc<Port> {
    let cost = |port: &&Arc<Port>| (port.chunks(), port.lane != lane, port.queued());
    ports.iter().min_by_key(cost).expect("a stage has at least one worker")
}

impl Port {
    pub(crate) fn new(lane: usize, index: usize) -> Arc<Self> {
        Arc::new(Self {
            lane,
            index,
            addr: ArcSwapOption::empty(),
            held: Mutex::default(),
            queued: AtomicUsize::new(0),
            pace_ns: AtomicU64::new(0),
        })
    }

    /// Hands deliveries to the worker, or keeps them until it is back.
    pub(crate) fn send(&self, deliveries: Vec<Delivery>) {
        self.queued.fetch_add(deliveries.len(), Ordering::Relaxed);
        match &*self.addr.load() {
            Some(addr) => addr.do_send(Work(deliveries)),
            None => {
                self.held().extend(deliveries);
                // The worker may have come up between the look and the push.
                if let Some(addr) = &*self.addr.load() {
                    addr.do_send(Work(std::mem::take(&mut *self.held())));
                }
            }
        }
    }

    /// A worker is there: it gets what was sent meanwhile.
    pub(crate) fn up(&self, addr: Addr<Worker>) -> Vec<Delivery> {
        self.addr.store(Some(Arc::new(addr)));
        let held = std::mem::take(&mut *self.held());
        self.queued.store(held.len(), Ordering::Relaxed);
        held
    }

    /// The worker is gone.
    pub(crate) fn down(&self) {
        self.addr.store(None);
    }

    /// The worker, if it is there.
    pub(crate) fn addr(&self) -> Option<Arc<Addr<Worker>>> {
        self.addr.load_full()
    }

    /// Drops what waits for a worker that will not come: it is given back.
    pub(crate) fn give_back(&self) {
        drop(std::mem::take(&mut *self.held()));
    }

    /// So many deliveries were handled, in this time.
    pub(crate) fn handled(&self, n: usize, took: Duration) {
        let before = self.queued.load(Ordering::Relaxed);
        self.queued.fetch_sub(n.min(before), Ordering::Relaxed);
        let each = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / n.max(1) as u64;
        let old = self.pace_ns.load(Ordering::Relaxed);
        // A moving average over about four chunks.
        let new = if old == 0 { each } else { old - old / 4 + each / 4 };
        self.pace_ns.store(new.max(1), Ordering::Relaxed);
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// How many chunks' time the worker needs for what it has.
    fn chunks(&self) -> usize {
        self.queued() / self.chunk_of(usize::MAX)
    }

    /// How many messages make one chunk: few where each takes long, so that a worker does not sit
    /// on work that another could do.
    pub(crate) fn chunk(&self) -> usize {
        self.chunk_of(CHUNK_MAX)
    }

    fn chunk_of(&self, max: usize) -> usize {
        let chunk_ns = u64::try_from(CHUNK_TIME.as_nanos()).expect("a few milliseconds");
        match self.pace_ns.load(Ordering::Relaxed) {
            0 => 1,
            pace => usize::try_from(chunk_ns / pace).unwrap_or(max).clamp(1, max),
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Vec<Delivery>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
