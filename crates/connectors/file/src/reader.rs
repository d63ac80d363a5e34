//! The thread that reads: files one after the other, from where they were left.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brigade_core::connector::ConnectorError;
use rustix::io::Errno;
use tokio::sync::mpsc::Sender;

use crate::devices::Devices;
use crate::fingerprint::{Fingerprint, OneLife};
use crate::follow::Follower;
use crate::ledger::{Position, Positions, identity};
use crate::lines::{Lines, Record, Records};
use crate::paths;
use crate::rows::Rows;
use crate::settings::{Compression, FileFormat, Form, Settings, refuse_special};
use crate::standard;
use crate::told::Told;
use crate::trace::Trace;

/// The most records in one message to the consumer, and their bytes.
const CHUNK: (usize, usize) = (256, 1 << 20);
/// How much of a compressed file, or of one with rows, is read at once.
const READ: usize = 64 << 10;
/// How often a file that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What the thread says.
#[derive(Debug)]
pub(crate) enum Said {
    /// A file begins; its records follow. The key of its position, and the position.
    File { key: Option<String>, position: Box<Position> },
    /// Records of the last file.
    Records(Vec<Numbered>),
    /// There is nothing more, and never will be.
    End,
    /// It cannot go on.
    Failed(ConnectorError),
}

pub(crate) struct Reader {
    pub(crate) queue: Arc<str>,
    pub(crate) settings: Settings,
    /// Positions of an earlier life, and how far this one has read.
    pub(crate) positions: Positions,
    /// What is to be said.
    pub(crate) pending: Pending,
    pub(crate) say: Sender<Vec<Said>>,
    pub(crate) stop: Arc<AtomicBool>,
}

/// What is said at once: of many small files, the state is told in one commit that they were begun.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    said: Vec<Said>,
    records: usize,
    bytes: usize,
}

impl Pending {
    fn is_full(&self) -> bool {
        self.records >= CHUNK.0 || self.bytes >= CHUNK.1 || self.said.len() >= CHUNK.0
    }

    fn push(&mut self, one: Numbered) {
        self.records += 1;
        self.bytes += one.record.bytes.len();
        match self.said.last_mut() {
            Some(Said::Records(records)) => records.push(one),
            _ => self.said.push(Said::Records(vec![one])),
        }
    }
}

/// Why reading ended before its time.
pub(crate) enum Ended {
    /// Nobody listens any more.
    Stopped,
    Failed(ConnectorError),
}

pub(crate) type Step<T> = Result<T, Ended>;

impl Reader {
    pub(crate) fn run(mut self) {
        let ended = match (self.settings.is_standard(), self.settings.follow) {
            (true, _) => self.standard(),
            (false, true) if !self.settings.is_glob() => Follower::new(&mut self).run(),
            _ => self.files(),
        };
        let last = match ended {
            Ok(()) => Said::End,
            Err(Ended::Failed(error)) => Said::Failed(error),
            Err(Ended::Stopped) => return,
        };
        self.pending.said.push(last);
        // Who listens may be gone.
        let _ = self.flush();
    }

    fn standard(&mut self) -> Step<()> {
        let position =
            Position::beginning("-", &self.empty()?, self.settings.form_of(Path::new("-")));
        let position = position.map_err(|error| self.wrong(Path::new("-"), &error))?;
        self.say_file(None, position.clone());
        let max = self.settings.max_message_bytes();
        let path = Path::new("-");
        let reader = decompress(standard::input(), self.settings.compression_of(path));
        let reader = reader.map_err(|error| self.wrong(path, &error))?;
        let mut count = Count { next: (0, 0), last: None, position: &position };
        if self.settings.format_of(path) == FileFormat::Csv {
            let mut csv = Rows::new(reader, max);
            return self.drain(path, &mut csv, &mut count).map(drop);
        }
        let mut lines = Lines::new(reader, 0, max);
        self.drain(path, &mut lines, &mut count).map(drop)
    }

