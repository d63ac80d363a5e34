//! Writes to a stage's state that are not stored yet: [`Unsettled`], [`Written`] and [`Claim`].

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::StateWrite;

/// What the messages of a stage have written to its state and that is not stored yet. Writes are
/// stored with the ack, which is later than the component's result; a message in between sees them
/// here.
#[derive(Clone, Default)]
pub struct Unsettled(Arc<Mutex<Shared>>);

#[derive(Default)]
struct Shared {
    next: u64,
    /// By key, the pending values, oldest first.
    values: HashMap<String, Vec<Waiting>>,
}

/// A value that is not stored yet.
struct Waiting {
    /// The number of the message that wrote it.
    number: u64,
    value: Option<Bytes>,
    /// Which storer has claimed it.
    claim: Option<Claim>,
}

/// Identifies one party that stores writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim(u64);

impl Claim {
    /// A new, unique claim.
    #[expect(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a message wrote, until it is [`stored`](Written::stored), or dropped and thereby given up.
#[derive(Default)]
pub struct Written {
    /// The writes.
    pub writes: Vec<StateWrite>,
    /// Where the writes are visible until then, with their number and keys.
    seen: Option<(Unsettled, u64, Vec<String>)>,
}

impl Unsettled {
    /// Makes these writes visible for as long as the returned value exists.
    pub fn show(&self, writes: Vec<StateWrite>) -> Written {
        if writes.is_empty() {
            return Written::default();
        }
        let mut shared = self.0.lock();
        let number = shared.next;
        shared.next += 1;
        for write in &writes {
            let values = shared.values.entry(write.key.clone()).or_default();
            values.push(Waiting { number, value: write.value.clone(), claim: None });
        }
        drop(shared);
        let keys = writes.iter().map(|write| write.key.clone()).collect();
        Written { writes, seen: Some((self.clone(), number, keys)) }
    }

    /// The last value written to a key, if it is not stored yet; the inner `None` is a removal.
    pub fn get(&self, key: &str) -> Option<Option<Bytes>> {
        let shared = self.0.lock();
        shared.values.get(key)?.last().map(|waiting| waiting.value.clone())
    }
}

impl Written {
    /// The writes still to be stored, each with the number of its message: a greater number was
    /// handled later. What a later message has stored must not be overwritten.
    pub fn waiting(&self) -> impl Iterator<Item = (u64, &StateWrite)> {
        self.seen.iter().flat_map(|(unsettled, number, _)| {
            let shared = unsettled.0.lock();
            let waits = |write: &&StateWrite| {
                let values = shared.values.get(&write.key);
                values.is_some_and(|values| values.iter().any(|waiting| waiting.number == *number))
            };
            let waiting: Vec<&StateWrite> = self.writes.iter().filter(waits).collect();
            waiting.into_iter().map(|write| (*number, write))
        })
    }

    /// Claims the keys of these writes for `claim`, unless another party is storing a value of one
    /// of them: that value could otherwise overwrite a later one stored in the meantime.
    pub fn claim(&self, claim: Claim) -> bool {
        let Some((unsettled, number, keys)) = &self.seen else { return true };
        let mut shared = unsettled.0.lock();
        let others = |waiting: &Waiting| waiting.claim.is_some_and(|other| other != claim);
        let is_free = |key: &String| !shared.values.get(key).is_some_and(|v| v.iter().any(others));
        if !keys.iter().all(is_free) {
            return false;
        }
        for key in keys {
            let values = shared.values.get_mut(key).into_iter().flatten();
            values.filter(|waiting| waiting.number == *number).for_each(|w| w.claim = Some(claim));
        }
        true
    }

    /// Releases the claim on its keys.
    pub fn unclaim(&self) {
        let Some((unsettled, number, keys)) = &self.seen else { return };
        let mut shared = unsettled.0.lock();
        for key in keys {
            let values = shared.values.get_mut(key).into_iter().flatten();
            values.filter(|waiting| waiting.number == *number).for_each(|w| w.claim = None);
        }
    }

    /// Marks these writes as stored, along with all earlier writes to the same keys, even if the
    /// party storing those (another consumer, say) has not reported it yet.
    pub fn stored(&self) {
        self.forget(|of, number| of <= number);
    }

