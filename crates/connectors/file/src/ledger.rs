//! Which records of a file are resolved: what is kept in the state.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use brigade_core::IncarnationId;
use brigade_core::watermark::Watermark;
use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::lines::Record;
use crate::settings::Form;
use crate::trace::{Trace, hash};

/// A file's position. Version 1 on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    version: u32,
    /// The file's name when it was first read, for people.
    pub(crate) path: String,
    /// How the file begins, as far as it was there when it was last looked at.
    pub(crate) fingerprint: Fingerprint,
    /// Which life of the file this is: one that is written anew is another file, whatever it begins with.
    #[serde(default)]
    life: String,
    /// Which records are resolved.
    pub(crate) records: Watermark,
    /// Where to go on: the number of a record below which all are resolved, and where it begins, in
    /// uncompressed bytes.
    pub(crate) next: (u64, u64),
    /// The last record, if it had no line's end when it was resolved: it may have been written on since. Its range
    /// ends where the file ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unfinished: Option<Trace>,
    /// A record below `next`, the last that can be known again: where it does not stand any more, the file is another
    /// one. Positions of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Trace>,
    /// As what the file was read. Positions of earlier versions do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    form: Option<Form>,
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
/// What stands before the directory, where that tells files from others, too.
const IN: &str = " in ";

/// The key of a file whose identity another file has, too; none where the identity has the device.
pub(crate) fn in_directory(identity: &str, directory: &Path) -> Option<String> {
    let (born, inode) = identity.strip_prefix(BORN)?.rsplit_once(':')?;
    Some(format!("{BORN}{born}{IN}{}:{inode}", directory.display()))
}

/// The positions of files, by what tells these from others.
#[derive(Debug)]
pub(crate) struct Positions {
    by_identity: HashMap<String, Position>,
    /// Those by device and inode.
    without_time: Vec<String>,
    inodes: HashSet<u64>,
    /// Whether there are some with a directory.
    by_directory: bool,
}

impl Positions {
    pub(crate) fn new(positions: Vec<(String, Position)>) -> Self {
        let identities = positions.iter().map(|(identity, _)| identity);
        let without_time = identities.filter(|identity| !identity.starts_with(BORN));
        let without_time = without_time.cloned().collect();
        let inodes = positions.iter().filter_map(|(identity, _)| inode_of(identity).parse().ok());
        let inodes = inodes.collect();
        let by_directory = positions.iter().any(|(identity, _)| identity.contains(IN));
        let by_identity = positions.into_iter().collect();
        Self { by_identity, without_time, inodes, by_directory }
    }

    /// Whether a directory tells some from others of the same identity.
    pub(crate) fn any_by_directory(&self) -> bool {
        self.by_directory
    }

    /// Whether a file of this inode may be among them.
    pub(crate) fn knows_inode(&self, inode: u64) -> bool {
        self.inodes.contains(&inode)
    }

    /// Whether some are kept by device and inode, as long as the time was not part of an identity.
    pub(crate) fn may_be_without_time(&self) -> bool {
        !self.without_time.is_empty()
    }

    /// The position that is kept by this key.
    pub(crate) fn get(&self, identity: &str) -> Option<&Position> {
        self.by_identity.get(identity)
    }

    /// The position of a file, if it has one. As long as the time was not part of an identity, it was
    /// kept by device and inode: then its beginning tells.
    pub(crate) fn find(&self, identity: &str, file: &File) -> std::io::Result<Option<Position>> {
        let found = self.by_identity.get(identity);
        if found.is_some() || !identity.starts_with(BORN) {
            return Ok(found.cloned());
        }
        let same_inode = |old: &&String| inode_of(old) == inode_of(identity);
        for old in self.without_time.iter().filter(same_inode) {
            if let Some(position) = self.by_identity[old].as_of(file)? {
                return Ok(Some(Position { replaces: Some(old.clone()), ..position }));
            }
        }
        Ok(None)
    }

    pub(crate) fn insert(&mut self, identity: String, position: Position) {
        self.inodes.extend(inode_of(&identity).parse::<u64>());
        self.by_directory |= identity.contains(IN);
        self.by_identity.insert(identity, position);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Position)> {
        self.by_identity.iter()
    }
}

/// The inode of an identity that no other file ever has, as it has a time.
pub(crate) fn inode_of_born(identity: &str) -> Option<u64> {
    inode_of(identity.strip_prefix(BORN)?).parse().ok()
}

/// The last part of an identity.
fn inode_of(identity: &str) -> &str {
    identity.rsplit(':').next().unwrap_or_default()
}

impl Position {
    /// The beginning of a file, in a life of its own.
    pub(crate) fn beginning(path: &str, file: &File, form: Form) -> std::io::Result<Self> {
        Ok(Self {
            version: 1,
            path: path.to_owned(),
            fingerprint: Fingerprint::of(file)?,
            life: format!("{:032x}", fastrand::u128(..)),
            records: Watermark::default(),
            next: (0, 0),
            unfinished: None,
            last: None,
            form: Some(form),
            replaces: None,
        })
    }

