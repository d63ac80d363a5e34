//! Watermark: the smallest unresolved position of a queue that is read in order, and what is
//! resolved beyond it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Positions 0, 1, 2 ... that are resolved in any order.
///
/// Kept as ranges, so it is small however many positions are resolved; its serialised form is what
/// a connector stores to resume from.
///
/// ```
/// let mut watermark = brigade_core::watermark::Watermark::default();
/// watermark.resolve(0);
/// watermark.resolve(2);
/// assert_eq!(watermark.low(), 1);
/// assert!(watermark.is_resolved(2) && !watermark.is_resolved(1));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire")]
pub struct Watermark {
    /// Everything below is resolved.
    low: u64,
    /// Resolved ranges above `low`: first position to one past the last. They neither touch nor
    /// overlap.
    beyond: BTreeMap<u64, u64>,
}

/// The serialised form as read, before validation.
#[derive(Deserialize)]
struct Wire {
    low: u64,
    beyond: BTreeMap<u64, u64>,
}

impl TryFrom<Wire> for Watermark {
    type Error = &'static str;

    fn try_from(Wire { low, beyond }: Wire) -> Result<Self, Self::Error> {
        let mut free = low;
        for (first, past) in &beyond {
            // An unresolved position precedes each range.
            if *first <= free || past <= first {
                return Err("ranges of resolved positions that overlap, touch or are empty");
            }
            free = *past;
        }
        match free <= Self::POSITION_MAX {
            true => Ok(Self { low, beyond }),
            false => Err("a position out of range"),
        }
    }
}

impl Watermark {
    /// The largest possible position: far beyond any queue, with room to keep counting.
    pub const POSITION_MAX: u64 = u64::MAX >> 1;

    /// Everything below this position is resolved.
    pub fn starting_at(low: u64) -> Self {
        Self { low, beyond: BTreeMap::new() }
    }

    /// Marks this position as resolved. Repeating it is harmless.
    pub fn resolve(&mut self, position: u64) {
        if !self.is_resolved(position) {
            self.resolve_range(position, position + 1);
        }
    }

    /// Marks the positions from `first` up to, but not including, `past` as resolved or
    /// nonexistent.
    pub fn resolve_range(&mut self, first: u64, past: u64) {
        if first >= past || past <= self.low {
            return;
        }
        let (mut first, mut past) = (first, past);
        while let Some((&from, &to)) = self.beyond.range(..=past).next_back()
            && to >= first
        {
            self.beyond.remove(&from);
            (first, past) = (first.min(from), past.max(to));
        }
        if first <= self.low {
            self.low = past;
        } else {
            self.beyond.insert(first, past);
        }
    }

    /// The ranges that are resolved beyond the smallest unresolved position: the first position and
    /// one past the last of each, in order.
    pub fn beyond(&self) -> impl Iterator<Item = (u64, u64)> {
        self.beyond.iter().map(|(first, past)| (*first, *past))
    }

    /// The smallest position that is not resolved.
    pub fn low(&self) -> u64 {
        self.low
    }

    /// Whether this position is resolved.
    pub fn is_resolved(&self, position: u64) -> bool {
        position < self.low
            || self.beyond.range(..=position).next_back().is_some_and(|(_, past)| position < *past)
    }

    /// How many ranges are resolved beyond the smallest unresolved position.
    pub fn ranges(&self) -> usize {
        self.beyond.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_set(
            ranges in prop::collection::vec((0_u64..60, prop_oneof![Just(1_u64), 0_u64..12]), 0..120),
        ) {
            let (mut watermark, mut set) = (Watermark::default(), BTreeSet::new());
            for (position, length) in ranges {
                match length {
                    1 => watermark.resolve(position),
                    _ => watermark.resolve_range(position, position + length),
                }
                set.extend(position..position + length);
                let beyond: Vec<u64> =
                    watermark.beyond().flat_map(|(first, past)| first..past).collect();
                prop_assert!(beyond.iter().copied().eq(set.range(watermark.low()..).copied()));
                let low = (0..).find(|p| !set.contains(p)).unwrap();
                prop_assert_eq!(watermark.low(), low);
                for p in 0..73 {
                    prop_assert_eq!(watermark.is_resolved(p), set.contains(&p));
                }
            }
            let json = serde_json::to_string(&watermark).unwrap();
            prop_assert_eq!(serde_json::from_str::<Watermark>(&json).unwrap(), watermark);
        }
    }
}