    /// Hides the writes to its keys for which `is_over(number of that write, own number)` holds.
    fn forget(&self, is_over: impl Fn(u64, u64) -> bool) {
        let Some((unsettled, number, keys)) = &self.seen else { return };
        let mut shared = unsettled.0.lock();
        for key in keys {
            let Some(values) = shared.values.get_mut(key) else { continue };
            values.retain(|waiting| !is_over(waiting.number, *number));
            if values.is_empty() {
                shared.values.remove(key);
            }
        }
    }
}

impl Drop for Written {
    /// Earlier writes to the same keys may still be pending.
    fn drop(&mut self) {
        self.forget(|of, number| of == number);
    }
}

impl fmt::Debug for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unsettled").field("keys", &self.0.lock().values.len()).finish()
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Written").field(&self.writes).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn write(key: &str, value: Option<&'static str>) -> StateWrite {
        StateWrite { key: key.to_owned(), value: value.map(Bytes::from) }
    }

    #[test]
    fn the_youngest_write_that_still_waits_is_seen() {
        let unsettled = Unsettled::default();
        let first = unsettled.show(vec![write("a", Some("1")), write("b", Some("1"))]);
        let second = unsettled.show(vec![write("a", Some("2"))]);
        assert_eq!(unsettled.get("a"), Some(Some("2".into())));
        first.stored();
        assert_eq!(unsettled.get("a"), Some(Some("2".into())));
        assert_eq!(unsettled.get("b"), None, "it is stored now");
        let third = unsettled.show(vec![write("a", None)]);
        assert_eq!(unsettled.get("a"), Some(None), "a removal is a write");
        second.stored();
        assert_eq!(unsettled.get("a"), Some(None));
        drop(third);
        assert_eq!(unsettled.get("a"), None);
        assert!(unsettled.0.lock().values.is_empty(), "nothing is kept");
    }

    #[test]
    fn what_is_never_stored_hides_nothing_that_waits() {
        let unsettled = Unsettled::default();
        let first = unsettled.show(vec![write("a", Some("1"))]);
        let second = unsettled.show(vec![write("a", Some("2"))]);
        drop(second);
        assert_eq!(unsettled.get("a"), Some(Some("1".into())), "the first is still to be stored");
        first.stored();
        assert_eq!(unsettled.get("a"), None);
    }

    /// Two consumers handle a key, one after the other: the second may report its write as stored
    /// before the first has.
    #[test]
    fn a_write_is_not_seen_any_more_when_a_younger_one_is_stored() {
        let unsettled = Unsettled::default();
        let first = unsettled.show(vec![write("a", Some("1"))]);
        let second = unsettled.show(vec![write("a", Some("2"))]);
        let waits = |written: &Written| written.waiting().count();
        assert_eq!((waits(&first), waits(&second)), (1, 1));
        second.stored();
        assert_eq!(unsettled.get("a"), None, "the state has the second");
        assert_eq!((waits(&first), waits(&second)), (0, 0), "it may not be written over");
        drop(first);
        assert!(unsettled.0.lock().values.is_empty());
    }

    /// One party may claim several values of a key at once.
    #[test]
    fn one_stores_values_of_a_key_at_a_time() {
        let unsettled = Unsettled::default();
        let first = unsettled.show(vec![write("a", Some("1")), write("b", Some("1"))]);
        let second = unsettled.show(vec![write("b", Some("2")), write("c", Some("2"))]);
        let third = unsettled.show(vec![write("c", Some("3"))]);
        let (one, other) = (Claim::new(), Claim::new());
        assert!(first.claim(one));
        assert!(!second.claim(other), "of `b` the first is stored");
        assert!(third.claim(other), "a claim that fails takes nothing");
        assert!(!second.claim(one), "of `c` the third is stored");
        third.unclaim();
        assert!(second.claim(one));
        first.stored();
        assert!(!third.claim(other));
        second.stored();
        assert!(third.claim(other), "nothing is claimed that is stored");
    }

    proptest! {
        /// In whatever order writes are stored or given up, the latest pending one is visible, as
        /// in a model that searches a list of all writes; and nothing is left over.
        #[test]
        fn what_is_seen_is_the_youngest_that_waits(
            steps in prop::collection::vec(
                (0_usize..3, any::<Option<u8>>(), 0_usize..8, any::<bool>()), 1..60,
            ),
        ) {
            let unsettled = Unsettled::default();
            let mut waiting: Vec<(String, Option<Bytes>, Written)> = Vec::new();
            for (key, value, end, is_stored) in steps {
                let key = format!("k{key}");
                let value = value.map(|value| Bytes::from(vec![value]));
                let write = StateWrite { key: key.clone(), value: value.clone() };
                waiting.push((key, value, unsettled.show(vec![write])));
                if end < waiting.len() {
                    let (key, _, written) = waiting.remove(end);
                    if is_stored {
                        written.stored();
                        let mut at = 0;
                        waiting.retain(|(of, ..)| {
                            at += 1;
                            at > end || *of != key
                        });
                    }
                }
                for key in ["k0", "k1", "k2"] {
                    let youngest = waiting.iter().rev().find(|(of, ..)| of == key);
                    let youngest = youngest.map(|(_, value, _)| value.clone());
                    prop_assert_eq!(unsettled.get(key), youngest);
                }
            }
            drop(waiting);
            prop_assert!(unsettled.0.lock().values.is_empty());
        }
    }
}
