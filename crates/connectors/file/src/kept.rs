//! What the state keeps of a file that is written.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::Arc;

use brigade_core::connector::ConnectorError;
use brigade_core::state::{StateStore, StoreOp};
use bytes::Bytes;

/// What the state [keeps](Kept) of files, by path.
const SPACE: &str = "file/length";

/// Where the state keeps what it keeps of one file.
pub(crate) struct Account {
    state: Arc<dyn StateStore>,
    /// The file's path.
    name: String,
}

impl Account {
    pub(crate) fn new(path: &Path, state: &Arc<dyn StateStore>) -> Self {
        Self { state: Arc::clone(state), name: path.display().to_string() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn load(&self) -> Result<Option<Kept>, ConnectorError> {
        let kept = self.state.load(SPACE, &self.name).await?;
        // Without it, what was written and not committed might stay.
        let unreadable = || {
            ConnectorError::permanent(format!(
                "the state keeps a length of {} that this program cannot read: use the program that \
                 wrote it, or another `state`",
                self.name
            ))
        };
        kept.map(|bytes| Kept::decode(&bytes).ok_or_else(unreadable)).transpose()
    }

    pub(crate) fn put(&self, kept: &Kept) -> StoreOp {
        StoreOp::Put { space: SPACE.into(), key: self.name.clone(), value: kept.encode() }
    }

    pub(crate) async fn commit(&self, kept: &Kept) -> Result<(), ConnectorError> {
        self.state.commit(vec![self.put(kept)]).await
    }
}

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
