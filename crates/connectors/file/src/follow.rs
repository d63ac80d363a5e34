//! Following one file while it grows, over rotation and truncation.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use brigade_core::watermark::Watermark;

use crate::ledger::{Position, identity};
use crate::lines::Lines;
use crate::reader::{Count, Reader, Said, Step};

/// How long a file has to be quiet that has lost its name to another, before it is left: its writer
/// has it open until it is told.
const QUIET: Duration = Duration::from_secs(1);
/// How long a file that was left has to be quiet before nobody looks at it any more.
const KEPT: Duration = Duration::from_secs(60);

/// Follows the file of a name, and the files that had the name before it.
pub(crate) struct Follower<'r> {
    reader: &'r mut Reader,
    path: PathBuf,
    /// The key of the file whose records the consumer expects.
    told: Option<String>,
    /// How far files were read that were left, by key; empty lines count.
    left: HashMap<String, u64>,
    /// The file that was left last, and when something last came from it.
    last: Option<(Followed, Instant)>,
}

/// A file that can be read.
struct Opened {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    key: String,
}

/// A file that is being read.
struct Followed {
    path: PathBuf,
    file: File,
    key: String,
    /// Where it began; none while it has no whole line, as nothing tells it from others then.
    position: Option<Position>,
    lines: Lines<File>,
    /// The number of the next record, and where it begins.
    next: (u64, u64),
}

impl<'r> Follower<'r> {
    pub(crate) fn new(reader: &'r mut Reader) -> Self {
        let path = reader.settings.path();
        Self { reader, path, told: None, left: HashMap::new(), last: None }
    }

    pub(crate) fn run(mut self) -> Step<()> {
        let first = self.first()?;
        let mut current = self.begin(first)?;
        let mut quiet: Option<Instant> = None;
        loop {
            let grew = self.read_on(&mut current, false)?;
            self.look_at_the_last()?;
            match self.after(&current)? {
                None => quiet = None,
                Some(_) if grew || quiet.is_none() => quiet = Some(Instant::now()),
                Some(next) if quiet.is_some_and(|since| since.elapsed() >= QUIET) => {
                    current = self.go_on_to(next, current)?;
                    quiet = None;
                    continue;
                }
                Some(_) => {}
            }
            self.reader.pause()?;
        }
    }

    /// The file to begin with: the oldest with lines that were not read, else the one of the name.
    fn first(&mut self) -> Step<Opened> {
        let name = self.path.display().to_string();
        let mut told = !self.reader.positions.iter().any(|(_, position)| position.path == name);
        loop {
            let named = self.open(&self.path)?;
            let (mut others, known) = self.others(named.as_ref(), None)?;
            if let (Some(named), false) = (&named, known || told) {
                told = true;
                if self.known(named)?.is_none() {
                    tracing::warn!(
                        queue = %self.reader.queue, file = %name,
                        "the file that was read before is not there any more, nor in its directory \
                         by another name: what was written to it after it was read is not read"
                    );
                }
            }
            if !others.is_empty() {
                return Ok(others.remove(0));
            }
            if let Some(named) = named {
                return Ok(named);
            }
            self.reader.pause()?;
        }
    }

    /// What is read after this file, once another has its name: the oldest that came between them,
    /// else the one of the name.
    fn after(&self, current: &Followed) -> Step<Option<Opened>> {
        let Some(named) = self.open(&self.path)?.filter(|named| named.key != current.key) else {
            return Ok(None);
        };
        // They are looked for when the named one is open: whatever had the name before is found.
        let (mut others, _) = self.others(Some(&named), Some(current))?;
        Ok(Some(if others.is_empty() { named } else { others.remove(0) }))
    }

