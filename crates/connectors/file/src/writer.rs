//! Appending whole lines to a file that several stages and processes write.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::mem::ManuallyDrop;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use brigade_core::connector::{ConnectorError, Hold, QueueSpec};
use brigade_core::state::{StateStore, StoreOp};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::OwnedMutexGuard;

use crate::directory::{resolved, sync};
use crate::kept::{Account, new_life};
use crate::ledger::identity;
use crate::renamed;
use crate::settings::{Compression, refuse_special};

/// How long a writer waits for others, in this process or another.
pub(crate) const LOCK_MAX: Duration = Duration::from_secs(30);
/// How long one that closes the file waits for others.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// A file that this process writes; all its producers share it.
pub(crate) struct Writer {
    path: PathBuf,
    compression: Compression,
    account: Arc<Account>,
    /// Tells this writer from others that the state keeps a note of.
    life: String,
    inner: Arc<tokio::sync::Mutex<Inner>>,
    /// The pipelines and queues of the producers that are open.
    users: Mutex<Vec<User>>,
}

type User = (Arc<str>, Arc<str>);

/// What one writer at a time has.
#[derive(Default)]
struct Inner {
    open: Option<File>,
    /// Whether this writer has entered: taken back the notes of others, and put its own.
    entered: bool,
    /// Whether something that was not committed could not be cut off.
    left: bool,
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
        refuse_special(path, "output")?;
        let path = resolved(path)?;
        let key = (path.clone(), format!("{:?}", state.store_id()));
        let mut writers = WRITERS.lock();
        if let Some(writer) = writers.get(&key).and_then(Weak::upgrade) {
            return Ok(writer);
        }
        let writer = Arc::new(Self::new(path, compression, state));
        writers.retain(|_, writer| writer.strong_count() > 0);
        writers.insert(key, Arc::downgrade(&writer));
        Ok(writer)
    }

    fn new(path: PathBuf, compression: Compression, state: &Arc<dyn StateStore>) -> Self {
        Self {
            account: Arc::new(Account::new(&path, state)),
            path,
            compression,
            life: new_life(),
            inner: Arc::default(),
            users: Mutex::default(),
        }
    }

    /// The path as a name, for order.
    pub(crate) fn name(&self) -> &str {
        self.account.name()
    }

    /// Enters a queue whose producer writes by this. Another queue of its pipeline may not: what is
    /// written for both in one transaction would wait for itself.
    pub(crate) fn enter(&self, queue: &QueueSpec) -> Result<(), ConnectorError> {
        let mut users = self.users.lock();
        let mut others = users.iter().filter(|(pipeline, _)| *pipeline == queue.pipeline);
        if let Some((_, other)) = others.find(|(_, other)| *other != queue.name) {
            return Err(ConnectorError::permanent(format!(
                "queues `{other}` and `{}` both write {}: give each a file of its own, or use one \
                 queue",
                queue.name,
                self.name()
            )));
        }
        users.push((Arc::clone(&queue.pipeline), Arc::clone(&queue.name)));
        Ok(())
    }

    /// Takes out what was entered; says whether it was the last.
    pub(crate) fn forget(&self, queue: &QueueSpec) -> bool {
        let mut users = self.users.lock();
        let mine = |(pipeline, name): &User| *pipeline == queue.pipeline && *name == queue.name;
        if let Some(at) = users.iter().position(mine) {
            users.swap_remove(at);
        }
        users.is_empty()
    }

    /// Appends bytes and syncs them. They stand once the operation is committed to the state; until the
    /// hold is told so, or the state says that they are not, the file is locked.
    ///
    /// It goes to its end also when nobody waits for it any more: the lock may not be let go while the
    /// state has a question to answer.
    pub(crate) async fn append(
        self: &Arc<Self>,
        bytes: Vec<u8>,
    ) -> Result<Appended, ConnectorError> {
        let inner = Arc::clone(&self.inner);
        let inner = tokio::time::timeout(LOCK_MAX, inner.lock_owned()).await.map_err(|_| {
            let text = format!("{} has been locked for {LOCK_MAX:?} in this process", self.name());
            ConnectorError::transient(text)
        })?;
        let (writer, runtime) = (Arc::clone(self), Handle::current());
        blocking(move || writer.append_locked(inner, &bytes, runtime)).await
    }

    fn append_locked(
        &self,
        inner: OwnedMutexGuard<Inner>,
        bytes: &[u8],
        runtime: Handle,
    ) -> Result<Appended, ConnectorError> {
        let mut locked = self.lock(inner)?;
        let before = runtime.block_on(self.prepare(&mut locked))?;
        let account = Arc::clone(&self.account);
        let begin = before.length;
        let mut appending = Appending { locked: Some(locked), before, begin, account, runtime };
        let length = appending.append(bytes, self.compression);
        let length = length.map_err(|error| failed(&self.path, &error))?;
        let op = self.account.put(&appending.before.file, length);
        Ok(Appended { op, hold: Box::new(appending) })
    }

    /// Locks the file against others, opened if it is not, and again if another file has its name by
    /// now.
    fn lock(&self, inner: OwnedMutexGuard<Inner>) -> Result<Locked, ConnectorError> {
        let (mut locked, path) = (Locked(inner), &self.path);
        let deadline = Instant::now() + LOCK_MAX;
        loop {
            let mine = match locked.0.open.take() {
                Some(mine) => mine,
                None => {
                    refuse_special(path, "output")?;
                    open(path).map_err(|error| self.cannot_open(&error, locked.0.entered))?
                }
            };
            lock_until(&mine, path, deadline)?;
            if is_at(&mine, path) {
                locked.0.open = Some(mine);
                return Ok(locked);
            }
            // Rotated away: its name belongs to another file now, or to none.
        }
    }

    /// What a writer that has written before may not open for now, a rotation has just made and not yet said whose it
    /// is: it is tried again.
    fn cannot_open(&self, error: &std::io::Error, entered: bool) -> ConnectorError {
        match error.kind() {
            ErrorKind::PermissionDenied if entered => ConnectorError::transient(format!(
                "cannot write {}: {error}; as others before it could be written it is tried again until it can: check \
                 its owner and permissions",
                self.name()
            )),
            _ => failed(&self.path, error),
        }
    }

    /// How much of the file is committed, with a note in the state that this writer has it open. What
    /// goes beyond may be cut off only where it can be what a writer of this state left.
    async fn prepare(&self, locked: &mut Locked) -> Result<Committed, ConnectorError> {
        let metadata = locked.open().metadata().map_err(|error| failed(&self.path, &error))?;
        let (length, file) = (metadata.len(), identity(&metadata));
        let kept = self.account.load().await?;
        let (own, others): (Vec<_>, Vec<_>) =
            kept.writers.iter().cloned().partition(|writer| *writer == self.life);
        let died = !others.is_empty() || locked.0.left;
        // They stay locked until it is kept that another file has the path.
        let renamed = match died {
            true => renamed::cut(&self.account, &self.path, kept.before(&file)).await?,
            false => Vec::new(),
        };
        // What was there before Brigade first wrote belongs to the file; a file that is shorter than
        // it was has been replaced or cut by somebody else.
        let committed = kept.committed(&file).unwrap_or(length);
        let before = committed.min(length);
        if length > committed {
            // Where the one that was written is found by another name, this one was not.
            let is_known = kept.lengths.contains_key(&file) || renamed.is_empty();
            if !(died && is_known) {
                return Err(self.written_by_others(length, committed));
            }
            cut_dead(locked.open(), &self.path, committed)?;
        }
        if length < committed {
            tracing::info!(
                file = self.name(),
                committed,
                length,
                "the file is shorter than it was: another one, or cut by somebody else"
            );
        }
        if !kept.lengths.contains_key(&file) {
            // What is committed would be gone with a name that was not written down.
            sync(self.path.parent()).map_err(|error| failed(&self.path, &error))?;
        }
        // Durable before the first byte is appended. Who has entered leaves the notes of others: they
        // may live, and would have to put them again.
        let first = !locked.0.entered;
        let is_kept = kept.lengths.len() == 1 && kept.lengths.get(&file) == Some(&before);
        if first || own.is_empty() || !is_kept {
            let dead = if first { &others[..] } else { &[] };
            self.account.enter((&file, before), &self.life, dead, kept.before(&file)).await?;
            locked.0.entered = true;
        }
        Ok(Committed { file, length: before })
    }

    fn written_by_others(&self, length: u64, committed: u64) -> ConnectorError {
        ConnectorError::permanent(format!(
            "{} has {length} bytes, but this state has written only the first {committed}: somebody \
             else has written the rest, and nothing of it was cut off; give each pipeline a file of \
             its own, or one `state` to those that share it, and move this file away to begin a new \
             one",
            self.name()
        ))
    }

    /// Takes back the note that this writer has the file open. One that stays makes the next writer
    /// cut off what it finds beyond the committed length.
    pub(crate) async fn close(&self) -> Result<(), ConnectorError> {
        let inner = tokio::time::timeout(CLOSE_MAX, Arc::clone(&self.inner).lock_owned()).await;
        let Ok(mut inner) = inner else { return Ok(()) };
        if inner.entered && !inner.left {
            self.account.leave(&self.life).await?;
            inner.entered = false;
        }
        Ok(())
    }
}

