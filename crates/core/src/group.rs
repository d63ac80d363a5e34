//! What a connector holds in memory for one group of a queue: messages that are ready, delayed,
//! waiting behind their key, or handed out.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Add;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::connector::{Defect, Failed, FailedReason, Incoming, Order, Receipt, Want};
use crate::retry::DELAY_MAX;
use crate::{Message, Timestamp};

/// The messages of one group, by position. A pure state machine: time (`T`) is an argument.
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
    /// By time; the number separates messages with the same time.
    delayed: BTreeMap<(T, u64), Box<Item>>,
    /// By position, with the fence of the handing-over.
    leased: FxHashMap<u64, Lease>,
    /// When ordered by key: the keys with messages that are handed out or wait to be retried, or
    /// with more than one message to come next.
    busy: HashMap<Bytes, Busy>,
    next: u64,
    fence: u64,
    behind: usize,
    /// How many messages block the whole queue while they wait to be retried.
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

/// A stored message. It moves between lists several times, hence boxed.
#[derive(Debug)]
struct Item {
    position: u64,
    message: Message,
    enqueued_at: Option<Timestamp>,
    first_failed_at: Option<Timestamp>,
    attempts: u32,
    redeliveries: u32,
    defect: Option<Box<Defect>>,
    /// It blocks its key while it waits to be retried.
    holds_key: bool,
    /// It blocks the whole queue while it waits to be retried.
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
    /// The consumer that holds it.
    holder: u64,
    item: Box<Item>,
    order: Order,
}

#[derive(Debug, Default)]
struct Busy {
    /// How many are handed out or wait to be retried. When there are none, the first message
    /// waiting behind them is ready, and the rest follow it from here: a long line of one key is
    /// not moved each time.
    count: usize,
    /// The fence at the start of the [`Group::take`] that handed out the last one: that call may
    /// take more of them.
    since: u64,
    /// The position of the first one that is ready, while none is out.
    first: u64,
    behind: VecDeque<Box<Item>>,
}

impl<T: Copy + Ord + Add<Duration, Output = T>> Group<T> {
    /// Adds a message behind all others; with a time it is not handed out earlier than that.
    pub fn put(&mut self, message: Message, at: Option<T>) {
        let position = self.next;
        self.next += 1;
        let item = self.item(position, message);
        self.store(item, at);
    }

