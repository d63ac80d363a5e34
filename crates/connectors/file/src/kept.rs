//! What the state keeps of a file that is written.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::Arc;

use brigade_core::connector::ConnectorError;
use brigade_core::state::{StateStore, StoreOp};
use bytes::Bytes;

/// How much of each file is committed, by path.
const LENGTHS: &str = "file/length";

/// Where the state keeps what it keeps of one file. A length is written only by who has the file
/// locked; each writer's note is a key of its own, so that nobody writes back what another took out.
pub(crate) struct Account {
    state: Arc<dyn StateStore>,
    /// The file's path.
    name: String,
    /// The space of the notes, by the writers' lives.
    notes: Arc<str>,
}

/// How much of a file is committed, and who may have written beyond it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// `None` if nothing was ever written.
    pub(crate) length: Option<u64>,
    /// The lives of the writers that have the file open, or ended without a word.
    pub(crate) writers: Vec<String>,
}

impl Account {
    pub(crate) fn new(path: &Path, state: &Arc<dyn StateStore>) -> Self {
        let name = path.display().to_string();
        Self { state: Arc::clone(state), notes: format!("file/writers:{name}").into(), name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn load(&self) -> Result<Kept, ConnectorError> {
        let length = self.state.load(LENGTHS, &self.name);
        let notes = self.state.scan(&self.notes, "");
        let (length, notes) = tokio::try_join!(length, notes)?;
        let mut kept = match length {
            Some(length) => Kept::decode(&length).ok_or_else(|| self.unreadable())?,
            None => Kept::default(),
        };
        kept.writers.extend(notes.into_iter().map(|(life, _)| life));
        Ok(kept)
    }

    /// Without it, what was written and not committed might stay.
    fn unreadable(&self) -> ConnectorError {
        ConnectorError::permanent(format!(
            "the state keeps a length of {} that this program cannot read: use the program that \
             wrote it, or another `state`",
            self.name
        ))
    }

    pub(crate) fn put(&self, length: u64) -> StoreOp {
        let value = length.to_string().into();
        StoreOp::Put { space: LENGTHS.into(), key: self.name.clone(), value }
    }

    /// Puts a length and a writer's note, and takes back the notes of others.
    pub(crate) async fn enter(
        &self,
        length: u64,
        life: &str,
        others: &[String],
    ) -> Result<(), ConnectorError> {
        let (space, key) = (Arc::clone(&self.notes), life.to_owned());
        let mut ops = vec![self.put(length), StoreOp::Put { space, key, value: Bytes::new() }];
        ops.extend(others.iter().map(|other| self.take_back(other)));
        self.state.commit(ops).await
    }

    /// Takes back a writer's note.
    pub(crate) async fn leave(&self, life: &str) -> Result<(), ConnectorError> {
        self.state.commit(vec![self.take_back(life)]).await
    }

    fn take_back(&self, life: &str) -> StoreOp {
        StoreOp::Delete { space: Arc::clone(&self.notes), key: life.to_owned() }
    }
}

impl Kept {
    /// A length; the notes of earlier versions stand behind it, until the next length is put.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
        let length = words.next()?.parse().ok()?;
        Some(Self { length: Some(length), writers: words.map(str::to_owned).collect() })
    }
}

/// A name that no other writer has had.
pub(crate) fn new_life() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests {
    use brigade_embedded::{Options, Store};

    use super::*;

    #[tokio::test]
    async fn what_is_kept_is_read_again() {
        let place = tempfile::tempdir().expect("a directory");
        let state = Store::open(place.path(), Options::default()).expect("a state");
        let state: Arc<dyn StateStore> = state;
        let [account, other] = ["/out", "/out2"].map(|name| Account::new(Path::new(name), &state));
        assert_eq!(account.load().await.expect("nothing yet"), Kept::default());
        let (a, b) = (new_life(), new_life());
        assert_ne!(a, b);
        other.enter(1, &b, &[]).await.expect("it is kept");
        account.enter(17, &a, &[]).await.expect("it is kept");
        let kept = Kept { length: Some(17), writers: vec![a.clone()] };
        assert_eq!(account.load().await.expect("it is read"), kept);
        account.enter(18, &b, &[a]).await.expect("it is kept");
        account.leave(&b).await.expect("it is kept");
        let kept = Kept { length: Some(18), writers: Vec::new() };
        assert_eq!(account.load().await.expect("it is read"), kept);
    }

    #[test]
    fn a_length_is_read_also_with_notes_behind_it() {
        let kept = Kept { length: Some(17), writers: vec!["a".to_owned(), "b".to_owned()] };
        assert_eq!(Kept::decode(b"17 a b"), Some(kept));
        assert_eq!(Kept::decode(b"-1"), None);
        assert_eq!(Kept::decode(b"\xff"), None);
        assert_eq!(Kept::decode(b""), None);
    }
}
