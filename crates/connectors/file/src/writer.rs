//! Appending whole lines to a file that several stages and processes write.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Hold};
use brigade_core::state::{StateStore, StoreOp};
use bytes::Bytes;
use tokio::sync::OwnedMutexGuard;

use crate::settings::Compression;

/// How long a writer waits for others, in this process or another.
const LOCK_MAX: Duration = Duration::from_secs(30);
/// The committed lengths in the state, by path.
const SPACE: &str = "file/length";

/// A file that this process writes; all its producers share it.
pub(crate) struct Writer {
    path: PathBuf,
    /// The path as a name, for order and for the state.
    name: String,
    compression: Compression,
    state: Arc<dyn StateStore>,
    open: Arc<tokio::sync::Mutex<Option<OpenFile>>>,
}

/// The open file, and what this process knows of its length.
struct OpenFile {
    file: File,
    /// The committed length when this process last wrote.
    committed: u64,
}

/// The writers of this process, by path and state.
static WRITERS: LazyLock<Mutex<Writers>> = LazyLock::new(Mutex::default);

type Writers = HashMap<(PathBuf, String), Weak<Writer>>;

impl Writer {
    /// The writer of this path.
    pub(crate) fn of(
        path: &Path,
        compression: Compression,
        state: &Arc<dyn StateStore>,
    ) -> Result<Arc<Self>, ConnectorError> {
        let wrong = |error: std::io::Error| failed(path, &error);
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(directory).map_err(wrong)?;
        let name = path.file_name().ok_or_else(|| {
            ConnectorError::permanent(format!("{} is not a file's name", path.display()))
        })?;
        let path = directory.canonicalize().map_err(wrong)?.join(name);
        let key = (path.clone(), format!("{:?}", state.store_id()));
        let mut writers = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writers.get(&key).and_then(Weak::upgrade) {
            return Ok(writer);
        }
        let writer = Arc::new(Self {
            name: path.display().to_string(),
            compression,
            path,
            state: Arc::clone(state),
            open: Arc::default(),
        });
        writers.retain(|_, writer| writer.strong_count() > 0);
        writers.insert(key, Arc::downgrade(&writer));
        Ok(writer)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Appends bytes and syncs them. They stand once the operation is committed to the state and the
    /// hold is told so; until then the file is locked, and dropping the hold cuts them off.
    pub(crate) async fn append(&self, bytes: Vec<u8>) -> Result<Appended, ConnectorError> {
        let open = Arc::clone(&self.open);
        let open = tokio::time::timeout(LOCK_MAX, open.lock_owned()).await.map_err(|_| {
            let text = format!("{} has been locked for {LOCK_MAX:?} in this process", self.name);
            ConnectorError::transient(text)
        })?;
        let mut locked = self.lock(open).await?;
        let committed = self.committed(&locked).await?;
        let (path, compression) = (self.path.clone(), self.compression);
        let appended = blocking(move || {
            let appended = locked.append(committed, &bytes, compression);
            appended.map(|length| (locked, length)).map_err(|error| failed(&path, &error))
        });
        let (locked, length) = appended.await?;
        let op = StoreOp::Put {
            space: SPACE.into(),
            key: self.name.clone(),
            value: Bytes::from(length.to_string()),
        };
        let hold = Appending { locked: Some(locked), before: committed, length };
        Ok(Appended { op, hold: Box::new(hold) })
    }

    /// Locks the file against other processes, opened if it is not, and again if another file has
    /// its name by now.
    async fn lock(
        &self,
        open: OwnedMutexGuard<Option<OpenFile>>,
    ) -> Result<Locked, ConnectorError> {
        let path = self.path.clone();
        let lock = move || {
            let mut open = open;
            let deadline = Instant::now() + LOCK_MAX;
            loop {
                let mine = match open.take() {
                    Some(mine) => mine,
                    None => OpenFile::open(&path).map_err(|error| failed(&path, &error))?,
                };
                lock_until(&mine.file, &path, deadline)?;
                if mine.is_at(&path) {
                    let modified_by_others = mine.length() != Some(mine.committed);
                    *open = Some(mine);
                    return Ok(Locked { open, modified_by_others });
                }
                // Rotated away: its name belongs to another file now, or to none.
            }
        };
        blocking(lock).await
    }

    /// A length that was kept and cannot be read: what was written and not committed might stay.
    fn unreadable(&self) -> ConnectorError {
        ConnectorError::permanent(format!(
            "the state keeps a length of {} that this program cannot read: use the program that \
             wrote it, or another `state`",
            self.name
        ))
    }

    /// The committed length: known if nobody else has written, else from the state.
    async fn committed(&self, locked: &Locked) -> Result<u64, ConnectorError> {
        let open = locked.open.as_ref().expect("it was locked, so it is open");
        if !locked.modified_by_others && open.committed > 0 {
            return Ok(open.committed);
        }
        let length = open.length().unwrap_or(0);
        let kept = self.state.load(SPACE, &self.name).await?;
        let read = |bytes: bytes::Bytes| std::str::from_utf8(&bytes).ok()?.parse::<u64>().ok();
        let kept = kept.map(|bytes| read(bytes).ok_or_else(|| self.unreadable())).transpose()?;
        // What was there before Brigade first wrote belongs to the file; a file that is shorter than
        // it was has been replaced or cut by somebody else.
        Ok(kept.map_or(length, |kept| kept.min(length)))
    }
}

/// Bytes that were appended and are not committed yet.
pub(crate) struct Appended {
    pub(crate) op: StoreOp,
    pub(crate) hold: Box<dyn Hold>,
}

/// The file while it is locked, in this process and against others.
struct Locked {
    open: OwnedMutexGuard<Option<OpenFile>>,
    modified_by_others: bool,
}

impl Locked {
    fn append(
        &mut self,
        committed: u64,
        bytes: &[u8],
        compression: Compression,
    ) -> std::io::Result<u64> {
        let open = self.open.as_mut().expect("it was locked, so it is open");
        let mut file = &open.file;
        if file.metadata()?.len() != committed {
            file.set_len(committed)?;
        }
        // Compressed members follow each other as they are.
        let lines = compression == Compression::None;
        let torn = lines && committed > 0 && last_byte(file, committed)? != Some(b'\n');
        file.seek(SeekFrom::Start(committed))?;
        let mut written = || -> std::io::Result<()> {
            if torn {
                // The last line of whoever wrote before has no end.
                file.write_all(b"\n")?;
            }
            file.write_all(bytes)?;
            file.sync_data()
        };
        if let Err(error) = written() {
            // What fitted is cut off again; if not even that works, the next writer does it.
            let _ = file.set_len(committed);
            return Err(error);
        }
        Ok(committed + u64::from(torn) + bytes.len() as u64)
    }

