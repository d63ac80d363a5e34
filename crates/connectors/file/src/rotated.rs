//! Finding the files that had the name of a followed one before.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{DirEntry, File, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::directory::named;
use crate::follow::{Followed, Follower};
use crate::ledger::{Position, Positions, identity};
use crate::reader::Step;

/// A file that can be read.
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) metadata: Metadata,
    pub(crate) key: String,
}

impl Opened {
    fn new(path: PathBuf, file: File) -> std::io::Result<Self> {
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        let key = identity(&metadata);
        Ok(Self { path, file, metadata, key })
    }
}

/// A file of the directory that may be known or have had the name. It is not opened: there may be more of them
/// than a process may open files.
struct Candidate {
    path: PathBuf,
    metadata: Metadata,
    key: String,
    /// Whether its name says that it had the other.
    rotated: bool,
}

impl Candidate {
    fn new(entry: &DirEntry, rotated: bool) -> std::io::Result<Self> {
        let metadata = entry.metadata()?;
        let key = identity(&metadata);
        Ok(Self { path: entry.path(), metadata, key, rotated })
    }

    /// Whether it was made, and written, after another was made.
    fn is_newer_than(&self, other: SystemTime) -> bool {
        age(&self.metadata) >= other && modified(&self.metadata) >= other
    }
}

/// What was not read of the files that had the name.
pub(crate) struct Others {
    /// The oldest of them.
    pub(crate) next: Option<Opened>,
    /// Whether there is one that was read before.
    pub(crate) any_known: bool,
}

/// When a file was made; where the file system does not say that, when it was last written.
fn age(metadata: &Metadata) -> SystemTime {
    metadata.created().unwrap_or_else(|_| modified(metadata))
}

fn modified(metadata: &Metadata) -> SystemTime {
    metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
}