    /// The files of the directory, oldest first, that hold what was not read: those known by their
    /// positions, and those that had the name after the current or the newest known one. And whether
    /// there is one that is known.
    fn others(
        &self,
        named: Option<&Opened>,
        current: Option<&Followed>,
    ) -> Step<(Vec<Opened>, bool)> {
        let (mut unread, mut newer) = (Vec::new(), Vec::new());
        let mut since: Option<SystemTime> = None;
        if let Some(current) = current {
            since = current.file.metadata().and_then(|found| found.modified()).ok();
        }
        let used = [
            named.map(|named| &named.key),
            current.map(|current| &current.key),
            self.last.as_ref().map(|(last, _)| &last.key),
        ];
        let mut any = false;
        for (path, rotated) in self.candidates()? {
            // It may have got another name since, or belong to somebody else.
            let Ok(file) = File::open(&path) else { continue };
            let opened = self.opened(path, file)?;
            if used.contains(&Some(&opened.key)) {
                continue;
            }
            let modified = opened.modified();
            match self.known(&opened)? {
                Some(position) => {
                    any = true;
                    if current.is_none() {
                        since = since.max(Some(modified));
                    }
                    let read = self.left.get(&opened.key).copied().unwrap_or(position.next.1);
                    if opened.metadata.len() > read {
                        unread.push(opened);
                    }
                }
                None if rotated && opened.metadata.len() > 0 => newer.push(opened),
                None => {}
            }
        }
        // Where the named one is known, what came before it was read before it.
        let named = named.map(|named| self.known(named)).transpose()?.flatten();
        if let (Some(since), None) = (since, named) {
            unread.extend(newer.into_iter().filter(|opened| opened.modified() >= since));
        }
        // Of the same moment, the higher number is the older one.
        let number = |opened: &Opened| (opened.path.as_os_str().len(), opened.path.clone());
        unread.sort_by_key(|opened| (opened.modified(), Reverse(number(opened))));
        Ok((unread, any))
    }

