//! Order: which worker a key belongs to, and what waits behind a key that is being retried.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use twox_hash::XxHash3_128;

pub use crate::connector::Order;

/// Which of `workers` a key belongs to; the same for as long as their number is.
pub fn shard(key: &[u8], workers: usize) -> usize {
    let hash = XxHash3_128::oneshot(key);
    usize::try_from(hash % workers.max(1) as u128).expect("less than a usize")
}

/// Holds back messages behind one that is being retried: of its key, or, in queue order, all.
///
/// A worker asks it before it handles a message and tells it when a retry begins and ends.
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

    /// Lets a message pass, or keeps it behind one that is being retried.
    pub fn pass(&mut self, key: Option<&Bytes>, item: T) -> Option<T> {
        if self.blocked.is_empty() {
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

    /// A message of this key is about to be retried: what comes later waits.
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

    /// Takes out everything that waits, to give it back.
    pub fn take_all(&mut self) -> Vec<T> {
        self.waiting = 0;
        self.blocked.drain().flat_map(|(_, behind)| behind).collect()
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
