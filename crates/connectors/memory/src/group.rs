//! One group of one queue: what is ready, delayed, behind its key, and handed out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use brigade_core::Message;
use brigade_core::connector::{Failed, FailedReason, Incoming, Order, Receipt, Want};
use bytes::Bytes;
use rustc_hash::FxHashMap;
use tokio::time::Instant;

/// The messages of one group. A pure state machine: time is an argument.
#[derive(Debug, Default)]
pub(crate) struct Group {
    ready: VecDeque<Item>,
    /// By time; the number tells those of one instant apart.
    delayed: BTreeMap<(Instant, u64), Item>,
    /// By position, with the fence of the handing-over.
    leased: FxHashMap<u64, Lease>,
    /// In the order of keys: keys that are handed out or wait to be tried again, how often, and what
    /// waits behind them.
    busy: std::collections::HashMap<Bytes, Busy>,
    next: u64,
    fence: u64,
    behind: usize,
    pub(crate) bytes: u64,
    /// No more will be put: a consumer of an empty group is at its end.
    pub(crate) closed: bool,
}

#[derive(Debug)]
struct Item {
    position: u64,
    message: Message,
    attempts: u32,
    redeliveries: u32,
    /// It holds its key while it waits to be tried again.
    holds_key: bool,
    /// It holds the whole queue while it waits to be tried again.
    holds_queue: bool,
}

#[derive(Debug)]
struct Lease {
    fence: u64,
    /// Which consumer holds it.
    holder: u64,
    item: Item,
    order: Order,
}

#[derive(Debug, Default)]
struct Busy {
    count: usize,
    behind: VecDeque<Item>,
}

impl Group {
    pub(crate) fn put(&mut self, message: Message, at: Option<Instant>) {
        let position = self.next;
        self.next += 1;
        self.bytes += message.size() as u64;
        let item = Item {
            position,
            message,
            attempts: 0,
            redeliveries: 0,
            holds_key: false,
            holds_queue: false,
        };
        match at {
            None => self.ready.push_back(item),
            Some(at) => drop(self.delayed.insert((at, position), item)),
        }
    }

    /// Takes what can be handed out now.
    pub(crate) fn take(
        &mut self,
        want: Want,
        order: Order,
        holder: u64,
        now: Instant,
    ) -> Vec<Incoming> {
        self.wake(now);
        let one_at_a_time = order == Order::Queue;
        if one_at_a_time && !(self.leased.is_empty() && self.delayed.is_empty()) {
            return Vec::new();
        }
        let max = if one_at_a_time { 1 } else { want.messages };
        let (mut taken, mut bytes) = (Vec::new(), 0);
        // Keys that became busy in this call: their next messages may come along.
        let mut own: Vec<Bytes> = Vec::new();
        while taken.len() < max && (bytes < want.bytes || taken.is_empty()) {
            let Some(item) = self.ready.pop_front() else { break };
            if let (Order::Key, Some(key)) = (order, &item.message.key) {
                let busy = self.busy.entry(key.clone()).or_default();
                if busy.count > 0 && !own.contains(key) {
                    busy.behind.push_back(item);
                    self.behind += 1;
                    continue;
                }
                if busy.count == 0 {
                    own.push(key.clone());
                }
                busy.count += 1;
            }
            bytes += item.message.size();
            taken.push(self.lease(item, order, holder));
        }
        taken
    }

    fn lease(&mut self, item: Item, order: Order, holder: u64) -> Incoming {
        self.fence += 1;
        let receipt = Receipt { position: item.position, fence: self.fence };
        let mut incoming = Incoming::new(item.message.clone(), receipt);
        (incoming.attempts, incoming.redeliveries) = (item.attempts, item.redeliveries);
        self.leased.insert(item.position, Lease { fence: self.fence, holder, item, order });
        incoming
    }

    /// Whether a handing-over still stands.
    pub(crate) fn stands(&self, receipt: Receipt) -> bool {
        self.leased.get(&receipt.position).is_some_and(|lease| lease.fence == receipt.fence)
    }

    /// A message is done; says whether its handing-over still stood.
    pub(crate) fn done(&mut self, receipt: Receipt) -> bool {
        let Some(lease) = self.end(receipt) else { return false };
        self.bytes -= lease.item.message.size() as u64;
        self.free_key(&lease);
        true
    }

    /// A message goes back.
    pub(crate) fn fail(&mut self, failed: &Failed, now: Instant) -> bool {
        let Some(mut lease) = self.end(failed.receipt) else { return false };
        match failed.reason {
            FailedReason::Attempt { attempts, .. } | FailedReason::Parked { attempts, .. } => {
                lease.item.attempts = attempts;
            }
            FailedReason::Released => lease.item.redeliveries += 1,
        }
        let ordered = lease.order == Order::Key;
        if failed.delay.is_zero() {
            if ordered {
                self.put_key_back(lease.item);
            } else {
                self.ready.push_front(lease.item);
            }
        } else {
            lease.item.holds_key = ordered;
            lease.item.holds_queue = lease.order == Order::Queue;
            self.delayed.insert((now + failed.delay, lease.item.position), lease.item);
        }
        true
    }