/// How much of which file is committed.
struct Committed {
    file: String,
    length: u64,
}

/// Bytes that were appended and are not committed yet.
pub(crate) struct Appended {
    pub(crate) op: StoreOp,
    pub(crate) hold: Box<dyn Hold>,
}

/// The file while it is locked, in this process and against others.
struct Locked(OwnedMutexGuard<Inner>);

impl Locked {
    fn open(&self) -> &File {
        self.0.open.as_ref().expect("it was locked, so it is open")
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // A lock that cannot be taken off goes with the file.
        if self.0.open.as_ref().is_some_and(|open| open.unlock().is_err()) {
            self.0.open = None;
        }
    }
}

/// Holds a file's lock until it is known whether what was appended is committed.
struct Appending {
    /// `None` once it is known, or somebody else finds out.
    locked: Option<Locked>,
    before: Committed,
    /// Where what is appended begins.
    begin: u64,
    account: Arc<Account>,
    /// What waits for the state, should nobody say how it ended.
    runtime: Handle,
}

impl Appending {
    /// Says how long the file is then.
    fn append(&mut self, bytes: &[u8], compression: Compression) -> std::io::Result<u64> {
        let locked = self.locked.as_ref().expect("it is let go only at the end");
        let (mut file, before) = (locked.open(), self.before.length);
        match length(file)? {
            now if now < before => {
                return Err(Error::other("it was cut by somebody else; it is written again"));
            }
            now if now > before => file.set_len(before)?,
            _ => {}
        }
        // Compressed members follow each other as they are.
        let lines = compression == Compression::None;
        let torn = lines && before > 0 && last_byte(file, before)? != Some(b'\n');
        if torn {
            // The last line of whoever wrote before has no end.
            file.write_all(b"\n")?;
        }
        file.write_all(bytes)?;
        file.sync_data()?;
        // What is cut in the midst of this goes on at its new end.
        let (appended, end) = (u64::from(torn) + bytes.len() as u64, length(file)?);
        self.begin = end.saturating_sub(appended).min(before);
        Ok(end.min(before + appended))
    }
}

