//! What the state keeps of a file that is written.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::Arc;

use brigade_core::connector::ConnectorError;
use brigade_core::state::{StateStore, StoreOp};
use bytes::Bytes;

/// How much of each file was committed, by path, as long as it was not kept of which file of that
/// path.
const LENGTHS: &str = "file/length";
/// Which file such a length is of.
const UNNAMED: &str = "";

/// Where the state keeps what it keeps of one path. A length is written only by who has the file
/// locked; each writer's note is a key of its own, so that nobody writes back what another took out.
pub(crate) struct Account {
    state: Arc<dyn StateStore>,
    /// The file's path.
    name: String,
    /// The space of the lengths, by what tells files from others, whatever their names.
    lengths: Arc<str>,
    /// The space of the notes, by the writers' lives.
    notes: Arc<str>,
}

/// How much is committed, and who may have written beyond it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Of each file that has the path, or had it and was not looked for since. Usually it is one;
    /// none if nothing was ever written.
    pub(crate) lengths: BTreeMap<String, u64>,
    /// The lives of the writers that have the file open, or ended without a word.
    pub(crate) writers: Vec<String>,
}

impl Account {
    pub(crate) fn new(path: &Path, state: &Arc<dyn StateStore>) -> Self {
        let name = path.display().to_string();
        let [lengths, notes] = ["lengths", "writers"].map(|kind| format!("file/{kind}:{name}"));
        Self { state: Arc::clone(state), lengths: lengths.into(), notes: notes.into(), name }
    }

    /// The account of another path.
    pub(crate) fn of(&self, path: &Path) -> Self {
        Self::new(path, &self.state)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn load(&self) -> Result<Kept, ConnectorError> {
        let lengths = self.state.scan(&self.lengths, "");
        let notes = self.state.scan(&self.notes, "");
        let (lengths, notes) = tokio::try_join!(lengths, notes)?;
        let mut kept = match lengths.is_empty() {
            true => match self.state.load(LENGTHS, &self.name).await? {
                Some(unnamed) => Kept::of_unnamed(&unnamed).ok_or_else(|| self.unreadable())?,
                None => Kept::default(),
            },
            false => Kept::default(),
        };
        for (file, length) in lengths {
            kept.lengths.insert(file, number(&length).ok_or_else(|| self.unreadable())?);
        }
        kept.writers.extend(notes.into_iter().map(|(life, _)| life));
        Ok(kept)
    }

    /// How much of one file is committed.
    pub(crate) async fn length_of(&self, file: &str) -> Result<Option<u64>, ConnectorError> {
        let length = self.state.load(&self.lengths, file).await?;
        length.map(|length| number(&length).ok_or_else(|| self.unreadable())).transpose()
    }

    /// Without it, what was written and not committed might stay.
    fn unreadable(&self) -> ConnectorError {
        ConnectorError::permanent(format!(
            "the state keeps a length of {} that this program cannot read: use the program that \
             wrote it, or another `state`",
            self.name
        ))
    }

    pub(crate) fn put(&self, file: &str, length: u64) -> StoreOp {
        let (space, key) = (Arc::clone(&self.lengths), file.to_owned());
        StoreOp::Put { space, key, value: length.to_string().into() }
    }

    /// Puts a file's length and a writer's note, and takes back the notes of others, and the
    /// lengths of files that had the path before.
    pub(crate) async fn enter(
        &self,
        (file, length): (&str, u64),
        life: &str,
        others: &[String],
        before: impl Iterator<Item = &String>,
    ) -> Result<(), ConnectorError> {
        let (space, key) = (Arc::clone(&self.notes), life.to_owned());
        let mut ops =
            vec![self.put(file, length), StoreOp::Put { space, key, value: Bytes::new() }];
        ops.extend(others.iter().map(|other| self.take_back(other)));
        ops.extend(before.map(|file| match &**file {
            UNNAMED => StoreOp::Delete { space: LENGTHS.into(), key: self.name.clone() },
            file => StoreOp::Delete { space: Arc::clone(&self.lengths), key: file.to_owned() },
        }));
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
    /// A length; the notes of earlier versions stand behind it.
    fn of_unnamed(bytes: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
        let length = words.next()?.parse().ok()?;
        let lengths = BTreeMap::from([(UNNAMED.to_owned(), length)]);
        Some(Self { lengths, writers: words.map(str::to_owned).collect() })
    }

    /// The files that had the path before this one.
    pub(crate) fn before<'k>(&'k self, file: &'k str) -> impl Iterator<Item = &'k String> {
        self.lengths.keys().filter(move |other| **other != file)
    }

    /// How much of a file is committed: where nothing of it is known, as much as of the one before,
    /// as it may be a copy of it.
    pub(crate) fn committed(&self, file: &str) -> Option<u64> {
        self.lengths.get(file).or_else(|| self.lengths.values().max()).copied()
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
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
        let of = |lengths: &[(&str, u64)], writer: Option<&String>| Kept {
            lengths: lengths.iter().map(|(file, length)| ((*file).to_owned(), *length)).collect(),
            writers: writer.into_iter().cloned().collect(),
        };
        let none: [String; 0] = [];
        other.enter(("x", 1), &b, &[], none.iter()).await.expect("it is kept");
        account.enter(("x", 17), &a, &[], none.iter()).await.expect("it is kept");
        let kept = account.load().await.expect("it is read");
        assert_eq!(kept, of(&[("x", 17)], Some(&a)));
        assert_eq!((kept.committed("x"), kept.committed("y")), (Some(17), Some(17)));
        account.enter(("y", 3), &b, &[a], kept.before("y")).await.expect("it is kept");
        assert_eq!(account.load().await.expect("it is read"), of(&[("y", 3)], Some(&b)));
        account.leave(&b).await.expect("it is kept");
        assert_eq!(account.load().await.expect("it is read"), of(&[("y", 3)], None));
        assert_eq!(account.length_of("y").await.expect("it is read"), Some(3));
        assert_eq!(account.length_of("x").await.expect("it is read"), None);
    }

    #[test]
    fn a_length_is_read_also_with_notes_behind_it() {
        let kept = Kept {
            lengths: BTreeMap::from([(UNNAMED.to_owned(), 17)]),
            writers: vec!["a".to_owned(), "b".to_owned()],
        };
        assert_eq!(Kept::of_unnamed(b"17 a b"), Some(kept));
        assert_eq!(Kept::of_unnamed(b"-1"), None);
        assert_eq!(Kept::of_unnamed(b"\xff"), None);
        assert_eq!(Kept::of_unnamed(b""), None);
    }
}
