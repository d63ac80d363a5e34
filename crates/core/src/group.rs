//! What a connector keeps of one group of one queue in memory: what is ready, delayed, behind its
//! key, and handed out.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Add;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::connector::{Defect, Failed, FailedReason, Incoming, Order, Receipt, Want};
use crate::retry::DELAY_MAX;
use crate::{Message, Timestamp};

/// The messages of one group, by their positions. A pure state machine: time (`T`) is an argument.
///
/// ```
/// use brigade_core::connector::{Order, Want};
/// use brigade_core::{Message, group::Group};
/// use std::time::Duration;
///
/// let (mut group, now) = (Group::<Duration>::default(), Duration::ZERO);
/// group.put(Message::new("a"), None);
/// let want = Want { messages: 10, bytes: usize::MAX };
/// let taken = group.take(want, Order::None, 0, now);
/// assert!(group.done(taken[0].receipt) && !group.done(taken[0].receipt));
/// ```
#[derive(Debug)]
pub struct Group<T> {
    ready: VecDeque<Box<Item>>,
    /// By time; the number tells those of one instant apart.
    delayed: BTreeMap<(T, u64), Box<Item>>,
    /// By position, with the fence of the handing-over.
    leased: FxHashMap<u64, Lease>,
    /// In the order of keys: those that are handed out, wait to be tried again, or have more than one message
    /// that comes next.
    busy: HashMap<Bytes, Busy>,
    next: u64,
    fence: u64,
    behind: usize,
    /// How many messages hold the whole queue while they wait to be tried again.
    holding_queue: usize,
    bytes: u64,
    /// No more will be put: a consumer of an empty group is at its end.
    pub closed: bool,
}

impl<T> Default for Group<T> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            delayed: BTreeMap::new(),
            leased: FxHashMap::default(),
            busy: HashMap::new(),
            next: 0,
            fence: 0,
            behind: 0,
            holding_queue: 0,
            bytes: 0,
            closed: false,
        }
    }
}

/// A message that is stored. It goes from list to list several times, and so in a box.
#[derive(Debug)]
struct Item {
    position: u64,
    message: Message,
    enqueued_at: Option<Timestamp>,
    first_failed_at: Option<Timestamp>,
    attempts: u32,
    redeliveries: u32,
    defect: Option<Box<Defect>>,
    /// It holds its key while it waits to be tried again.
    holds_key: bool,
    /// It holds the whole queue while it waits to be tried again.
    holds_queue: bool,
}

impl Item {
    fn handed_out(&self, fence: u64) -> Incoming {
        let receipt = Receipt { position: self.position, fence };
        Incoming {
            message: self.message.clone(),
            receipt,
            attempts: self.attempts,
            redeliveries: self.redeliveries,
            enqueued_at: self.enqueued_at,
            first_failed_at: self.first_failed_at,
            defect: self.defect.clone(),
        }
    }
}

#[derive(Debug)]
struct Lease {
    fence: u64,
    /// Which consumer holds it.
    holder: u64,
    item: Box<Item>,
    order: Order,
}

#[derive(Debug, Default)]
struct Busy {
    /// How many are handed out or wait to be tried again. When there are none, the first of what waited
    /// behind them is ready, and the rest follows it from here: a long line of one key is not moved each time.
    count: usize,
    /// The fence at the beginning of the [`Group::take`] that handed out the last: more may come along in that.
    since: u64,
    /// Where the first stands that is ready, while there are none.
    first: u64,
    behind: VecDeque<Box<Item>>,
}

impl<T: Copy + Ord + Add<Duration, Output = T>> Group<T> {
    /// A message comes in behind all others; with a time it is not handed out before it.
    pub fn put(&mut self, message: Message, at: Option<T>) {
        let position = self.next;
        self.next += 1;
        let item = self.item(position, message);
        self.store(item, at);
    }

    /// A message comes in behind all others, at the position of its receipt; with a time it is not
    /// handed out before it. A group has messages that were [put](Group::put) or such, not both.
    pub fn put_at(&mut self, incoming: Incoming, at: Option<T>) {
        let mut item = self.item(incoming.receipt.position, incoming.message);
        item.attempts = incoming.attempts;
        item.redeliveries = incoming.redeliveries;
        item.enqueued_at = incoming.enqueued_at;
        item.first_failed_at = incoming.first_failed_at;
        item.defect = incoming.defect;
        self.store(item, at);
    }