    /// Everything that a consumer holds goes back, in its place.
    pub(crate) fn give_back(&mut self, holder: u64, now: Instant) {
        let held = self.leased.iter().filter(|(_, lease)| lease.holder == holder);
        let mut held: Vec<Receipt> = held
            .map(|(position, lease)| Receipt { position: *position, fence: lease.fence })
            .collect();
        // The last first, since each goes to the front.
        held.sort_unstable_by(|a, b| b.cmp(a));
        for receipt in held {
            let (reason, delay) = (FailedReason::Released, Duration::ZERO);
            self.fail(&Failed { receipt, reason, delay }, now);
        }
    }

    fn end(&mut self, receipt: Receipt) -> Option<Lease> {
        if !self.stands(receipt) {
            return None;
        }
        self.leased.remove(&receipt.position)
    }

    /// Messages whose time has come are ready.
    fn wake(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let mut item = entry.remove();
            if std::mem::take(&mut item.holds_key) {
                self.put_key_back(item);
            } else if std::mem::take(&mut item.holds_queue) {
                self.ready.push_front(item);
            } else {
                self.ready.push_back(item);
            }
        }
    }

    /// When the next delayed message is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((at, _), _)| *at)
    }

    /// A message of a busy key goes back in its place, and all of the key to the front if it is free.
    fn put_key_back(&mut self, item: Item) {
        let key = item.message.key.clone();
        let freed = key.as_ref().map(|key| self.release(key)).unwrap_or_default();
        match freed {
            Freed::Still => {
                // Others of the key are still handed out: it waits in front of what is behind.
                let busy = key.and_then(|key| self.busy.get_mut(&key));
                if let Some(busy) = busy {
                    let at = busy.behind.partition_point(|other| other.position < item.position);
                    busy.behind.insert(at, item);
                    self.behind += 1;
                }
            }
            Freed::Free(mut behind) => {
                let at = behind.partition_point(|other| other.position < item.position);
                behind.insert(at, item);
                for item in behind.into_iter().rev() {
                    self.ready.push_front(item);
                }
            }
        }
    }

    fn free_key(&mut self, lease: &Lease) {
        let Some(key) = lease.item.message.key.clone().filter(|_| lease.order == Order::Key) else {
            return;
        };
        if let Freed::Free(behind) = self.release(&key) {
            for item in behind.into_iter().rev() {
                self.ready.push_front(item);
            }
        }
    }

    /// One message less of a key that is handed out.
    fn release(&mut self, key: &Bytes) -> Freed {
        let Some(busy) = self.busy.get_mut(key) else { return Freed::default() };
        busy.count -= 1;
        if busy.count > 0 {
            return Freed::Still;
        }
        let behind = self.busy.remove(key).map(|busy| busy.behind).unwrap_or_default();
        self.behind -= behind.len();
        Freed::Free(behind)
    }

    /// Messages stored, handed out or not.
    pub(crate) fn stored(&self) -> usize {
        self.ready.len() + self.behind + self.delayed.len() + self.leased.len()
    }

    /// Messages that could be handed out but for others of their key, that are delayed, and that are
    /// handed out.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let ready = self.ready.len() + self.behind;
        (ready as u64, self.delayed.len() as u64, self.leased.len() as u64)
    }

    /// Copies of what is stored and not handed out.
    pub(crate) fn messages(&self) -> Vec<Message> {
        let behind = self.busy.values().flat_map(|busy| &busy.behind);
        let mut items: Vec<&Item> =
            self.ready.iter().chain(behind).chain(self.delayed.values()).collect();
        items.sort_by_key(|item| item.position);
        items.into_iter().map(|item| item.message.clone()).collect()
    }

    /// Removes what is stored and not handed out, and answers with it.
    pub(crate) fn drain(&mut self) -> Vec<Message> {
        let messages = self.messages();
        self.ready.clear();
        self.delayed.clear();
        for busy in self.busy.values_mut() {
            busy.behind.clear();
        }
        self.behind = 0;
        let held = self.leased.values().map(|lease| lease.item.message.size() as u64);
        self.bytes = held.sum();
        messages
    }
}

/// What became of a key.
#[derive(Debug)]
enum Freed {
    /// More of it is handed out.
    Still,
    /// It is free; this waited behind it.
    Free(VecDeque<Item>),
}

impl Default for Freed {
    fn default() -> Self {
        Self::Free(VecDeque::new())
    }
}