    /// Whether nothing of the file was read yet.
    pub(crate) fn is_beginning(&self) -> bool {
        self.next == (0, 0) && self.records == Watermark::default()
    }

    /// Reads what was kept; `None` if it is damaged, or not of a version that is known.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let possible = |position: &Self| {
            let (record, from) = position.next;
            let last = position.unfinished.map_or(0, |last| last.number);
            position.version == 1
                && record.max(from).max(last) <= Watermark::POSITION_MAX
                && position.last.is_none_or(|last| last.number < record && last.range.1 <= from)
        };
        let mut position: Self = serde_json::from_slice(bytes).ok().filter(possible)?;
        if position.life.is_empty() {
            // It was kept when ids hung on the fingerprint, which did not grow.
            position.life = position.fingerprint.to_string();
        }
        Some(position)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and texts always encode")
    }

    /// The position in the file as it is now, if that is still the one that this was kept for: the same beginning, and
    /// of plain lines the same one before those that were not read. Else that is found when what was read is passed
    /// over.
    pub(crate) fn as_of(&self, file: &File) -> std::io::Result<Option<Self>> {
        let Some(fingerprint) = self.fingerprint.now(file)? else { return Ok(None) };
        let last = self.last.filter(|_| self.form == Some(Form::LINES));
        let stands = last.map_or(Ok(true), |last| last.stands_in(file))?;
        Ok(stands.then(|| Self { fingerprint, ..self.clone() }))
    }

    /// As what it was read until now, if reading on as this would count its records otherwise: rows have no header, and
    /// of what is compressed, or resolved out of order, records are passed over by number. Plain lines go on where the
    /// rows ended.
    pub(crate) fn was_read_otherwise(&self, form: Form) -> Option<Form> {
        let goes_on = |kept: &Form| {
            let by_place = form == Form::LINES && self.records.beyond().next().is_none();
            *kept == form || by_place && kept.compression == form.compression
        };
        self.form.filter(|kept| !self.is_beginning() && !goes_on(kept))
    }

    /// Goes on as this from now on. What another form handed out cannot be known again by it.
    pub(crate) fn read_as(self, form: Form) -> Self {
        let last = self.last.filter(|_| self.form == Some(form));
        Self { last, form: Some(form), ..self }
    }

    /// Whether a record stands where another one stood when the file was read.
    pub(crate) fn is_of_another_file(&self, number: u64, record: &Record) -> bool {
        let last = self.last.filter(|last| last.number == number);
        last.is_some_and(|last| !last.is_of(record))
    }

    /// Whether a file of so many records has not all that were read.
    pub(crate) fn is_longer_than(&self, records: u64) -> bool {
        self.last.is_some_and(|last| last.number >= records)
    }

    /// Where to go on in what has grown: a record that had no end is read again.
    pub(crate) fn begins_at(&self) -> (u64, u64) {
        match &self.unfinished {
            Some(last) if self.next == (last.number + 1, last.range.1) => {
                (last.number, last.range.0)
            }
            _ => self.next,
        }
    }

    /// The position of who has read up to here, all of it.
    pub(crate) fn left_at(self, next: (u64, u64), last: Option<Trace>) -> Self {
        let (records, last) = (Watermark::starting_at(next.0), last.or(self.last));
        Self { next, records, unfinished: None, last, ..self }
    }

    /// Whether a record was resolved in an earlier life of its reader, and not only its beginning.
    pub(crate) fn is_resolved(&self, number: u64, record: &Record) -> bool {
        let last = self.unfinished.as_ref().filter(|last| last.number == number);
        let has_grown = last.is_some_and(|last| !last.has_text_of(record));
        self.records.is_resolved(number) && !has_grown
    }

    /// Which life of the file this is, for message ids.
    pub(crate) fn incarnation(&self, identity: &str) -> IncarnationId {
        IncarnationId::of(format!("{identity}:{}", self.life).as_bytes())
    }

    /// The same for a record without an end: the whole one will be another message.
    pub(crate) fn incarnation_of_part(&self, identity: &str, record: &Record) -> IncarnationId {
        let hash = hash(record);
        IncarnationId::of(format!("{identity}:{}:{hash:032x}", self.life).as_bytes())
    }
}

/// A file that is being read: its position, and where what is handed out begins.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    /// The key of its position in the state; none for standard input.
    pub(crate) key: Option<String>,
    pub(crate) position: Position,
    /// Records handed out and not resolved.
    open: BTreeMap<u64, Open>,
    /// The record that will be read next, and where it begins.
    next: (u64, u64),
    /// The last record that was read and can be known again.
    last: Option<Trace>,
    /// The last record that was handed out, if it had no line's end.
    unfinished: Option<Trace>,
}

/// A record that was handed out and is not resolved.
#[derive(Debug, Clone, Copy)]
struct Open {
    /// Where it begins.
    from: u64,
    /// The last one before it that can be known again.
    before: Option<Trace>,
}