    fn unlock(mut self, committed: u64) {
        if let Some(open) = self.open.as_mut() {
            open.committed = committed;
            // A lock that cannot be taken off goes with the file.
            if open.file.unlock().is_err() {
                *self.open = None;
            }
        }
    }
}

fn last_byte(mut file: &File, length: u64) -> std::io::Result<Option<u8>> {
    if !file.metadata()?.is_file() {
        return Ok(Some(b'\n'));
    }
    file.seek(SeekFrom::Start(length - 1))?;
    let mut byte = [0];
    let read = file.read(&mut byte)?;
    Ok((read == 1).then_some(byte[0]))
}

impl OpenFile {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { file, committed: 0 })
    }

    fn length(&self) -> Option<u64> {
        self.file.metadata().ok().map(|metadata| metadata.len())
    }

    /// Whether the path still names this file.
    fn is_at(&self, path: &Path) -> bool {
        match (self.file.metadata(), std::fs::metadata(path)) {
            (Ok(own), Ok(named)) => (own.dev(), own.ino()) == (named.dev(), named.ino()),
            _ => false,
        }
    }
}

/// Holds a file's lock until what was appended is committed, or cut off.
struct Appending {
    locked: Option<Locked>,
    before: u64,
    length: u64,
}

impl Hold for Appending {
    fn commit(mut self: Box<Self>) {
        if let Some(locked) = self.locked.take() {
            locked.unlock(self.length);
        }
    }
}

impl Drop for Appending {
    fn drop(&mut self) {
        let Some(mut locked) = self.locked.take() else { return };
        let cut = locked.open.as_mut().is_some_and(|open| open.file.set_len(self.before).is_ok());
        if cut {
            locked.unlock(self.before);
        } else {
            *locked.open = None;
        }
    }
}

/// Takes the lock, waiting for other processes until the deadline.
fn lock_until(file: &File, path: &Path, deadline: Instant) -> Result<(), ConnectorError> {
    const STEP: Duration = Duration::from_millis(1);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(failed(path, &error)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(STEP),
            Err(TryLockError::WouldBlock) => {
                let path = path.display();
                let text = format!("{path} has been locked by another process for {LOCK_MAX:?}");
                return Err(ConnectorError::transient(text));
            }
        }
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, ConnectorError> + Send + 'static,
) -> Result<T, ConnectorError> {
    tokio::task::spawn_blocking(run).await.unwrap_or_else(|error| {
        Err(ConnectorError::transient(format!("the writing of a file was broken off: {error}")))
    })
}

/// What went wrong, for people, and whether it may go better later.
pub(crate) fn failed(path: &Path, error: &std::io::Error) -> ConnectorError {
    let path = path.display();
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ConnectorError::transient(format!(
            "cannot write {path}: the disk is full: make room; nothing is lost meanwhile"
        )),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => ConnectorError::permanent(
            format!("cannot write {path}: {error}; check its owner and permissions"),
        ),
        ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::InvalidInput => {
            ConnectorError::permanent(format!("cannot write {path}: {error}; give a file's path"))
        }
        // What has to be a directory is something else.
        ErrorKind::AlreadyExists => ConnectorError::permanent(format!(
            "cannot write {path}: its directory cannot be made, since a file has that name"
        )),
        _ => ConnectorError::transient(format!("cannot write {path}: {error}")),
    }
}
