//! What a consumer has received and not resolved: which entry each receipt stands for.

use std::collections::HashMap;

use brigade_core::connector::Receipt;

use super::entry::{EntryId, next_odd};

/// Entries by their positions, each with the fence of its last delivery.
#[derive(Debug, Default)]
pub(super) struct Held {
    entries: HashMap<u64, (u64, EntryId)>,
}

impl Held {
    /// Enters an entry that was handed out; returns its position, which no other entry has
    /// meanwhile.
    pub(super) fn enter(&mut self, id: EntryId, fence: u64) -> u64 {
        let position = self.place(id);
        self.entries.insert(position, (fence, id));
        position
    }

    /// Where an entry is, or would be.
    fn place(&self, id: EntryId) -> u64 {
        let mut position = id.position();
        // Two odd ids may have the same number.
        while self.entries.get(&position).is_some_and(|(_, other)| *other != id) {
            position = next_odd(position);
        }
        position
    }

    /// How many entries are held.
    pub(super) fn count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn knows(&self, id: EntryId) -> bool {
        self.entries.contains_key(&self.place(id))
    }

    /// The entry at a position; `None` if only this table could know, and no longer does.
    pub(super) fn id(&self, position: u64) -> Option<EntryId> {
        EntryId::unpack(position).or_else(|| self.entries.get(&position).map(|(_, id)| *id))
    }

    /// Receipts with their entries, and those whose entries are no longer known: these do not
    /// stand.
    pub(super) fn ids(&self, receipts: &[Receipt]) -> (Vec<(Receipt, EntryId)>, Vec<Receipt>) {
        let (mut known, mut gone) = (Vec::with_capacity(receipts.len()), Vec::new());
        for receipt in receipts {
            match self.id(receipt.position) {
                Some(id) => known.push((*receipt, id)),
                None => gone.push(*receipt),
            }
        }
        (known, gone)
    }

    /// Forgets what is resolved, unless it was handed out again since.
    pub(super) fn forget<'r>(&mut self, receipts: impl IntoIterator<Item = &'r Receipt>) {
        for receipt in receipts {
            if self.entries.get(&receipt.position).is_some_and(|(last, _)| *last == receipt.fence) {
                self.entries.remove(&receipt.position);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> EntryId {
        text.parse().expect("it is an id")
    }

    #[test]
    fn an_odd_entry_is_known_for_as_long_as_it_is_held() {
        let mut held = Held::default();
        let odd = id("1763733600000000-0");
        let first = Receipt { position: held.enter(odd, 1), fence: 1 };
        assert_eq!(held.id(first.position), Some(odd));
        // Handed out again while the first is still worked on.
        let second = Receipt { position: held.enter(odd, 2), fence: 2 };
        assert_eq!(first.position, second.position);
        held.forget(&[first]);
        assert!(held.knows(odd));
        held.forget(&[second]);
        assert!(!held.knows(odd));
        assert_eq!(held.ids(&[second]), (Vec::new(), vec![second]));
    }

    #[test]
    fn odd_entries_with_the_same_number_are_told_apart() {
        let mut held = Held::default();
        let (odd, other) = (id("1763733600000000-0"), id("1-1048576"));
        // As if the other id had this position.
        held.entries.insert(odd.position(), (1, other));
        assert!(!held.knows(odd));
        let position = held.enter(odd, 1);
        assert_ne!(position, odd.position());
        assert_eq!((held.id(position), held.id(odd.position())), (Some(odd), Some(other)));
    }
}