    fn store(&mut self, item: Box<Item>, at: Option<T>) {
        match at {
            None => self.ready.push_back(item),
            Some(at) => drop(self.delayed.insert((at, item.position), item)),
        }
    }

    fn item(&mut self, position: u64, message: Message) -> Box<Item> {
        self.bytes += message.size() as u64;
        Box::new(Item {
            position,
            message,
            enqueued_at: None,
            first_failed_at: None,
            attempts: 0,
            redeliveries: 0,
            defect: None,
            holds_key: false,
            holds_queue: false,
        })
    }

    /// Takes what can be handed out now.
    pub fn take(&mut self, want: Want, order: Order, holder: u64, now: T) -> Vec<Incoming> {
        self.wake(now);
        let one_at_a_time = order == Order::Queue;
        if one_at_a_time && !(self.leased.is_empty() && self.holding_queue == 0) {
            return Vec::new();
        }
        let max = if one_at_a_time { 1 } else { want.messages };
        if order != Order::Key {
            // Of who read it by key before.
            self.free_keys(|_| true).iter().for_each(|key| self.put_in_line(key));
        }
        let there = self.ready.len() + self.behind;
        let (mut taken, mut bytes) = (Vec::with_capacity(max.min(there)), 0);
        let (begun, mut follows) = (self.fence, None::<Bytes>);
        while taken.len() < max && (bytes < want.bytes || taken.is_empty()) {
            let Some(item) = self.pop(follows.take()) else { break };
            if let (Order::Key, Some(key)) = (order, &item.message.key) {
                let busy = busy_of(&mut self.busy, key);
                // A key that became busy in this call has its next messages come along.
                if busy.count > 0 && busy.since != begun {
                    busy.behind.push_back(item);
                    self.behind += 1;
                    continue;
                }
                (busy.count, busy.since) = (busy.count + 1, begun);
                follows = (!busy.behind.is_empty()).then(|| key.clone());
            }
            bytes += item.message.size();
            taken.push(self.lease(item, order, holder));
        }
        taken
    }

    /// What comes next: of a key's line, if there is one, or what is ready.
    fn pop(&mut self, of: Option<Bytes>) -> Option<Box<Item>> {
        let busy = of.and_then(|key| self.busy.get_mut(&key));
        match busy.and_then(|busy| busy.behind.pop_front()) {
            None => self.ready.pop_front(),
            of_key => {
                self.behind -= 1;
                of_key
            }
        }
    }

    fn lease(&mut self, item: Box<Item>, order: Order, holder: u64) -> Incoming {
        self.fence += 1;
        let incoming = item.handed_out(self.fence);
        self.leased.insert(item.position, Lease { fence: self.fence, holder, item, order });
        incoming
    }

    /// Whether a handing-over still stands.
    pub fn stands(&self, receipt: Receipt) -> bool {
        self.leased.get(&receipt.position).is_some_and(|lease| lease.fence == receipt.fence)
    }

    /// A message that is handed out, as it was.
    pub fn held(&self, receipt: Receipt) -> Option<Incoming> {
        let lease = self.leased.get(&receipt.position);
        let lease = lease.filter(|lease| lease.fence == receipt.fence)?;
        Some(lease.item.handed_out(lease.fence))
    }

    /// A message is done; says whether its handing-over still stood.
    pub fn done(&mut self, receipt: Receipt) -> bool {
        let Some(lease) = self.end(receipt) else { return false };
        self.bytes -= lease.item.message.size() as u64;
        self.free_key(&lease);
        true
    }

    /// A message goes back.
    pub fn fail(&mut self, failed: &Failed, now: T) -> bool {
        let Some(mut lease) = self.end(failed.receipt) else { return false };
        match failed.reason.attempts() {
            Some(attempts) => lease.item.attempts = attempts,
            None => lease.item.redeliveries += 1,
        }
        let ordered = lease.order == Order::Key;
        if failed.delay.is_zero() {
            match lease.order {
                Order::Key => self.put_key_back(lease.item),
                Order::None => self.put_back(lease.item),
                // It was the first.
                Order::Queue => self.ready.push_front(lease.item),
            }
        } else {
            lease.item.holds_key = ordered;
            lease.item.holds_queue = lease.order == Order::Queue;
            self.holding_queue += usize::from(lease.item.holds_queue);
            self.delayed
                .insert((now + failed.delay.min(DELAY_MAX), lease.item.position), lease.item);
        }
        true
    }