    /// Adds a message behind all others, at the position of its receipt; with a time it is not
    /// handed out earlier than that. Do not mix [`put`](Group::put) and `put_at` in one group.
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
            // Left by a reader that used order by key.
            self.free_keys(|_| true).iter().for_each(|key| self.put_in_line(key));
        }
        let there = self.ready.len() + self.behind;
        let (mut taken, mut bytes) = (Vec::with_capacity(max.min(there)), 0);
        let (begun, mut follows) = (self.fence, None::<Bytes>);
        while taken.len() < max && (bytes < want.bytes || taken.is_empty()) {
            let Some(item) = self.pop(follows.take()) else { break };
            if let (Order::Key, Some(key)) = (order, &item.message.key) {
                let busy = busy_of(&mut self.busy, key);
                // If a key became busy in this call, its next messages are taken along.
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

    /// The next message: from a key's line, if a key is given, otherwise from what is ready.
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

    /// Whether a handing-over is still valid.
    pub fn stands(&self, receipt: Receipt) -> bool {
        self.leased.get(&receipt.position).is_some_and(|lease| lease.fence == receipt.fence)
    }

    /// The message of a handing-over, as it was handed out.
    pub fn held(&self, receipt: Receipt) -> Option<Incoming> {
        let lease = self.leased.get(&receipt.position);
        let lease = lease.filter(|lease| lease.fence == receipt.fence)?;
        Some(lease.item.handed_out(lease.fence))
    }

    /// Removes a message that is done; returns whether its handing-over was still valid.
    pub fn done(&mut self, receipt: Receipt) -> bool {
        let Some(lease) = self.end(receipt) else { return false };
        self.bytes -= lease.item.message.size() as u64;
        self.free_key(&lease);
        true
    }

    /// Puts a failed message back; returns whether its handing-over was still valid.
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

    /// Puts everything that a consumer holds back in its place.
    pub fn give_back(&mut self, holder: u64, now: T) {
        let held = self.leased.iter().filter(|(_, lease)| lease.holder == holder);
        let mut held: Vec<Receipt> = held
            .map(|(position, lease)| Receipt { position: *position, fence: lease.fence })
            .collect();
        // In descending order, since each goes to the front.
        held.sort_unstable_by(|a, b| b.cmp(a));
        for receipt in held {
            let (reason, delay) = (FailedReason::Released, Duration::ZERO);
            self.fail(&Failed { receipt, reason, delay }, now);
        }
    }

    /// Forgets the messages at positions for which `gone` holds: they belong to another consumer
    /// now.
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

    /// The same, but messages that are handed out are kept.
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

    /// The keys for which `so` holds, of those with none handed out and more than one to come next.
    fn free_keys(&self, so: impl Fn(&Busy) -> bool) -> Vec<Bytes> {
        let free = self.busy.iter().filter(|(_, busy)| busy.count == 0 && so(busy));
        free.map(|(key, _)| key.clone()).collect()
    }

    /// Moves what follows the first message of a free key directly behind it, as if they had no
    /// key.
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

    /// Makes messages ready whose time has come.
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

    /// Makes the message at this position the next to be handed out, since nothing before it in its
    /// partition is left; returns whether it is ready.
    pub fn put_first(&mut self, position: u64) -> bool {
        // It may be waiting behind the first message of its key, from another partition, or be
        // moved ahead of that one.
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

    /// Puts a message back in its place: before all later ones, and behind earlier ones that were
    /// put back before.
    fn put_back(&mut self, item: Box<Item>) {
        let at = self.ready.iter().position(|other| other.position > item.position);
        self.ready.insert(at.unwrap_or(self.ready.len()), item);
    }

    /// Puts a message of a busy key back in its place; if the key is free, its line moves to the
    /// front.
    fn put_key_back(&mut self, item: Box<Item>) {
        let key = item.message.key.clone();
        let Some((key, busy)) = key.and_then(|key| self.busy.get_mut(&key).map(|busy| (key, busy)))
        else {
            return self.ready.push_front(item);
        };
        // No binary search: messages from several partitions are in no overall order, and within a
        // partition only what has been handed out before comes back, so this is its place there.
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

    /// One message of a key less is handed out.
    fn free(&mut self, key: &Bytes) {
        let Some(busy) = self.busy.get_mut(key) else { return };
        busy.count -= 1;
        if busy.count == 0 {
            self.put_first_of(key);
        }
    }

    /// Makes the first message that waits behind a free key ready.
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

    /// The bytes of all stored messages, as [`Message::size`] counts them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many messages at positions for which `of` holds are handed out.
    pub fn held_at(&self, of: impl Fn(u64) -> bool) -> usize {
        self.leased.keys().filter(|position| of(**position)).count()
    }

    /// How many messages at positions for which `of` holds are stored, handed out or not.
    pub fn stored_at(&self, of: impl Fn(u64) -> bool) -> usize {
        let behind = self.busy.values().flat_map(|busy| &busy.behind);
        let waiting = self.ready.iter().chain(behind).chain(self.delayed.values());
        waiting.filter(|item| of(item.position)).count() + self.held_at(of)
    }

    /// The positions and sizes in bytes of the delayed messages.
    pub fn delayed(&self) -> impl Iterator<Item = (u64, u64)> {
        self.delayed.values().map(|item| (item.position, item.message.size() as u64))
    }

    /// How many messages are stored, handed out or not.
    pub fn stored(&self) -> usize {
        self.ready.len() + self.behind + self.delayed.len() + self.leased.len()
    }

    /// How many messages are ready (including those that only wait for others of their key),
    /// delayed, and handed out.
    pub fn counts(&self) -> (u64, u64, u64) {
        let ready = self.ready.len() + self.behind;
        (ready as u64, self.delayed.len() as u64, self.leased.len() as u64)
    }

    /// Copies of the messages that are stored and not handed out.
    pub fn messages(&self) -> Vec<Message> {
        let behind = self.busy.values().flat_map(|busy| &busy.behind);
        let mut items: Vec<&Box<Item>> =
            self.ready.iter().chain(behind).chain(self.delayed.values()).collect();
        items.sort_by_key(|item| item.position);
        items.into_iter().map(|item| item.message.clone()).collect()
    }

    /// Removes and returns the messages that are stored and not handed out.
    pub fn drain(&mut self) -> Vec<Message> {
        let messages = self.messages();
        self.withdraw_waiting(|_| true);
        messages
    }
}

/// The entry of a busy key, created if it was not busy.
fn busy_of<'b>(all: &'b mut HashMap<Bytes, Busy>, key: &Bytes) -> &'b mut Busy {
    if !all.contains_key(key) {
        all.insert(key.clone(), Busy::default());
    }
    all.get_mut(key).expect("it was put there if it was not there")
}

#[cfg(test)]
mod tests;