    /// A file with nothing in it, for a fingerprint of nothing.
    fn empty(&self) -> Step<File> {
        File::open("/dev/null").map_err(|error| self.wrong(Path::new("/dev/null"), &error))
    }

    fn files(&mut self) -> Step<()> {
        let (mut read, mut cannot): (HashSet<String>, _) = (HashSet::new(), Told::default());
        let mut devices = Devices::default();
        if self.settings.is_glob() {
            for file in paths::not_utf8(&self.settings.path()) {
                tracing::warn!(
                    queue = %self.queue, ?file,
                    "its name is not UTF-8, so the glob does not find it and it is not read: rename it"
                );
            }
        }
        loop {
            let paths = self.paths(&mut cannot)?;
            let mut fresh = false;
            for path in paths {
                // What a rotation has compressed was read before.
                if self.settings.follow && !self.settings.can_follow(&path) {
                    continue;
                }
                self.refuse_special(&path)?;
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(error) if self.settings.follow => {
                        if error.kind() != ErrorKind::NotFound {
                            cannot.tell(&self.queue, &path, &error);
                        }
                        continue;
                    }
                    Err(error) if self.has_gone(&path, &error) => continue,
                    Err(error) => return Err(self.wrong(&path, &error)),
                };
                let metadata = file.metadata().map_err(|error| self.wrong(&path, &error))?;
                let place = (metadata.dev(), &*path);
                let key = devices.key(&self.positions, identity(&metadata), place);
                let known = read.contains(&key);
                if known && !self.settings.follow {
                    continue;
                }
                fresh |= self.file(&path, file, key.clone(), known)?;
                read.insert(key);
            }
            if !self.settings.follow {
                return Ok(());
            }
            self.flush()?;
            if !fresh {
                self.pause()?;
            }
        }
    }

    /// The files to read. What a glob may not look at is an error, or with `follow`, where it may be mended, told.
    fn paths(&self, cannot: &mut Told) -> Step<Vec<PathBuf>> {
        if !self.settings.is_glob() {
            return Ok(vec![self.settings.path()]);
        }
        let found = paths::find(&self.settings.path).map_err(|error| {
            let (queue, path) = (&self.queue, &self.settings.path);
            let text = format!("queue `{queue}`: `{path}` is no glob: {error}");
            Ended::Failed(ConnectorError::permanent(text))
        })?;
        let mut paths = Vec::new();
        for one in found {
            match one {
                Ok(path) => paths.push(path),
                Err((path, error)) if self.settings.follow => {
                    cannot.tell(&self.queue, &path, &error);
                }
                Err((path, error)) if self.has_gone(&path, &error) => {}
                Err((path, error)) => return Err(self.wrong(&path, &error)),
            }
        }
        Ok(paths)
    }

    /// Whether what a glob found has another name by now, or none, as a file that is being put there; that is told.
    fn has_gone(&self, path: &Path, error: &std::io::Error) -> bool {
        let has_gone = self.settings.is_glob() && error.kind() == ErrorKind::NotFound;
        if has_gone {
            tracing::warn!(
                queue = %self.queue, ?path,
                "the glob found it, and it is not there any more: what is left is read without it"
            );
        }
        has_gone
    }

    /// Reads a file to its end; says whether there was anything.
    fn file(&mut self, path: &Path, file: File, key: String, again: bool) -> Step<bool> {
        let name = path.display().to_string();
        // A followed file without a line cannot be told from others that get its inode.
        if self.settings.follow && !self.checked(path, Fingerprint::can_be_of(&file))? {
            return Ok(false);
        }
        let found = self.checked(path, self.positions.find(&key, &file))?;
        let known = found.is_some();
        let length = self.checked(path, file.metadata())?.len();
        let plain = self.settings.compression_of(path) == Compression::None;
        let kept = found.filter(|position| !plain || position.next.1 <= length);
        let kept = kept.map(|position| position.as_of(&file)).transpose();
        let form = self.settings.form_of(path);
        let mut position = match self.checked(path, kept)?.flatten() {
            Some(position) => position,
            None => {
                if known {
                    self.tell_another(&name);
                }
                self.checked(path, Position::beginning(&name, &file, form))?
            }
        };
        if let Some(kept) = position.was_read_otherwise(form) {
            // A file that was read whole may be as it is, also if it has another name by now.
            if plain && kept.compression == Compression::None && length <= position.next.1 {
                return Ok(false);
            }
            return Err(self.counted_otherwise(&name, kept, form));
        }
        position = position.read_as(form);
        if again && length <= position.next.1 {
            return Ok(false);
        }
        let end = loop {
            self.say_file(Some(key.clone()), position.clone());
            let end = self.records(path, &file, &position)?;
            if !end.another {
                break end;
            }
            // Nothing was handed out of it, as what was read before had not been passed over yet.
            self.tell_another(&name);
            position = self.checked(path, Position::beginning(&name, &file, form))?;
        };
        // Should the file grow or come again.
        self.positions.insert(key, position.left_at(end.next, end.last));
        Ok(end.any)
    }

    fn counted_otherwise(&self, name: &str, kept: Form, form: Form) -> Ended {
        Ended::Failed(ConnectorError::permanent(format!(
            "queue `{}`: {name} was read in part as {kept}, and is to be read as {form} now, in which its records are \
             counted otherwise: set `format` and `compression` as they were, or put a copy in its place, which is read \
             from its beginning",
            self.queue
        )))
    }

    fn tell_another(&self, name: &str) {
        tracing::info!(
            queue = %self.queue, file = %name,
            "another file by the same name; read from its beginning"
        );
    }

    fn records(&mut self, path: &Path, file: &File, position: &Position) -> Step<FileEnd> {
        let compression = self.settings.compression_of(path);
        let max = self.settings.max_message_bytes();
        let mut count = Count { next: (0, 0), last: None, position };
        let follow = self.settings.follow;
        let one_life = |from| {
            let fingerprint = position.fingerprint.clone();
            file.try_clone().and_then(|file| OneLife::new(file, from, fingerprint, follow))
        };
        if self.settings.format_of(path) == FileFormat::Csv {
            let reader = one_life(0).and_then(|file| decompress(file, compression));
            let reader = self.checked(path, reader)?;
            let mut csv = Rows::new(reader, max);
            return self.drain(path, &mut csv, &mut count);
        }
        if compression != Compression::None {
            // Compressed bytes cannot be skipped unread; records that are resolved are passed over.
            let reader = one_life(0).and_then(|file| decompress(file, compression));
            let reader = self.checked(path, reader)?;
            let mut lines = Lines::new(reader, 0, max);
            return self.drain(path, &mut lines, &mut count);
        }
        count.next = position.begins_at();
        let mut lines = Lines::new(self.checked(path, one_life(count.next.1))?, count.next.1, max);
        // What has no end yet may grow.
        lines.takes_unfinished = !follow;
        self.drain(path, &mut lines, &mut count)
    }

    /// Says all records that there are now. What was read waits for no more of standard input, whose
    /// writer may take its time.
    pub(crate) fn drain(
        &mut self,
        path: &Path,
        records: &mut dyn Records,
        count: &mut Count<'_>,
    ) -> Step<FileEnd> {
        let mut any = false;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Ended::Stopped);
            }
            let waits = self.settings.is_standard() && !records.is_ready();
            if self.pending.is_full() || waits {
                self.flush()?;
            }
            let record = self.checked(path, records.next())?;
            let number = count.next.0;
            let another = match &record {
                Some(record) => count.position.is_of_another_file(number, record),
                None => count.position.is_longer_than(number),
            };
            let Some(record) = record.filter(|_| !another) else {
                return Ok(FileEnd { next: count.next, last: count.last, any, another });
            };
            count.next = (number + 1, record.to);
            count.last = Trace::lasting(number, &record).or(count.last);
            any = true;
            let resolved = count.position.is_resolved(number, &record);
            self.pending.push(Numbered { number, resolved, record });
        }
    }

    /// Says which file the next records are of.
    pub(crate) fn say_file(&mut self, key: Option<String>, position: Position) {
        self.pending.said.push(Said::File { key, position: position.into() });
    }

    fn flush(&mut self) -> Step<()> {
        let Pending { said, .. } = std::mem::take(&mut self.pending);
        if said.is_empty() {
            return Ok(());
        }
        self.say.blocking_send(said).map_err(|_| Ended::Stopped)
    }

    pub(crate) fn pause(&mut self) -> Step<()> {
        self.flush()?;
        std::thread::sleep(LOOK);
        match self.stop.load(Ordering::Relaxed) || self.say.is_closed() {
            true => Err(Ended::Stopped),
            false => Ok(()),
        }
    }

    pub(crate) fn refuse_special(&self, path: &Path) -> Step<()> {
        refuse_special(path, "input").map_err(|error| {
            let text = format!("queue `{}`: {error}", self.queue);
            Ended::Failed(ConnectorError::permanent(text))
        })
    }

    /// What came of reading in a file.
    pub(crate) fn checked<T>(&self, path: &Path, result: std::io::Result<T>) -> Step<T> {
        result.map_err(|error| self.wrong(path, &error))
    }

    /// What may pass is tried again from where the reader was, within the budget of restarts; only what was read of
    /// standard input and not handed out could not be read again.
    pub(crate) fn wrong(&self, path: &Path, error: &std::io::Error) -> Ended {
        let may_pass = may_pass(error) && !self.settings.is_standard();
        let (queue, path) = (&self.queue, path.display());
        let text = format!("queue `{queue}`: cannot read {path}: {error}");
        Ended::Failed(match may_pass {
            true => ConnectorError::stalled(text),
            false => ConnectorError::permanent(text),
        })
    }
}

