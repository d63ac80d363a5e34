//! A worker's desk: what it has to do, what waits to be retried, and what waits behind that.
//!
//! The desk outlives a blocking thread that is given up on; another thread continues with it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use brigade_core::books::Page;
use brigade_core::connector::Order;
use brigade_core::delivery::{Delivery, Resolution, ended_here};
use brigade_core::order::Gate;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::runner::{Parked, Step};

pub(crate) struct Desk {
    state: Mutex<State>,
    notify: Notify,
    /// Wakes those that only wait for the desk to close.
    end: Notify,
}

struct State {
    queue: VecDeque<Item>,
    /// What the worker's loop has taken and not yet put back or ended.
    in_hand: usize,
    /// What came in, and what left: resolved, or passed on over a direct edge.
    came: u64,
    went: u64,
    gate: Gate<Item>,
    /// What is to be retried, by time; the number separates entries with the same time.
    retries: BTreeMap<(Instant, u64), Delivery>,
    retried: u64,
    /// The keys that are parked in their queues, each with the number of the last handing-over by
    /// the stage's consumers at that point: whatever was handed out up to then goes back.
    parked: HashMap<(u16, Option<Bytes>), u64>,
    closed: bool,
}

/// A delivery on the desk, and whether it blocks its key because it is being retried.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) delivery: Delivery,
    pub(crate) retry: bool,
}

impl Desk {
    pub(crate) fn new(order: Order) -> Self {
        let state = State {
            queue: VecDeque::new(),
            in_hand: 0,
            came: 0,
            went: 0,
            gate: Gate::new(order),
            retries: BTreeMap::new(),
            retried: 0,
            parked: HashMap::new(),
            closed: false,
        };
        Self { state: Mutex::new(state), notify: Notify::new(), end: Notify::new() }
    }

    /// Adds work.
    pub(crate) fn push(&self, deliveries: Vec<Delivery>) {
        let mut state = self.state.lock();
        state.came += deliveries.len() as u64;
        let items = deliveries.into_iter().map(|delivery| Item { delivery, retry: false });
        state.queue.extend(items);
        drop(state);
        self.notify.notify_one();
    }

    /// Waits for something to do and takes at most `max` of it; `None` when the desk is closed.
    pub(crate) async fn next(&self, max: usize) -> Option<Vec<Item>> {
        loop {
            let due = {
                let mut state = self.state.lock();
                if state.closed {
                    return None;
                }
                state.fetch_due(Instant::now());
                if !state.queue.is_empty() {
                    let n = max.min(state.queue.len());
                    state.in_hand += n;
                    return Some(state.queue.drain(..n).collect());
                }
                state.retries.first_key_value().map(|((at, _), _)| *at)
            };
            match due {
                None => self.notify.notified().await,
                Some(at) => {
                    let due = tokio::time::sleep_until(at);
                    tokio::select! {
                        () = self.notify.notified() => {}
                        () = due => {}
                    }
                }
            }
        }
    }

    /// Waits until `items` holds `size` deliveries, at the latest until `until`.
    pub(crate) async fn gather(&self, items: &mut Vec<Item>, size: usize, until: Instant) {
        while items.len() < size {
            {
                let mut state = self.state.lock();
                state.fetch_due(Instant::now());
                let n = (size - items.len()).min(state.queue.len());
                state.in_hand += n;
                items.extend(state.queue.drain(..n));
                if items.len() >= size || state.closed {
                    return;
                }
            }
            let full = tokio::time::timeout_at(until, self.notify.notified());
            if full.await.is_err() {
                return;
            }
        }
    }

    /// Lets an item pass unless it has to wait behind a retry of its key.
    pub(crate) fn pass(&self, item: Item) -> Option<Item> {
        if item.retry {
            return Some(item);
        }
        let mut state = self.state.lock();
        if state.parked.is_empty() && state.gate.is_open() {
            return Some(item);
        }
        let key = item.delivery.message.key.clone();
        if !state.parked.is_empty() {
            let place = (item.delivery.input, key.clone());
            match state.parked.get(&place) {
                Some(last) if item.delivery.number <= *last => {
                    drop(state);
                    self.release(item);
                    return None;
                }
                Some(_) => {
                    state.parked.remove(&place);
                }
                None => {}
            }
        }
        let passed = state.gate.pass(key.as_ref(), item);
        state.in_hand -= usize::from(passed.is_none());
        passed
    }

