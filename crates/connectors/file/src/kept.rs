//! What the state keeps of a file that is written.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use bytes::Bytes;

/// How much of a file is committed, and who may have written beyond it: a length, and the lives of
/// the writers that have the file open, as a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) length: u64,
    pub(crate) writers: Vec<Arc<str>>,
}

impl Kept {
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
        let length = words.next()?.parse().ok()?;
        Some(Self { length, writers: words.map(Arc::from).collect() })
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut text = self.length.to_string();
        for writer in &self.writers {
            text.push(' ');
            text.push_str(writer);
        }
        text.into()
    }

    pub(crate) fn has(&self, life: &str) -> bool {
        self.writers.iter().any(|writer| **writer == *life)
    }

    pub(crate) fn has_others(&self, life: &str) -> bool {
        self.writers.iter().any(|writer| **writer != *life)
    }
}

/// A name that no other writer has had.
pub(crate) fn new_life() -> Arc<str> {
    format!("{:016x}", RandomState::new().build_hasher().finish()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again() {
        let (a, b) = (new_life(), new_life());
        assert_ne!(a, b);
        for writers in [vec![], vec![Arc::clone(&a)], vec![a, b]] {
            let kept = Kept { length: 17, writers };
            assert_eq!(Kept::decode(&kept.encode()), Some(kept));
        }
        assert_eq!(Kept::decode(b"-1"), None);
        assert_eq!(Kept::decode(b"\xff"), None);
        assert_eq!(Kept::decode(b""), None);
    }
}