    /// The files of the directory that may be known or have had the name, and whether their names
    /// say that they had it.
    fn candidates(&self) -> Step<Vec<(PathBuf, bool)>> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or(Path::new("."));
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.reader.wrong(directory, &error)),
        };
        let name = self.path.file_name().unwrap_or_default();
        let candidate = |entry: std::fs::DirEntry| {
            let rotated = is_rotated(name, &entry.file_name());
            let inode = format!(":{}", entry.ino());
            let known = self.reader.positions.iter().any(|(key, _)| key.ends_with(&inode));
            let regular = entry.file_type().is_ok_and(|kind| kind.is_file());
            (regular && (rotated || known)).then(|| (entry.path(), rotated))
        };
        Ok(entries.filter_map(Result::ok).filter_map(candidate).collect())
    }

    fn open(&self, path: &Path) -> Step<Option<Opened>> {
        self.reader.refuse_special(path)?;
        match File::open(path) {
            Ok(file) => self.opened(path.to_path_buf(), file).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.reader.wrong(path, &error)),
        }
    }

    fn opened(&self, path: PathBuf, file: File) -> Step<Opened> {
        let metadata = file.metadata().map_err(|error| self.reader.wrong(&path, &error))?;
        let key = identity(&metadata);
        Ok(Opened { path, file, metadata, key })
    }

    /// How far a file was read, if it is one that was.
    fn known(&self, opened: &Opened) -> Step<Option<Position>> {
        let wrong = |error: std::io::Error| self.reader.wrong(&opened.path, &error);
        let position = self.reader.positions.find(&opened.key, &opened.file).map_err(wrong)?;
        let Some(position) = position.filter(|p| p.next.1 <= opened.metadata.len()) else {
            return Ok(None);
        };
        let same = position.is_of(&opened.file).map_err(wrong)?;
        Ok(same.then_some(position))
    }

    /// Begins with a file, or goes on where it was left.
    fn begin(&self, opened: Opened) -> Step<Followed> {
        let position = self.known(&opened)?;
        let next = position.as_ref().map_or((0, 0), |position| position.next);
        let Opened { path, file, key, .. } = opened;
        let lines = self.lines(&path, &file, next.1)?;
        Ok(Followed { path, file, key, position, lines, next })
    }

    fn lines(&self, path: &Path, mut file: &File, from: u64) -> Step<Lines<File>> {
        let wrong = |error: std::io::Error| self.reader.wrong(path, &error);
        file.seek(SeekFrom::Start(from)).map_err(wrong)?;
        let file = file.try_clone().map_err(wrong)?;
        Ok(Lines::new(file, from, self.reader.settings.max_message_bytes()))
    }

    /// Leaves a file for the next one.
    fn go_on_to(&mut self, next: Opened, mut current: Followed) -> Step<Followed> {
        if let Some((mut last, _)) = self.last.take() {
            self.finish(&mut last)?;
        }
        self.leave(&mut current);
        self.last = Some((current, Instant::now()));
        self.begin(next)
    }

    /// Reads what a late writer has put into the file that was left last.
    fn look_at_the_last(&mut self) -> Step<()> {
        let Some((mut last, since)) = self.last.take() else { return Ok(()) };
        let grew = self.read_on(&mut last, false)?;
        if !grew && since.elapsed() >= KEPT {
            return self.finish(&mut last);
        }
        self.last = Some((last, if grew { Instant::now() } else { since }));
        Ok(())
    }

    /// What is left of a file is its end, finished or not.
    fn finish(&mut self, followed: &mut Followed) -> Step<()> {
        self.read_on(followed, true)?;
        self.leave(followed);
        Ok(())
    }

    /// Notes how far a file was read, should it grow or come again.
    fn leave(&mut self, followed: &mut Followed) {
        let Some(position) = &followed.position else { return };
        let mut left = position.clone();
        left.next = followed.next;
        left.records = Watermark::starting_at(followed.next.0);
        self.reader.positions.insert(followed.key.clone(), left);
        self.left.insert(followed.key.clone(), followed.lines.read_to());
    }

    /// Says what there is now, and whether there was anything; a last line without an end only if
    /// it is the end.
    fn read_on(&mut self, followed: &mut Followed, end: bool) -> Step<bool> {
        let wrong = |reader: &Reader, error| reader.wrong(&followed.path, &error);
        let found = followed.file.metadata().map_err(|e| wrong(self.reader, e))?;
        let cut = match &followed.position {
            Some(position) if found.len() >= followed.lines.read_to() => {
                !position.is_of(&followed.file).map_err(|e| wrong(self.reader, e))?
            }
            other => other.is_some(),
        };
        if cut {
            tracing::info!(
                queue = %self.reader.queue, file = %followed.path.display(),
                "the file was cut; it is read from its beginning"
            );
            followed.lines = self.lines(&followed.path, &followed.file, 0)?;
            (followed.position, followed.next, self.told) = (None, (0, 0), None);
        }
        if followed.position.is_none() {
            let whole = Position::can_begin(&followed.file).map_err(|e| wrong(self.reader, e))?;
            if !(whole || end && found.len() > 0) {
                return Ok(cut);
            }
            let name = followed.path.display().to_string();
            let position = Position::beginning(&name, &followed.file);
            followed.position = Some(position.map_err(|e| wrong(self.reader, e))?);
        }
        let before = followed.lines.read_to();
        if found.len() <= before && !end {
            return Ok(cut);
        }
        self.say(followed, end)?;
        Ok(cut || followed.lines.read_to() > before)
    }

    fn say(&mut self, followed: &mut Followed, end: bool) -> Step<()> {
        let Some(position) = &followed.position else { return Ok(()) };
        if self.told.as_ref() != Some(&followed.key) {
            let mut position = position.clone();
            position.next = followed.next;
            self.reader.say(Said::File { key: Some(followed.key.clone()), position })?;
            self.told = Some(followed.key.clone());
        }
        let resolved = |record: u64| position.records.is_resolved(record);
        let mut count = Count { next: followed.next, resolved: &resolved };
        let lines = &mut followed.lines;
        lines.unfinished = end;
        self.reader.drain(&followed.path, lines, &mut count)?;
        followed.next = count.next;
        Ok(())
    }
}

impl Opened {
    fn modified(&self) -> SystemTime {
        self.metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
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