    fn release(&self, item: Item) {
        let before = ended_here();
        item.delivery.resolve(Resolution::Released);
        let mut state = self.state.lock();
        state.went += ended_here() - before;
        state.in_hand -= 1;
    }

    /// Called when the loop is done with what it had in hand; `went` of it have ended or gone on.
    pub(crate) fn finish(&self, went: u64) {
        let mut state = self.state.lock();
        state.went += went;
        state.in_hand = 0;
    }

    /// What came in, what left, and what is here.
    pub(crate) fn page(&self) -> Page {
        let state = self.state.lock();
        let held = state.queue.len() + state.in_hand + state.gate.waiting() + state.retries.len();
        Page { came: state.came, went: state.went, held: held as u64 }
    }

    /// Acts on the result of a step. `retried` is the key of a delivery that was retried, with
    /// later ones waiting behind it: they come before what was taken from the desk along with it.
    pub(crate) fn after(
        &self,
        step: Step,
        retried: Option<Option<Bytes>>,
        taken: impl Iterator<Item = Item>,
    ) {
        match step {
            Step::Resolved => {
                if let Some(key) = retried {
                    self.open(key.as_ref(), taken.collect());
                }
            }
            Step::Retry(delivery, after) => self.retry(delivery, Instant::now() + after),
            Step::Parked(parked) => self.park(parked, taken.collect()),
            Step::Halted => self.halt(taken),
        }
    }

    /// Handles a key that is parked in its queue: what is on the desk with this key goes back.
    fn park(&self, parked: Parked, taken: Vec<Item>) {
        let Parked { key, input, last } = parked;
        self.state.lock().parked.insert((input, key.clone()), last);
        self.open(key.as_ref(), taken);
    }

    /// Retries this delivery at `at`; later ones of its key wait.
    fn retry(&self, delivery: Delivery, at: Instant) {
        let mut state = self.state.lock();
        state.gate.block(delivery.message.key.as_ref());
        state.retried += 1;
        let number = state.retried;
        state.retries.insert((at, number), delivery);
        state.in_hand = state.in_hand.saturating_sub(1);
        drop(state);
        self.notify.notify_one();
    }

    /// Called when a delivery that was being retried is resolved: what waited behind it comes next,
    /// in order, and only then what was taken from the desk after it.
    fn open(&self, key: Option<&Bytes>, taken: Vec<Item>) {
        let mut state = self.state.lock();
        for item in taken.into_iter().rev() {
            state.in_hand -= 1;
            state.queue.push_front(item);
        }
        let behind = state.gate.open(key);
        for item in behind.into_iter().rev() {
            state.queue.push_front(item);
        }
    }

    /// Closes the desk: what is on it is given back.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let queue = std::mem::take(&mut state.queue);
        let retries = std::mem::take(&mut state.retries);
        let behind = state.gate.take_all();
        drop(state);
        // Dropped outside the lock: resolving wakes consumers.
        let before = ended_here();
        drop((queue, retries, behind));
        self.state.lock().went += ended_here() - before;
        self.notify.notify_one();
        self.end.notify_one();
    }

    /// The stage fails: what was taken from the desk and what is on it is given back.
    fn halt(&self, taken: impl Iterator<Item = Item>) {
        self.close();
        taken.for_each(|item| self.release(item));
    }

    /// Waits until the desk is closed.
    pub(crate) async fn closed(&self) {
        while !self.is_closed() {
            self.end.notified().await;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }
}

impl State {
    /// Moves due retries to the front, the earliest first.
    fn fetch_due(&mut self, now: Instant) {
        let waiting = self.retries.split_off(&(now, u64::MAX));
        let due = std::mem::replace(&mut self.retries, waiting);
        for delivery in due.into_values().rev() {
            self.queue.push_front(Item { delivery, retry: true });
        }
    }
}