    /// Everything that a consumer holds goes back, in its place.
    pub fn give_back(&mut self, holder: u64, now: T) {
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

    /// Forgets the messages at the positions that `gone` says: they are somebody else's now.
    pub fn withdraw(&mut self, gone: impl Fn(u64) -> bool) {
        self.withdraw_waiting(&gone);
        let held: Vec<Receipt> = (self.leased.iter())
            .filter(|(position, _)| gone(**position))
            .map(|(position, lease)| Receipt { position: *position, fence: lease.fence })
            .collect();
        for receipt in held {
            self.done(receipt);
        }
    }

    /// The same, but those that are handed out stay so.
    pub fn withdraw_waiting(&mut self, gone: impl Fn(u64) -> bool) {
        let left = |item: &Item| gone(item.position);
        let mut bytes = 0;
        let mut keep = |item: &Item| {
            if left(item) {
                bytes += item.message.size() as u64;
            }
            !left(item)
        };
        self.ready.retain(|item| keep(item));
        for busy in self.busy.values_mut() {
            let before = busy.behind.len();
            busy.behind.retain(|item| keep(item));
            self.behind -= before - busy.behind.len();
        }
        self.bytes -= bytes;
        self.free_keys(|busy| gone(busy.first)).iter().for_each(|key| self.put_first_of(key));
        self.busy.retain(|_, busy| busy.count > 0 || !busy.behind.is_empty());
        let waits: Vec<(T, u64)> =
            (self.delayed.iter()).filter_map(|(at, item)| left(item).then_some(*at)).collect();
        for at in waits {
            let Some(item) = self.delayed.remove(&at) else { continue };
            self.bytes -= item.message.size() as u64;
            self.holding_queue -= usize::from(item.holds_queue);
            if item.holds_key
                && let Some(key) = &item.message.key
            {
                self.free(key);
            }
        }
    }

    /// The keys of which none is handed out and more than one comes next, those that are `so`.
    fn free_keys(&self, so: impl Fn(&Busy) -> bool) -> Vec<Bytes> {
        let free = self.busy.iter().filter(|(_, busy)| busy.count == 0 && so(busy));
        free.map(|(key, _)| key.clone()).collect()
    }

    /// What follows the first of a free key stands behind it, as what has no key would.
    fn put_in_line(&mut self, key: &Bytes) {
        let Some(Busy { first, behind, .. }) = self.busy.remove(key) else { return };
        self.behind -= behind.len();
        let at = self.ready.iter().position(|item| item.position == first);
        let after = self.ready.split_off(at.map_or(0, |at| at + 1));
        self.ready.extend(behind.into_iter().chain(after));
    }

    fn end(&mut self, receipt: Receipt) -> Option<Lease> {
        match self.leased.entry(receipt.position) {
            Entry::Occupied(lease) if lease.get().fence == receipt.fence => Some(lease.remove()),
            _ => None,
        }
    }

    /// Messages whose time has come are ready.
    pub fn wake(&mut self, now: T) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let mut item = entry.remove();
            if std::mem::take(&mut item.holds_key) {
                self.put_key_back(item);
            } else if std::mem::take(&mut item.holds_queue) {
                self.holding_queue -= 1;
                self.ready.push_front(item);
            } else {
                self.ready.push_back(item);
            }
        }
    }

    /// The message at this position, of which nothing before it in its partition is left, is handed out next;
    /// says whether it is ready.
    pub fn put_first(&mut self, position: u64) -> bool {
        // It may stand behind the first of its key, from another partition, or be put before that.
        let behind = self.busy.values().flat_map(|busy| &busy.behind);
        let found = self.ready.iter().chain(behind).find(|item| item.position == position);
        let key = found.and_then(|item| item.message.key.clone());
        if let Some(key) = key.filter(|key| self.busy.get(key).is_some_and(|busy| busy.count == 0))
        {
            self.put_in_line(&key);
        }
        let at = self.ready.iter().position(|item| item.position == position);
        let Some(item) = at.and_then(|at| self.ready.remove(at)) else { return false };
        self.ready.push_front(item);
        true
    }

    /// When the next delayed message is due.
    pub fn due(&self) -> Option<T> {
        self.delayed.first_key_value().map(|((at, _), _)| *at)
    }

    /// A message goes back in its place: before all later ones, and behind the earlier ones that went back before it.
    fn put_back(&mut self, item: Box<Item>) {
        let at = self.ready.iter().position(|other| other.position > item.position);
        self.ready.insert(at.unwrap_or(self.ready.len()), item);
    }

    /// A message of a busy key goes back in its place, and all of the key to the front if it is free.
    fn put_key_back(&mut self, item: Box<Item>) {
        let key = item.message.key.clone();
        let Some((key, busy)) = key.and_then(|key| self.busy.get_mut(&key).map(|busy| (key, busy)))
        else {
            return self.ready.push_front(item);
        };
        // Not a search by halves: of several partitions what waits is in no order as a whole, and within each
        // only what has been handed out before comes back, so that this is its place there.
        let at = busy.behind.iter().position(|other| other.position > item.position);
        busy.behind.insert(at.unwrap_or(busy.behind.len()), item);
        self.behind += 1;
        self.free(&key);
    }

    fn free_key(&mut self, lease: &Lease) {
        if let Some(key) = lease.item.message.key.as_ref().filter(|_| lease.order == Order::Key) {
            self.free(key);
        }
    }

    /// One message less of a key that is handed out.
    fn free(&mut self, key: &Bytes) {
        let Some(busy) = self.busy.get_mut(key) else { return };
        busy.count -= 1;
        if busy.count == 0 {
            self.put_first_of(key);
        }
    }

    /// The first of what waits behind a key that is free is ready.
    fn put_first_of(&mut self, key: &Bytes) {
        let Some(busy) = self.busy.get_mut(key) else { return };
        if let Some(first) = busy.behind.pop_front() {
            busy.first = first.position;
            self.ready.push_front(first);
            self.behind -= 1;
        }
        if busy.behind.is_empty() {
            self.busy.remove(key);
        }
    }

    /// The bytes of all that is stored, as [`Message::size`] counts them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many messages at the positions that `of` says are handed out.
    pub fn held_at(&self, of: impl Fn(u64) -> bool) -> usize {
        self.leased.keys().filter(|position| of(**position)).count()
    }

    /// How many messages at the positions that `of` says are stored, handed out or not.
    pub fn stored_at(&self, of: impl Fn(u64) -> bool) -> usize {
        let behind = self.busy.values().flat_map(|busy| &busy.behind);
        let waiting = self.ready.iter().chain(behind).chain(self.delayed.values());
        waiting.filter(|item| of(item.position)).count() + self.held_at(of)
    }

    /// The positions of the messages that wait for their time, and their bytes.
    pub fn delayed(&self) -> impl Iterator<Item = (u64, u64)> {
        self.delayed.values().map(|item| (item.position, item.message.size() as u64))
    }

    /// Messages stored, handed out or not.
    pub fn stored(&self) -> usize {
        self.ready.len() + self.behind + self.delayed.len() + self.leased.len()
    }

    /// Messages that could be handed out but for others of their key, that are delayed, and that are
    /// handed out.
    pub fn counts(&self) -> (u64, u64, u64) {
        let ready = self.ready.len() + self.behind;
        (ready as u64, self.delayed.len() as u64, self.leased.len() as u64)
    }

    /// Copies of what is stored and not handed out.
    pub fn messages(&self) -> Vec<Message> {
        let behind = self.busy.values().flat_map(|busy| &busy.behind);
        let mut items: Vec<&Box<Item>> =
            self.ready.iter().chain(behind).chain(self.delayed.values()).collect();
        items.sort_by_key(|item| item.position);
        items.into_iter().map(|item| item.message.clone()).collect()
    }

    /// Removes what is stored and not handed out, and answers with it.
    pub fn drain(&mut self) -> Vec<Message> {
        let messages = self.messages();
        self.withdraw_waiting(|_| true);
        messages
    }
}

/// What is busy of a key, from now on if it was not.
fn busy_of<'b>(all: &'b mut HashMap<Bytes, Busy>, key: &Bytes) -> &'b mut Busy {
    if !all.contains_key(key) {
        all.insert(key.clone(), Busy::default());
    }
    all.get_mut(key).expect("it was put there if it was not there")
}

#[cfg(test)]
mod tests;