impl Progress {
    pub(crate) fn new(key: Option<String>, position: Position) -> Self {
        let (next, last) = (position.begins_at(), position.last);
        Self { key, position, open: BTreeMap::new(), next, last, unfinished: None }
    }

    /// Whether reading on at this position goes on with this file.
    pub(crate) fn goes_on_at(&self, position: &Position) -> bool {
        self.position.life == position.life && self.next == position.next
    }

    /// A record was read and is to be handed out.
    pub(crate) fn hand_out(&mut self, number: u64, record: &Record) {
        self.open.insert(number, Open { from: record.from, before: self.last });
        self.pass_over(number, record);
        self.unfinished = record.unfinished.then(|| Trace::of(number, record));
    }

    /// A record was read that was resolved in an earlier life.
    pub(crate) fn pass_over(&mut self, number: u64, record: &Record) {
        self.next = (number + 1, record.to);
        self.last = Trace::lasting(number, record).or(self.last);
    }

    /// A record is resolved.
    pub(crate) fn resolve(&mut self, record: u64) {
        self.open.remove(&record);
        self.position.records.resolve(record);
        let is_it = |last: &&Trace| last.number == record;
        if let Some(last) = self.unfinished.as_ref().filter(is_it) {
            self.position.unfinished = Some(*last);
        } else if self.position.unfinished.as_ref().is_some_and(|last| is_it(&last)) {
            self.position.unfinished = None;
        }
        let first = self.open.first_key_value();
        (self.position.next, self.position.last) = match first {
            Some((record, Open { from, before })) => ((*record, *from), *before),
            None => (self.next, self.last),
        };
    }

    pub(crate) fn is_open(&self, record: u64) -> bool {
        self.open.contains_key(&record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the first version kept it.
    fn position(low: u64, beyond: &str, next: u64) -> Option<Position> {
        let text = format!(
            "{{\"version\":1,\"path\":\"f\",\"fingerprint\":[0,\"\"],\
             \"records\":{{\"low\":{low},\"beyond\":{{{beyond}}}}},\"next\":[{next},0]}}"
        );
        Position::decode(text.as_bytes())
    }

    fn record(from: u64, to: u64, text: &'static str) -> Record {
        let bytes = bytes::Bytes::from_static(text.as_bytes());
        Record { from, to, bytes, truncated: None, broken: None, unfinished: false }
    }

    #[test]
    fn a_record_that_had_no_end_and_has_grown_is_another_one() {
        let mut progress = Progress::new(None, position(0, "", 0).unwrap());
        progress.hand_out(0, &record(0, 2, "1"));
        progress.hand_out(1, &Record { unfinished: true, ..record(2, 4, "12") });
        progress.resolve(1);
        let kept = Position::decode(&progress.position.encode()).unwrap();
        assert_eq!(kept.begins_at(), (0, 0), "the first is open");
        progress.resolve(0);
        let kept = Position::decode(&progress.position.encode()).unwrap();
        assert_eq!((kept.next, kept.begins_at()), ((2, 4), (1, 2)), "it is read again");
        assert!(kept.is_resolved(1, &record(2, 5, "12")), "it got its end");
        let grown = record(2, 7, "1234");
        assert!(!kept.is_resolved(1, &grown));
        let mut progress = Progress::new(None, kept);
        progress.hand_out(1, &grown);
        progress.hand_out(2, &record(7, 9, "5"));
        progress.resolve(2);
        let kept = Position::decode(&progress.position.encode()).unwrap();
        assert_eq!(kept.begins_at(), (1, 2));
        assert!(!kept.is_resolved(1, &grown), "as long as it is not resolved anew");
        progress.resolve(1);
        let kept = Position::decode(&progress.position.encode()).unwrap();
        assert_eq!((kept.begins_at(), kept.is_resolved(1, &grown)), ((3, 9), true));
        assert_eq!(kept.records, Watermark::starting_at(3));
    }

    #[test]
    fn ids_of_what_was_kept_before_lives_had_names_stay() {
        let mut kept = position(0, "", 0).unwrap();
        let before = IncarnationId::of(b"born 1:2:0:");
        assert_eq!(kept.incarnation("born 1:2"), before);
        kept = Position::decode(&kept.encode()).unwrap();
        assert_eq!(kept.incarnation("born 1:2"), before);
    }

    #[test]
    fn a_position_that_cannot_be_is_none() {
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
            let mut kept = position(0, "", 0).expect("it can be");
            let mut resolved = std::collections::BTreeSet::new();
            for life in lives {
                let mut progress = Progress::new(Some("k".into()), kept.clone());
                let (first, from) = kept.next;
                prop_assert_eq!(from, first * 10, "numbers and offsets go together");
                for record in first..RECORDS {
                    let read = self::record(record * 10, (record + 1) * 10, "");
                    if kept.records.is_resolved(record) {
                        progress.pass_over(record, &read);
                    } else {
                        prop_assert!(!resolved.contains(&record));
                        progress.hand_out(record, &read);
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
