//! Which records of a file are resolved: what is kept in the state.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::UNIX_EPOCH;

use brigade_core::IncarnationId;
use brigade_core::watermark::Watermark;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

/// How many of a file's first bytes make its fingerprint, at most.
const FINGERPRINT_MAX: u64 = 1024;

/// A file's position. Version 1 on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    version: u32,
    /// The file's name when it was first read, for people.
    pub(crate) path: String,
    /// The first bytes of the file: how many, and their XXH3-128.
    fingerprint: (u64, String),
    /// Which records are resolved.
    pub(crate) records: Watermark,
    /// Where to go on: the number of a record below which all are resolved, and where it begins, in
    /// uncompressed bytes.
    pub(crate) next: (u64, u64),
    /// The key that it was kept by until now, if that is another.
    #[serde(skip)]
    pub(crate) replaces: Option<String>,
}

/// What tells a file from others, whatever its name: its inode, and when it was made, as inodes are
/// used again. Where the file system does not say that, the device instead, though it may have another
/// number after each start of the machine.
pub(crate) fn identity(metadata: &Metadata) -> String {
    let born = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    match born {
        Some(born) => format!("{BORN}{}:{}", born.as_nanos(), metadata.ino()),
        None => format!("{}:{}", metadata.dev(), metadata.ino()),
    }
}

/// What an identity with a time begins with.
const BORN: &str = "born ";

/// The positions of files, by what tells these from others.
#[derive(Debug)]
pub(crate) struct Positions {
    by_identity: HashMap<String, Position>,
    /// Those by device and inode.
    without_time: Vec<String>,
}

impl Positions {
    pub(crate) fn new(positions: Vec<(String, Position)>) -> Self {
        let identities = positions.iter().map(|(identity, _)| identity);
        let without_time = identities.filter(|identity| !identity.starts_with(BORN));
        let without_time = without_time.cloned().collect();
        Self { by_identity: positions.into_iter().collect(), without_time }
    }

    /// The position of a file, if it has one. As long as the time was not part of an identity, it was
    /// kept by device and inode: then its beginning tells.
    pub(crate) fn find(&self, identity: &str, file: &File) -> std::io::Result<Option<Position>> {
        let found = self.by_identity.get(identity);
        if found.is_some() || !identity.starts_with(BORN) {
            return Ok(found.cloned());
        }
        let inode = &identity[identity.rfind(':').unwrap_or_default()..];
        for old in self.without_time.iter().filter(|old| old.ends_with(inode)) {
            let position = &self.by_identity[old];
            if position.is_of(file)? {
                let replaces = Some(old.clone());
                return Ok(Some(Position { replaces, ..position.clone() }));
            }
        }
        Ok(None)
    }

    pub(crate) fn insert(&mut self, identity: String, position: Position) {
        self.by_identity.insert(identity, position);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Position)> {
        self.by_identity.iter()
    }
}

impl Position {
    /// The beginning of a file.
    pub(crate) fn beginning(path: &str, file: &File) -> std::io::Result<Self> {
        let length = file.metadata()?.len().min(FINGERPRINT_MAX);
        Ok(Self {
            version: 1,
            path: path.to_owned(),
            fingerprint: (length, hash(file, length)?),
            records: Watermark::default(),
            next: (0, 0),
            replaces: None,
        })
    }

    /// Whether nothing of the file was read yet.
    pub(crate) fn is_beginning(&self) -> bool {
        self.next == (0, 0) && self.records == Watermark::default()
    }

    /// Whether a file that grows has enough to be told from others by: a line, or a whole fingerprint.
    pub(crate) fn can_begin(file: &File) -> std::io::Result<bool> {
        let bytes = first_bytes(file, FINGERPRINT_MAX)?;
        Ok(bytes.contains(&b'\n') || bytes.len() as u64 == FINGERPRINT_MAX)
    }

    /// Reads what was kept; `None` if it is damaged, or not of a version that is known.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let possible = |position: &Self| {
            let (record, from) = position.next;
            position.version == 1 && record.max(from) <= Watermark::POSITION_MAX
        };
        serde_json::from_slice(bytes).ok().filter(possible)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and texts always encode")
    }

    /// Whether the file is still the one that this was kept for: same beginning, not shorter.
    pub(crate) fn is_of(&self, file: &File) -> std::io::Result<bool> {
        let (length, expected) = &self.fingerprint;
        if *length > FINGERPRINT_MAX {
            return Ok(false);
        }
        let enough = file.metadata()?.len() >= *length;
        Ok(enough && hash(file, *length)? == *expected)
    }

    /// Which life of the file this is, for message ids.
    pub(crate) fn incarnation(&self, identity: &str) -> IncarnationId {
        let (length, hash) = &self.fingerprint;
        IncarnationId::of(format!("{identity}:{length}:{hash}").as_bytes())
    }
}

