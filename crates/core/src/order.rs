//! Order: which worker a key belongs to, what waits behind a key that is being retried, and what is
//! handed out again before anything else.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use twox_hash::XxHash3_128;

pub use crate::connector::Order;
use crate::delivery::Slot;

/// The one of `workers` that a key belongs to; it stays the same as long as their number does.
pub fn shard(key: &[u8], workers: usize) -> usize {
    let hash = XxHash3_128::oneshot(key);
    usize::try_from(hash % workers.max(1) as u128).expect("less than a usize")
}

/// Holds back messages behind one that is being retried: those of its key, or, in queue order, all.
///
/// A worker asks it before handling a message and reports when a retry begins and ends.
#[derive(Debug)]
pub struct Gate<T> {
    order: Order,
    /// The keys that are blocked, each with what waits behind it. `None` is the whole queue.
    blocked: HashMap<Option<Bytes>, VecDeque<T>>,
    waiting: usize,
}

impl<T> Gate<T> {
    /// A gate with nothing blocked.
    pub fn new(order: Order) -> Self {
        Self { order, blocked: HashMap::new(), waiting: 0 }
    }

    fn group(&self, key: Option<&Bytes>) -> Option<Option<Bytes>> {
        match self.order {
            Order::None => None,
            Order::Key => key.cloned().map(Some),
            Order::Queue => Some(None),
        }
    }

    /// Whether every message passes.
    pub fn is_open(&self) -> bool {
        self.blocked.is_empty()
    }

    /// Lets a message pass, or keeps it behind one that is being retried.
    pub fn pass(&mut self, key: Option<&Bytes>, item: T) -> Option<T> {
        if self.is_open() {
            return Some(item);
        }
        let group = self.group(key);
        match group.and_then(|group| self.blocked.get_mut(&group)) {
            Some(behind) => {
                behind.push_back(item);
                self.waiting += 1;
                None
            }
            None => Some(item),
        }
    }

    /// A message of this key is about to be retried: later ones wait.
    pub fn block(&mut self, key: Option<&Bytes>) {
        if let Some(group) = self.group(key) {
            self.blocked.entry(group).or_default();
        }
    }

    /// The message of this key is resolved: what waited behind it may pass, in order.
    pub fn open(&mut self, key: Option<&Bytes>) -> VecDeque<T> {
        let behind = self.group(key).and_then(|group| self.blocked.remove(&group));
        let behind = behind.unwrap_or_default();
        self.waiting -= behind.len();
        behind
    }

    /// How many wait behind blocked keys.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Removes everything that waits, to give it back.
    pub fn take_all(&mut self) -> Vec<T> {
        self.waiting = 0;
        self.blocked.drain().flat_map(|(_, behind)| behind).collect()
    }
}

/// What a consumer has outstanding with each of its workers, by key, for a queue that does not keep
/// a key busy itself: it hands out further messages of a key before the previous one is resolved.
///
/// When a worker dies, what it had comes again; but messages of the same keys that were handed out
/// in the meantime must not overtake it. So until everything meant for the worker is back, nothing
/// more is pulled, and none of it goes to the worker's next life.
#[derive(Debug)]
pub struct Lines {
    lines: Vec<Line>,
    /// The line of each slot.
    of: Vec<usize>,
}

#[derive(Debug)]
struct Line {
    /// The life of the worker it is for.
    life: u64,
    /// How many of its messages are not settled.
    out: usize,
}

impl Lines {
    /// One line per worker, with the workers' current lives.
    pub fn new(lives: impl Iterator<Item = u64>) -> Self {
        Self { lines: lives.map(|life| Line { life, out: 0 }).collect(), of: Vec::new() }
    }

    /// Adds a message to this line.
    pub fn hand_out(&mut self, slot: Slot, line: usize) {
        let slot = slot.0 as usize;
        if self.of.len() <= slot {
            self.of.resize(slot + 1, 0);
        }
        self.of[slot] = line;
        self.lines[line].out += 1;
    }

    /// Removes a message that was settled or given back.
    pub fn settled(&mut self, slot: Slot) {
        self.lines[self.of[slot.0 as usize]].out -= 1;
    }

