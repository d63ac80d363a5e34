//! The thread that reads: files one after the other, from where they were left.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brigade_core::connector::ConnectorError;
use brigade_core::watermark::Watermark;
use tokio::sync::mpsc::Sender;

use crate::follow::Follower;
use crate::ledger::{Position, Positions, identity};
use crate::lines::{Lines, Record, Records};
use crate::rows::Rows;
use crate::settings::{BY_COMPONENT, Compression, FileFormat, GLOB, Settings, refuse_special};

/// The most records in one message to the consumer, and their bytes.
const CHUNK: (usize, usize) = (256, 1 << 20);
/// How often a file that is followed is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// What the thread says.
#[derive(Debug)]
pub(crate) enum Said {
    /// A file begins; its records follow. The key of its position, and the position.
    File { key: Option<String>, position: Position },
    /// Records of the last file, with their numbers, and whether they were resolved in an earlier
    /// life.
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
    pub(crate) say: Sender<Said>,
    pub(crate) stop: Arc<AtomicBool>,
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
        // Who listens may be gone.
        let _ = self.say.blocking_send(last);
    }

    fn standard(&mut self) -> Step<()> {
        let position = Position::beginning("-", &self.empty()?);
        let position = position.map_err(|error| self.wrong(Path::new("-"), &error))?;
        self.say(Said::File { key: None, position })?;
        let max = self.settings.max_message_bytes();
        let path = Path::new("-");
        let reader = decompress(std::io::stdin().lock(), self.settings.compression_of(path));
        let reader = reader.map_err(|error| self.wrong(path, &error))?;
        let mut count = Count { next: (0, 0), resolved: &|_| false };
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
        let (mut read, mut told): (HashSet<String>, _) = (HashSet::new(), HashSet::new());
        if self.settings.is_glob() {
            self.tell_names_that_are_passed_over();
        }
        loop {
            let paths = self.paths(&mut told)?;
            let mut fresh = false;
            for path in paths {
                // What a rotation has compressed was read before.
                if self.settings.follow && !self.settings.can_follow(&path) {
                    continue;
                }
                self.refuse_special(&path)?;
                let file = match File::open(&path) {
                    Ok(file) => file,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        if self.settings.follow {
                            continue;
                        }
                        return Err(self.wrong(&path, &error));
                    }
                    Err(error) => return Err(self.wrong(&path, &error)),
                };
                let metadata = file.metadata().map_err(|error| self.wrong(&path, &error))?;
                let key = identity(&metadata);
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
            if !fresh {
                self.pause()?;
            }
        }
    }

    /// The files to read. What a glob may not look at is an error, or with `follow`, where it may be mended, told
    /// once.
    fn paths(&self, told: &mut HashSet<PathBuf>) -> Step<Vec<PathBuf>> {
        if !self.settings.is_glob() {
            return Ok(vec![self.settings.path()]);
        }
        let wrong = |what: String| Ended::Failed(ConnectorError::permanent(what));
        let found = glob::glob(&self.settings.path).map_err(|error| {
            wrong(format!("queue `{}`: `{}` is no glob: {error}", self.queue, self.settings.path))
        })?;
        let mut paths = Vec::new();
        for entry in found {
            let entry = entry.map_err(|error| (error.path().to_owned(), error.into()));
            let found = entry.and_then(|path| match path.metadata() {
                Ok(metadata) => Ok((path, metadata.is_file())),
                Err(error) => Err((path, error)),
            });
            match found {
                Ok((path, is_file)) => paths.extend(is_file.then_some(path)),
                Err((_, error)) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err((path, error)) if self.settings.follow => {
                    if told.insert(path.clone()) {
                        tracing::warn!(
                            queue = %self.queue, ?path, %error, "it is not read as long as this is so"
                        );
                    }
                }
                Err((path, error)) => return Err(self.wrong(&path, &error)),
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// A glob finds no names that are not UTF-8.
    fn tell_names_that_are_passed_over(&self) {
        for pattern in self.settings.path().ancestors() {
            let name = pattern.file_name().and_then(OsStr::to_str).unwrap_or_default();
            let parent = pattern.parent().and_then(Path::to_str).unwrap_or_default();
            let Ok(whole) = glob::Pattern::new(&pattern.to_string_lossy()) else { continue };
            if !name.contains(GLOB) || name == "**" {
                continue;
            }
            let directories: Vec<PathBuf> = match parent {
                "" => vec![PathBuf::new()],
                parent => glob::glob(parent).into_iter().flatten().filter_map(Result::ok).collect(),
            };
            for directory in directories {
                let listed =
                    if directory.as_os_str().is_empty() { Path::new(".") } else { &directory };
                let entries =
                    std::fs::read_dir(listed).into_iter().flatten().filter_map(Result::ok);
                let names = entries.map(|entry| entry.file_name());
                for name in names.filter(|name| name.to_str().is_none()) {
                    let path = directory.join(&name);
                    if whole.matches_path_with(Path::new(&*path.to_string_lossy()), BY_COMPONENT) {
                        tracing::warn!(
                            queue = %self.queue, file = ?path,
                            "its name is not UTF-8, so the glob does not find it and it is not \
                             read: rename it"
                        );
                    }
                }
            }
        }
    }

    /// Reads a file to its end; says whether there was anything.
    fn file(&mut self, path: &Path, file: File, key: String, again: bool) -> Step<bool> {
        let wrong = |reader: &Self, error: &std::io::Error| reader.wrong(path, error);
        let name = path.display().to_string();
        // A followed file without a line cannot be told from others that get its inode.
        if self.settings.follow && !Position::can_begin(&file).map_err(|e| wrong(self, &e))? {
            return Ok(false);
        }
        let found = self.positions.find(&key, &file).map_err(|e| wrong(self, &e))?;
        let known = found.is_some();
        let length = file.metadata().map_err(|e| wrong(self, &e))?.len();
        let plain = self.settings.compression_of(path) == Compression::None;
        let kept = found.filter(|position| !plain || position.next.1 <= length);
        let position = match kept {
            Some(position) if position.is_of(&file).map_err(|e| wrong(self, &e))? => position,
            _ if known => {
                tracing::info!(queue = %self.queue, file = %name, "another file by the same name; read from its beginning");
                Position::beginning(&name, &file).map_err(|e| wrong(self, &e))?
            }
            _ => Position::beginning(&name, &file).map_err(|e| wrong(self, &e))?,
        };
        if again && length <= position.next.1 {
            return Ok(false);
        }
        self.say(Said::File { key: Some(key.clone()), position: position.clone() })?;
        let end = self.records(path, file, &position)?;
        // Where this life of the reader left it, should the file grow or come again.
        let mut left = position;
        left.next = end.next;
        left.records = Watermark::starting_at(end.next.0);
        self.positions.insert(key, left);
        Ok(end.any)
    }

    fn records(&self, path: &Path, mut file: File, position: &Position) -> Step<FileEnd> {
        let wrong = |error: &std::io::Error| self.wrong(path, error);
        let resolved = |record: u64| position.records.is_resolved(record);
        let compression = self.settings.compression_of(path);
        let max = self.settings.max_message_bytes();
        let mut count = Count { next: (0, 0), resolved: &resolved };
        if self.settings.format_of(path) == FileFormat::Csv {
            let reader = decompress(file, compression).map_err(|e| wrong(&e))?;
            let mut csv = Rows::new(reader, max);
            return self.drain(path, &mut csv, &mut count);
        }
        if compression != Compression::None {
            // Compressed bytes cannot be skipped unread; records that are resolved are passed over.
            let reader = decompress(file, compression).map_err(|e| wrong(&e))?;
            let mut lines = Lines::new(reader, 0, max);
            return self.drain(path, &mut lines, &mut count);
        }
        count.next = position.next;
        file.seek(SeekFrom::Start(position.next.1)).map_err(|e| wrong(&e))?;
        let mut lines = Lines::new(file, position.next.1, max);
        // What has no end yet may grow.
        lines.unfinished = !self.settings.follow;
        self.drain(path, &mut lines, &mut count)
    }

    /// Says all records that there are now. What was read waits for no more of standard input, whose
    /// writer may take its time.
    pub(crate) fn drain(
        &self,
        path: &Path,
        records: &mut dyn Records,
        count: &mut Count<'_>,
    ) -> Step<FileEnd> {
        let (mut chunk, mut bytes, mut any) = (Vec::new(), 0, false);
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Ended::Stopped);
            }
            let full = chunk.len() >= CHUNK.0 || bytes >= CHUNK.1;
            let waits = self.settings.is_standard() && !records.is_ready();
            if (full || waits) && !chunk.is_empty() {
                self.say(Said::Records(std::mem::take(&mut chunk)))?;
                bytes = 0;
            }
            let Some(record) = records.next().map_err(|error| self.wrong(path, &error))? else {
                if !chunk.is_empty() {
                    self.say(Said::Records(chunk))?;
                }
                return Ok(FileEnd { next: count.next, any });
            };
            let number = count.next.0;
            count.next = (number + 1, record.to);
            any = true;
            bytes += record.bytes.len();
            chunk.push(Numbered { number, resolved: (count.resolved)(number), record });
        }
    }

    pub(crate) fn say(&self, said: Said) -> Step<()> {
        self.say.blocking_send(said).map_err(|_| Ended::Stopped)
    }

    pub(crate) fn pause(&self) -> Step<()> {
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

    pub(crate) fn wrong(&self, path: &Path, error: &std::io::Error) -> Ended {
        let (queue, path) = (&self.queue, path.display());
        let text = format!("queue `{queue}`: cannot read {path}: {error}");
        Ended::Failed(ConnectorError::permanent(text))
    }
}

/// A record and its number.
#[derive(Debug)]
pub(crate) struct Numbered {
    pub(crate) number: u64,
    pub(crate) record: Record,
    /// Whether it was resolved in an earlier life.
    pub(crate) resolved: bool,
}

/// Numbers records, and knows which were resolved in an earlier life.
pub(crate) struct Count<'r> {
    /// The number of the next record, and where it begins.
    pub(crate) next: (u64, u64),
    pub(crate) resolved: &'r dyn Fn(u64) -> bool,
}

/// How far a file was read, and whether there was anything.
pub(crate) struct FileEnd {
    next: (u64, u64),
    any: bool,
}

fn decompress(
    file: impl Read + 'static,
    compression: Compression,
) -> std::io::Result<Box<dyn Read>> {
    let file = BufReader::new(file);
    Ok(match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(file)?),
    })
}