impl Hold for Appending {
    fn commit(mut self: Box<Self>) {
        let mut locked = self.locked.take().expect("it is let go only at the end");
        locked.0.left = false;
    }
}

impl Drop for Appending {
    /// The state may have been asked and not have answered yet. A thread of its own finds out, since
    /// the runtime may be ending, and nothing may block here.
    fn drop(&mut self) {
        let Some(locked) = self.locked.take() else { return };
        let Committed { file, length } = &mut self.before;
        let before = Committed { file: std::mem::take(file), length: *length };
        let (begin, account) = (self.begin, Arc::clone(&self.account));
        let doubt = Doubt { locked, before, begin, account };
        // Without a thread the file stays locked until this process ends: then it is decided too.
        let (doubt, runtime) = (ManuallyDrop::new(doubt), self.runtime.clone());
        let find_out = move || runtime.block_on(ManuallyDrop::into_inner(doubt).find_out());
        let thread = std::thread::Builder::new().name("brigade-undo".to_owned()).spawn(find_out);
        if let Err(error) = thread {
            tracing::error!(
                file = self.account.name(), %error,
                "no thread to be had to cut off what was not committed: the file stays locked until \
                 this process ends"
            );
        }
    }
}

/// Bytes of which nobody said whether they are committed, in a file that is locked.
struct Doubt {
    locked: Locked,
    before: Committed,
    begin: u64,
    account: Arc<Account>,
}

impl Doubt {
    /// Cuts off what is not committed. The state does what it is asked in order: once it has answered
    /// this, all that was asked before is done, or never will be.
    async fn find_out(mut self) {
        let Committed { file, length } = &self.before;
        let cut = match self.account.length_of(file).await {
            Ok(kept) if kept == Some(*length) => cut(self.locked.open(), self.begin).is_ok(),
            Ok(_) => true,
            Err(_) => false,
        };
        // If that is not known, or does not work, the next append does it.
        self.locked.0.left = !cut;
    }
}

fn last_byte(mut file: &File, length: u64) -> std::io::Result<Option<u8>> {
    file.seek(SeekFrom::Start(length - 1))?;
    let mut byte = [0];
    let read = file.read(&mut byte)?;
    Ok((read == 1).then_some(byte[0]))
}

/// Whatever is written goes to the end, wherever that is by then.
fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

fn length(file: &File) -> std::io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// Cuts off what goes beyond a length.
fn cut(file: &File, to: u64) -> std::io::Result<()> {
    if length(file)? > to {
        file.set_len(to)?;
        file.sync_data()?;
    }
    Ok(())
}

/// The same for what a process left that died, with a word.
pub(crate) fn cut_dead(file: &File, path: &Path, to: u64) -> Result<(), ConnectorError> {
    let length = length(file).map_err(|error| failed(path, &error))?;
    if length > to {
        tracing::warn!(
            file = %path.display(),
            bytes = length - to,
            "cutting off what a process that ended had written and not committed"
        );
    }
    cut(file, to).map_err(|error| failed(path, &error))
}

/// Whether the path still names this file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(own), Ok(named)) => (own.dev(), own.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Takes the lock, waiting for other processes until the deadline.
pub(crate) fn lock_until(
    file: &File,
    path: &Path,
    deadline: Instant,
) -> Result<(), ConnectorError> {
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

#[cfg(test)]
mod tests;