fn hash(file: &File, length: u64) -> std::io::Result<String> {
    Ok(format!("{:032x}", XxHash3_128::oneshot(&first_bytes(file, length)?)))
}

/// The first bytes of a file, so many or all; where it is read stays as it is.
fn first_bytes(file: &File, length: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// A file that is being read: its position, and where what is handed out begins.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// The key of its position in the state; none for standard input.
    pub(crate) key: Option<String>,
    pub(crate) position: Position,
    /// Records handed out and not resolved: where each begins.
    open: BTreeMap<u64, u64>,
    /// The record that will be read next, and where it begins.
    next: (u64, u64),
}

impl Progress {
    pub(crate) fn new(key: Option<String>, position: Position) -> Self {
        let next = position.next;
        Self { key, position, open: BTreeMap::new(), next }
    }

    /// Whether reading on at this position goes on with this file.
    pub(crate) fn goes_on_at(&self, key: Option<&str>, position: &Position) -> bool {
        let is_same_life = self.position.fingerprint == position.fingerprint;
        key.is_some() && self.key.as_deref() == key && is_same_life && self.next == position.next
    }

    /// A record was read and is to be handed out.
    pub(crate) fn hand_out(&mut self, record: u64, from: u64, to: u64) {
        self.open.insert(record, from);
        self.next = (record + 1, to);
    }

    /// A record was read that was resolved in an earlier life.
    pub(crate) fn pass_over(&mut self, record: u64, to: u64) {
        self.next = (record + 1, to);
    }

    /// A record is resolved.
    pub(crate) fn resolve(&mut self, record: u64) {
        self.open.remove(&record);
        self.position.records.resolve(record);
        let first = self.open.first_key_value().map(|(record, from)| (*record, *from));
        self.position.next = first.unwrap_or(self.next);
    }

    pub(crate) fn is_open(&self, record: u64) -> bool {
        self.open.contains_key(&record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_position_that_cannot_be_is_none() {
        let position = |low: u64, beyond: &str, next: u64| {
            let text = format!(
                "{{\"version\":1,\"path\":\"f\",\"fingerprint\":[0,\"\"],\
                 \"records\":{{\"low\":{low},\"beyond\":{{{beyond}}}}},\"next\":[{next},0]}}"
            );
            Position::decode(text.as_bytes())
        };
        assert!(position(1, "\"3\":4", 1).is_some());
        assert!(position(1, "\"1\":4", 1).is_none(), "it touches what is resolved below");
        assert!(position(1, "\"3\":3", 1).is_none(), "an empty range");
        assert!(position(1, "\"3\":6,\"5\":7", 1).is_none(), "they overlap");
        assert!(position(u64::MAX, "", 1).is_none() && position(1, "", u64::MAX).is_none());
        assert!(Position::decode(b"{\"version\":2}").is_none());
    }

    proptest! {
        /// However records are resolved over several lives: no life hands out a record that an
        /// earlier one resolved, and none is passed over that was not resolved.
        #[test]
        fn every_record_is_resolved_once_over_any_number_of_lives(
            lives in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..6),
        ) {
            const RECORDS: u64 = 24;
            let mut kept = Position {
                version: 1, path: "f".into(), fingerprint: (0, String::new()),
                records: Watermark::default(), next: (0, 0), replaces: None,
            };
            let mut resolved = std::collections::BTreeSet::new();
            for life in lives {
                let mut progress = Progress::new(Some("k".into()), kept.clone());
                let (first, from) = kept.next;
                prop_assert_eq!(from, first * 10, "numbers and offsets go together");
                for record in first..RECORDS {
                    if kept.records.is_resolved(record) {
                        progress.pass_over(record, (record + 1) * 10);
                    } else {
                        prop_assert!(!resolved.contains(&record));
                        progress.hand_out(record, record * 10, (record + 1) * 10);
                    }
                }
                prop_assert!((0..first).all(|record| resolved.contains(&record)));
                for pick in life {
                    let record = u64::from(pick) % RECORDS;
                    if progress.is_open(record) {
                        prop_assert!(resolved.insert(record));
                        progress.resolve(record);
                    }
                }
                kept = Position::decode(&progress.position.encode()).expect("it was encoded");
            }
        }
    }
}