    /// The worker's life that its line is for; no later life may get the messages in it.
    pub fn life(&self, line: usize) -> u64 {
        self.lines[line].life
    }

    /// Checks the workers' lives. Returns whether pulling must wait: a worker has died, and not
    /// everything meant for it is back.
    pub fn wait(&mut self, lives: impl Iterator<Item = u64>) -> bool {
        let mut wait = false;
        for (line, life) in self.lines.iter_mut().zip(lives) {
            match line.out {
                0 => line.life = life,
                _ => wait |= line.life != life,
            }
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_blocked_key_holds_back_its_own_and_nobody_else() {
        let (a, b) = (Bytes::from("a"), Bytes::from("b"));
        let mut gate = Gate::new(Order::Key);
        gate.block(Some(&a));
        assert_eq!(gate.pass(Some(&a), 1), None);
        assert_eq!(gate.pass(Some(&b), 2), Some(2));
        assert_eq!(gate.pass(None, 3), Some(3));
        assert_eq!(gate.pass(Some(&a), 4), None);
        assert_eq!(gate.waiting(), 2);
        assert_eq!(gate.open(Some(&a)), [1, 4]);
        assert_eq!(gate.pass(Some(&a), 5), Some(5));
    }

    #[test]
    fn until_a_dead_workers_line_is_back_nothing_is_pulled() {
        let mut lines = Lines::new([0, 0].into_iter());
        lines.hand_out(Slot(0), 1);
        lines.hand_out(Slot(1), 1);
        lines.hand_out(Slot(2), 0);
        assert!(!lines.wait([0, 0].into_iter()));
        assert!(lines.wait([0, 1].into_iter()));
        lines.settled(Slot(0));
        assert!(lines.wait([0, 2].into_iter()));
        assert_eq!(lines.life(1), 0, "what is left is for the dead");
        lines.settled(Slot(1));
        assert!(!lines.wait([0, 2].into_iter()), "the other line goes on");
        assert_eq!((lines.life(0), lines.life(1)), (0, 2));
    }

    #[test]
    fn in_queue_order_a_retry_holds_back_everything() {
        let mut gate = Gate::new(Order::Queue);
        gate.block(None);
        assert_eq!(gate.pass(Some(&Bytes::from("a")), 1), None);
        assert_eq!(gate.open(Some(&Bytes::from("b"))), [1]);
    }

    #[test]
    fn without_order_nothing_is_held_back() {
        let a = Bytes::from("a");
        let mut gate = Gate::new(Order::None);
        gate.block(Some(&a));
        assert_eq!(gate.pass(Some(&a), 1), Some(1));
    }

    proptest! {
        /// Messages of a key leave the gate in the order in which they came, and none is lost.
        #[test]
        fn the_order_of_a_key_survives_any_blocking(
            steps in prop::collection::vec((0_u8..3, 0_u8..4), 1..300),
        ) {
            let mut gate = Gate::new(Order::Key);
            let mut left: HashMap<u8, Vec<usize>> = HashMap::new();
            let mut came = 0;
            for (n, (what, key)) in steps.into_iter().enumerate() {
                let bytes = Bytes::from(vec![key]);
                let passed = match what {
                    0 => { gate.block(Some(&bytes)); vec![] }
                    1 => gate.open(Some(&bytes)).into(),
                    _ => { came += 1; gate.pass(Some(&bytes), n).into_iter().collect() }
                };
                left.entry(key).or_default().extend(passed);
            }
            for key in 0..4 {
                let rest: Vec<_> = gate.open(Some(&Bytes::from(vec![key]))).into();
                left.entry(key).or_default().extend(rest);
            }
            prop_assert!(left.values().all(|list| list.is_sorted()));
            prop_assert_eq!(left.values().map(Vec::len).sum::<usize>(), came);
            prop_assert_eq!(gate.waiting(), 0);
        }

        #[test]
        fn a_key_has_one_worker(key in any::<Vec<u8>>(), workers in 1_usize..100) {
            prop_assert!(shard(&key, workers) < workers);
            prop_assert_eq!(shard(&key, workers), shard(&key, workers));
        }
    }
}
