//! The books: every message that came in is either held somewhere or has left.
//!
//! Each party that holds messages keeps a [`Page`]: what came, what went, and what it holds, the
//! last counted from what is really there. The three have to agree. [`Books`] checks all pages
//! again and again and reports lasting differences.

use std::collections::BTreeMap;

/// What came to a party, what left it, and what it holds, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Page {
    /// Messages that came.
    pub came: u64,
    /// Messages that left, whichever way.
    pub went: u64,
    /// Messages that are held, counted from what is there.
    pub held: u64,
}

impl Page {
    /// How many messages have vanished (positive) or left without having come (negative).
    ///
    /// ```
    /// use brigade_core::books::Page;
    /// assert_eq!(Page { came: 10, went: 7, held: 2 }.unaccounted(), 1);
    /// ```
    pub fn unaccounted(&self) -> i64 {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        signed(self.came).saturating_sub(signed(self.went)).saturating_sub(signed(self.held))
    }
}

/// Checks pages repeatedly.
///
/// A page may be read while a message is between two of its counts, so a difference counts only
/// when it appears with the same sign at several closings in a row; the smallest of them is what is
/// certainly missing.
#[derive(Debug)]
pub struct Books<K> {
    /// The differences at the last closings, oldest first.
    before: BTreeMap<K, Vec<i64>>,
}

/// How many closings have to agree.
const CLOSINGS: usize = 3;

impl<K> Default for Books<K> {
    fn default() -> Self {
        Self { before: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Books<K> {
    /// Closes the books over these pages and returns what does not add up. A party that is no
    /// longer among the pages is forgotten.
    pub fn close(&mut self, pages: impl IntoIterator<Item = (K, Page)>) -> Vec<(K, i64)> {
        let (mut now, mut wrong) = (BTreeMap::new(), Vec::new());
        for (key, page) in pages {
            let mut seen = self.before.remove(&key).unwrap_or_default();
            if seen.len() == CLOSINGS {
                seen.remove(0);
            }
            seen.push(page.unaccounted());
            let certain = match seen.len() {
                CLOSINGS if seen.iter().all(|n| *n > 0) => seen.iter().min().copied(),
                CLOSINGS if seen.iter().all(|n| *n < 0) => seen.iter().max().copied(),
                _ => None,
            };
            wrong.extend(certain.map(|n| (key.clone(), n)));
            now.insert(key, seen);
        }
        self.before = now;
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(difference: i64) -> Page {
        let n = difference.unsigned_abs();
        match difference > 0 {
            true => Page { came: 100 + n, went: 60, held: 40 },
            false => Page { came: 100, went: 60 + n, held: 40 },
        }
    }

    #[test]
    fn what_stays_missing_is_told_at_the_third_closing() {
        let mut books = Books::default();
        assert!(books.close([("a", page(2))]).is_empty());
        assert!(books.close([("a", page(1)), ("b", page(0))]).is_empty());
        assert_eq!(books.close([("a", page(5)), ("b", page(0))]), [("a", 1)]);
        assert_eq!(books.close([("a", page(3))]), [("a", 1)]);
    }

    #[test]
    fn a_party_that_is_gone_is_forgotten() {
        let mut books = Books::default();
        for _ in 0..2 {
            assert!(books.close([("a", page(1))]).is_empty());
        }
        assert!(books.close([]).is_empty());
        assert!(books.close([("a", page(1))]).is_empty());
    }

    proptest! {
        /// Differences that come and go are not reported, and never more than what was there each
        /// time.
        #[test]
        fn only_what_stays_is_told(differences in prop::collection::vec(-3_i64..4, 1..50)) {
            let mut books = Books::default();
            for n in 0..differences.len() {
                let told = books.close([((), page(differences[n]))]);
                let last = differences.get(n.wrapping_sub(CLOSINGS - 1)..=n);
                let stays = last.is_some_and(|last| {
                    last.iter().all(|d| *d > 0) || last.iter().all(|d| *d < 0)
                });
                prop_assert_eq!(!told.is_empty(), stays);
                if let (Some(last), [((), told)]) = (last, &told[..]) {
                    prop_assert!(last.iter().all(|d| d.abs() >= told.abs()));
                }
            }
        }
    }
}