/// Whether it is the system that says so, and not of what will be the same at the next try: that is what a file is,
/// holds or allows.
fn may_pass(error: &std::io::Error) -> bool {
    let stays = matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
            | ErrorKind::Unsupported
    );
    let of_the_system = error.raw_os_error();
    of_the_system.is_some_and(|number| number != Errno::LOOP.raw_os_error()) && !stays
}

/// A record and its number.
#[derive(Debug)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) record: Record,
    /// Whether it was resolved in an earlier life.
    pub(crate) resolved: bool,
}

/// Numbers records.
pub(crate) struct Count<'r> {
    /// The number of the next record, and where it begins.
    pub(crate) next: (u64, u64),
    /// The last record that can be known again.
    pub(crate) last: Option<Trace>,
    /// Which were resolved in an earlier life.
    pub(crate) position: &'r Position,
}

/// How far a file was read, and whether there was anything.
pub(crate) struct FileEnd {
    next: (u64, u64),
    last: Option<Trace>,
    any: bool,
    /// Whether it is not the file that the position is of, as what was read of that does not stand in it.
    another: bool,
}

fn decompress(
    file: impl Read + 'static,
    compression: Compression,
) -> std::io::Result<Box<dyn Read>> {
    // Each reading asks whether the file is still the same.
    let mut file = BufReader::with_capacity(READ, file);
    let is_empty = |file: &mut BufReader<_>| loop {
        match file.fill_buf() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            filled => return filled.map(<[u8]>::is_empty),
        }
    };
    if compression != Compression::None && is_empty(&mut file)? {
        // As a writer leaves it between opening and its first batch: there is no member or frame that could be cut.
        return Ok(Box::new(std::io::empty()));
    }
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_cannot_do_now_may_pass_and_what_a_file_is_stays() {
        for passing in [Errno::MFILE, Errno::NFILE, Errno::IO, Errno::STALE, Errno::TIMEDOUT] {
            assert!(may_pass(&passing.into()), "{passing}");
        }
        for staying in [Errno::NOENT, Errno::ACCESS, Errno::ISDIR, Errno::LOOP, Errno::NAMETOOLONG]
        {
            assert!(!may_pass(&staying.into()), "{staying}");
        }
        let cut_short = std::io::Error::from(ErrorKind::UnexpectedEof);
        assert!(!may_pass(&cut_short) && !may_pass(&std::io::Error::other("a header")));
    }
}