impl Follower<'_> {
    /// The file of the name, if it is there and may be read.
    pub(crate) fn named(&mut self) -> Step<Option<Opened>> {
        self.reader.refuse_special(&self.path)?;
        match File::open(&self.path).and_then(|file| Opened::new(self.path.clone(), file)) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => {
                // As a rotation makes it before it says whose it is.
                self.cannot.tell(&self.reader.queue, &self.path, &error);
                Ok(None)
            }
        }
    }

    /// What is read after this file, once another has its name: the oldest that came between them,
    /// else the one of the name.
    pub(crate) fn after(&mut self, current: &Followed) -> Step<Option<Opened>> {
        let Some(named) = self.named()?.filter(|named| named.key != current.key) else {
            return Ok(None);
        };
        // They are looked for when the named one is open: whatever had the name before is found.
        let others = self.others(Some(&named), Some(current))?;
        Ok(others.map(|others| others.next.unwrap_or(named)))
    }

    /// The files of the directory that hold what was not read: those known by their positions, and
    /// those that had the name after the current or the newest known one. None as long as one of them may not
    /// be read: what came after it has to wait.
    pub(crate) fn others(
        &mut self,
        named: Option<&Opened>,
        current: Option<&Followed>,
    ) -> Step<Option<Others>> {
        let Some(candidates) = self.candidates() else { return Ok(None) };
        let (mut unread, mut unknown, mut any_known) = (Vec::new(), Vec::new(), false);
        let mut newest = current.and_then(|current| current.file.metadata().ok());
        let named_key = named.map(|named| &named.key);
        let is_used = |one: &Candidate| {
            let current = current.into_iter().chain(self.late.iter().map(|(late, _)| late));
            let mut keys = current.map(|file| &file.key).chain(named_key);
            keys.any(|key| *key == one.key)
        };
        for candidate in candidates.into_iter().filter(|one| !is_used(one)) {
            match self.read_to(&candidate) {
                Ok(Some(read)) => {
                    any_known = true;
                    let is_newer =
                        newest.as_ref().is_none_or(|m| age(m) <= age(&candidate.metadata));
                    if current.is_none() && is_newer {
                        newest = Some(candidate.metadata.clone());
                    }
                    unread.extend((candidate.metadata.len() > read).then_some(candidate));
                }
                Ok(None) if candidate.rotated && candidate.metadata.len() > 0 => {
                    unknown.push(candidate);
                }
                Ok(None) => {}
                // It has got another name since.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    self.cannot.tell(&self.reader.queue, &candidate.path, &error);
                    return Ok(None);
                }
            }
        }
        // Where the named one is known, what came before it was read before it.
        let named = named.map(|named| self.known(named)).transpose()?.flatten();
        if let (Some(newest), None) = (newest.as_ref().map(age), named) {
            unread.extend(unknown.into_iter().filter(|one| one.is_newer_than(newest)));
        }
        Ok(self.oldest(unread).map(|next| Others { next, any_known }))
    }

    /// How far a file was read, if it is one that was. It is opened only where that has to be known.
    fn read_to(&self, candidate: &Candidate) -> std::io::Result<Option<u64>> {
        let Candidate { path, metadata, key, .. } = candidate;
        let positions = &self.reader.positions;
        let left = |position: &Position| self.left.get(key).copied().unwrap_or(position.next.1);
        let known = positions.get(key);
        match known {
            Some(position) if left(position) == metadata.len() => return Ok(Some(left(position))),
            None if !positions.may_be_without_time() => return Ok(None),
            _ => {}
        }
        let file = match File::open(path) {
            Ok(file) => file,
            // It may be anybody's that has got the inode of one that is gone.
            Err(error) if known.is_none() && error.kind() != ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        Ok(position_in(positions, &file, metadata.len(), key)?.as_ref().map(left))
    }

    /// The file that was made first; none if it may not be read.
    fn oldest(&mut self, mut files: Vec<Candidate>) -> Option<Option<Opened>> {
        // Of the same moment, the higher number is the older one.
        let number = |one: &Candidate| (one.path.as_os_str().len(), one.path.clone());
        files.sort_by_key(|one| (age(&one.metadata), Reverse(number(one))));
        for Candidate { path, .. } in files {
            match File::open(&path).and_then(|file| Opened::new(path.clone(), file)) {
                Ok(opened) => return Some(Some(opened)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    self.cannot.tell(&self.reader.queue, &path, &error);
                    return None;
                }
            }
        }
        Some(None)
    }

    /// The files of the directories that may be known or have had the name; none if one cannot be looked at now.
    fn candidates(&mut self) -> Option<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for place in self.places() {
            let directory = named(place.parent().unwrap_or(Path::new("")));
            match self.listed(directory, place.file_name().unwrap_or_default()) {
                Ok(found) => candidates.extend(found),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    self.cannot.tell(&self.reader.queue, directory, &error);
                    // That may be meant: then nothing in it is found by another name.
                    if error.kind() != ErrorKind::PermissionDenied {
                        return None;
                    }
                }
            }
        }
        // A file may be found beside the link and beside what it leads to.
        candidates.sort_by_key(|one: &Candidate| !one.rotated);
        let mut found = HashSet::new();
        candidates.retain(|one| {
            let metadata = &one.metadata;
            found.insert((
                metadata.dev(),
                metadata.ino(),
                one.path.file_name().map(OsStr::to_owned),
            ))
        });
        Some(candidates)
    }

    /// The name, and where it is a link the one that it leads to, or last led to: that is where a file is rotated.
    fn places(&mut self) -> Vec<PathBuf> {
        if let Ok(target) = self.path.canonicalize() {
            let directory = named(self.path.parent().unwrap_or(Path::new("")));
            let own = directory.canonicalize().ok().zip(self.path.file_name());
            let is_link = own.is_none_or(|(directory, name)| directory.join(name) != target);
            self.target = is_link.then_some(target);
        }
        std::iter::once(self.path.clone()).chain(self.target.clone()).collect()
    }

    /// The files of a directory that may be known or have had this name.
    fn listed(&self, directory: &Path, name: &OsStr) -> std::io::Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let rotated = is_rotated(name, &entry.file_name());
            let known = self.reader.positions.knows_inode(entry.ino());
            let regular = entry.file_type().is_ok_and(|kind| kind.is_file());
            if !(regular && (rotated || known)) {
                continue;
            }
            match Candidate::new(&entry, rotated) {
                Ok(candidate) => candidates.push(candidate),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(candidates)
    }

    /// How far a file was read, if it is one that was.
    pub(crate) fn known(&self, opened: &Opened) -> Step<Option<Position>> {
        let Opened { path, file, metadata, key } = opened;
        let position = position_in(&self.reader.positions, file, metadata.len(), key);
        self.reader.checked(path, position)
    }
}

/// How far a file of this length was read, if it is one that was.
fn position_in(
    positions: &Positions,
    file: &File,
    length: u64,
    key: &str,
) -> std::io::Result<Option<Position>> {
    match positions.find(key, file)?.filter(|position| position.next.1 <= length) {
        Some(position) => position.as_of(file),
        None => Ok(None),
    }
}

/// Whether a name is another with a number or a date behind it, as rotation gives it.
fn is_rotated(name: &OsStr, other: &OsStr) -> bool {
    let rest = other.as_bytes().strip_prefix(name.as_bytes()).unwrap_or_default();
    rest.iter().any(u8::is_ascii_digit)
        && rest.iter().all(|byte| byte.is_ascii_digit() || b".-_:T".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_dates_behind_a_name_tell_of_rotation() {
        let is = |other: &str| is_rotated(OsStr::new("a.log"), OsStr::new(other));
        assert!(is("a.log.1") && is("a.log.12") && is("a.log-20261121"));
        assert!(is("a.log.2026-11-21T10:30"));
        assert!(!is("a.log") && !is("a.log.") && !is("a.log.bak") && !is("a.log.1.gz"));
        assert!(!is("b.log.1") && !is("1"));
    }
}
