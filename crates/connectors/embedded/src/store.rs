//! [`Store`]: one file of embedded queues and state, and its handles in this process.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::thread::JoinHandle;

use async_trait::async_trait;
use brigade_core::IncarnationId;
use brigade_core::connector::{ConnectorError, Consumer, Producer, QueueAdmin, QueueSpec, Reader};
use brigade_core::state::{StateLock, StateStore, StoreId, StoreOp};
use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{OptionalExtension, params};
use tokio::sync::Notify;

use crate::admin::EmbeddedAdmin;
use crate::consumer::EmbeddedConsumer;
use crate::holder::Holder;
use crate::mounts::{Network, network};
use crate::producer::EmbeddedProducer;
use crate::rows::{MadeOf, Target, enqueue};
use crate::schema;
use crate::settings::Options;
use crate::thread::{Fault, Requests, StoreThread, Work};

/// The database's name in the state's directory.
const FILE: &str = "brigade.db";
/// The directory of the holders' locks, in the state's directory.
const HOLDERS: &str = "holders";
/// The directory of the locks taken by name.
const LOCKS: &str = "locks";

/// One file of embedded queues and state. All handles that a process opens share it, and it stays
/// open until the last of them is shut down or dropped.
pub struct Store {
    /// Consumers and producers keep the store open.
    me: Weak<Store>,
    file: Arc<OpenFile>,
    /// Whether this handle is shut down.
    shut: AtomicBool,
}

/// A file that is open in this process, and its thread.
struct OpenFile {
    id: StoreId,
    directory: PathBuf,
    requests: Requests,
    visible: Arc<Notify>,
    incarnation: IncarnationId,
    targets: Arc<Targets>,
    options: Options,
    used: Mutex<Used>,
}

struct Used {
    /// How many stores use the file and are not shut down. Once there are none, the file is closed
    /// for good.
    stores: usize,
    /// Present until then.
    thread: Option<JoinHandle<()>>,
}

/// The queues that producers have opened, by the names that operations use for them.
#[derive(Default)]
pub(crate) struct Targets(Mutex<HashMap<Arc<str>, Arc<Target>>>);

/// What is open in this process, by directory.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<OpenFile>>>> = LazyLock::new(Mutex::default);

impl OpenFile {
    fn start(directory: &Path, options: Options) -> Result<Self, ConnectorError> {
        refuse_network(directory)?;
        let path = directory.join(FILE);
        let db = schema::open(&path, options.sync)?;
        let wrong = |error| schema::failed(&path, error);
        let sql = "SELECT value FROM meta WHERE name = 'incarnation'";
        let incarnation: [u8; 16] = db.query_row(sql, [], |row| row.get(0)).map_err(wrong)?;
        let mut holder = Holder::enter(&db, &directory.join(HOLDERS))?;
        let mut db = db;
        // Before the first claim, so that what a crash left is handed out first, and alone.
        holder.free_the_dead(&mut db, options.lease).map_err(wrong)?;
        let (requests, inbox) = Requests::new(path.clone());
        listen(directory, &holder, requests.clone())?;
        let visible = Arc::new(Notify::new());
        let opened_with = options.clone();
        let thread = StoreThread { db, holder, options, path, visible: Arc::clone(&visible) };
        let name = "brigade-state".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(move || thread.run(inbox));
        let thread = thread.map_err(|error| {
            let directory = directory.display();
            ConnectorError::transient(format!(
                "no thread to be had for the state {directory}: {error}"
            ))
        })?;
        Ok(Self {
            id: StoreId::new(format!("embedded:{}", directory.display())),
            directory: directory.to_path_buf(),
            requests,
            visible,
            incarnation: IncarnationId(u128::from_le_bytes(incarnation)),
            targets: Arc::default(),
            options: opened_with,
            used: Mutex::new(Used { stores: 1, thread: Some(thread) }),
        })
    }

    fn tell_of_other(&self, options: &Options) {
        if self.options != *options {
            tracing::warn!(
                state = %self.directory.display(), first = ?self.options, second = ?options,
                "it is open in this process already, with other options: those of the first hold"
            );
        }
    }

    /// Registers another store that uses the file, unless it is closed for good.
    fn enter(&self) -> bool {
        let mut used = self.used.lock();
        let open = used.stores > 0;
        used.stores += usize::from(open);
        open
    }

    /// Unregisters a store; the last one gets the thread, to stop it.
    fn leave(&self) -> Option<JoinHandle<()>> {
        let mut used = self.used.lock();
        used.stores -= 1;
        if used.stores == 0 { used.thread.take() } else { None }
    }
}

impl Store {
    /// Opens the store in this directory, which is created if it does not exist. If this process
    /// already has it open, the options of the first opening apply.
    ///
    /// # Errors
    /// The directory cannot be created or written, is on a network file system, or holds a file
    /// that is damaged, newer, or not Brigade's.
    pub fn open(directory: &Path, options: Options) -> Result<Arc<Self>, ConnectorError> {
        let io = |error: std::io::Error| {
            ConnectorError::permanent(format!(
                "the state's directory {} cannot be made: {error}",
                directory.display()
            ))
        };
        std::fs::create_dir_all(directory).map_err(io)?;
        let directory = directory.canonicalize().map_err(io)?;
        let mut open = OPEN.lock();
        if let Some(file) = open.get(&directory).and_then(Weak::upgrade)
            && file.enter()
        {
            file.tell_of_other(&options);
            return Ok(Self::of(file));
        }
        let file = Arc::new(OpenFile::start(&directory, options)?);
        open.retain(|_, file| file.strong_count() > 0);
        open.insert(directory, Arc::downgrade(&file));
        Ok(Self::of(file))
    }

    /// Whether a store was ever made in this directory.
    pub(crate) fn is_made(directory: &Path) -> bool {
        let path = directory.join(FILE);
        path.exists() || path.with_extension("made").exists()
    }

    /// A store that is registered.
    fn of(file: Arc<OpenFile>) -> Arc<Self> {
        let shut = AtomicBool::new(false);
        Arc::new_cyclic(|me| Self { me: Weak::clone(me), file, shut })
    }

    /// The same on a thread that may block: the disk may be slow, and another process may keep the
    /// file locked for long.
    ///
    /// # Errors
    /// See [`open`](Store::open).
    pub async fn open_aside(
        directory: PathBuf,
        options: Options,
    ) -> Result<Arc<Self>, ConnectorError> {
        let place = directory.display().to_string();
        let opened = tokio::task::spawn_blocking(move || Self::open(&directory, options)).await;
        opened.map_err(|error| {
            let text = format!("the state {place} was not opened to its end");
            ConnectorError::transient(text).caused_by(error)
        })?
    }

    /// A handle that keeps the store open.
    pub(crate) fn hold(&self) -> Arc<Self> {
        self.me.upgrade().expect("who calls this holds it")
    }

    /// Ends its use of the file. The last user gets the thread, to stop it.
    fn leave(&self) -> Option<JoinHandle<()>> {
        if self.shut.swap(true, Ordering::Relaxed) { None } else { self.file.leave() }
    }

    pub(crate) fn requests(&self) -> &Requests {
        &self.file.requests
    }

    pub(crate) fn visible(&self) -> &Arc<Notify> {
        &self.file.visible
    }

    pub(crate) fn incarnation(&self) -> IncarnationId {
        self.file.incarnation
    }

    /// Registers a queue that is going to be written; returns its name for operations.
    pub(crate) fn enter(
        &self,
        queue: &QueueSpec,
    ) -> Result<(Arc<str>, Arc<Target>), ConnectorError> {
        let settings = queue.settings()?;
        let name: Arc<str> = format!("{}/{}", queue.pipeline, queue.name).into();
        let groups = match queue.groups.is_empty() {
            true => vec!["".into()],
            false => queue.groups.clone(),
        };
        let target = Arc::new(Target {
            pipeline: Arc::clone(&queue.pipeline),
            name: Arc::clone(&queue.name),
            groups,
            limit: queue.limit.clone(),
            settings,
        });
        let mut targets = self.file.targets.0.lock();
        targets.insert(Arc::clone(&name), Arc::clone(&target));
        drop(targets);
        Ok((name, target))
    }

    pub(crate) fn targets(&self) -> &Arc<Targets> {
        &self.file.targets
    }
}

impl Targets {
    /// Finds the queues that operations name.
    pub(crate) fn resolve(&self, ops: Vec<StoreOp>) -> Result<Vec<Op>, ConnectorError> {
        let targets = self.0.lock();
        let mut resolved: Vec<Op> = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                StoreOp::Put { space, key, value } => {
                    resolved.push(Op::Put { space, key, value });
                }
                StoreOp::Delete { space, key } => resolved.push(Op::Delete { space, key }),
                StoreOp::Enqueue { queue, outgoing } => {
                    if let Some(Op::Enqueue { name, batch, .. }) = resolved.last_mut()
                        && *name == queue
                    {
                        batch.push(outgoing);
                        continue;
                    }
                    let target = targets.get(&queue).cloned().ok_or_else(|| {
                        ConnectorError::permanent(format!("no producer of queue `{queue}` is open"))
                    })?;
                    resolved.push(Op::Enqueue { name: queue, target, batch: vec![outgoing] });
                }
            }
        }
        Ok(resolved)
    }
}

/// An operation, with its queue; adjacent ones for one queue are combined.
pub(crate) enum Op {
    Put { space: Arc<str>, key: String, value: Bytes },
    Delete { space: Arc<str>, key: String },
    Enqueue { name: Arc<str>, target: Arc<Target>, batch: Vec<brigade_core::connector::Outgoing> },
}

/// Performs operations within the transaction.
pub(crate) fn apply(work: &mut Work<'_>, ops: &[Op], of: MadeOf) -> Result<(), Fault> {
    for op in ops {
        match op {
            Op::Put { space, key, value } => {
                let sql = "INSERT INTO state VALUES (?1, ?2, ?3)
                           ON CONFLICT (space, key) DO UPDATE SET value = excluded.value";
                work.db.prepare_cached(sql)?.execute(params![&**space, key, &value[..]])?;
            }
            Op::Delete { space, key } => {
                let sql = "DELETE FROM state WHERE space = ?1 AND key = ?2";
                work.db.prepare_cached(sql)?.execute(params![&**space, key])?;
            }
            Op::Enqueue { target, batch, .. } => enqueue(work, target, batch, of)?,
        }
    }
    Ok(())
}

/// Starts a thread that waits for other processes' bytes; it ends soon after the store does.
fn listen(directory: &Path, holder: &Holder, requests: Requests) -> Result<(), ConnectorError> {
    let wrong = |error: std::io::Error| {
        let place = directory.display();
        ConnectorError::transient(format!(
            "the state {place} cannot listen for other processes: {error}"
        ))
    };
    const LOOK: std::time::Duration = std::time::Duration::from_millis(500);
    let socket = holder.socket.try_clone().map_err(wrong)?;
    socket.set_read_timeout(Some(LOOK)).map_err(wrong)?;
    let listening = move || {
        let mut byte = [0; 1];
        loop {
            let woken = socket.recv(&mut byte).is_ok();
            let open = if woken { requests.wake() } else { requests.is_open() };
            if !open {
                return;
            }
        }
    };
    let name = "brigade-wake".to_owned();
    std::thread::Builder::new().name(name).spawn(listening).map_err(wrong)?;
    Ok(())
}

/// Locks a file, which is created if it does not exist.
fn lock(path: &Path) -> Result<File, TryLockError> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(TryLockError::Error)?;
    }
    // Read access is enough to lock it: another user may have created it.
    let file = File::open(path).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => File::options().create(true).append(true).open(path),
        _ => Err(error),
    });
    let file = file.map_err(TryLockError::Error)?;
    file.try_lock().map(|()| file)
}

/// SQLite's locks do not work over a network.
fn refuse_network(directory: &Path) -> Result<(), ConnectorError> {
    let Ok(mounts) = std::fs::read("/proc/self/mounts") else { return Ok(()) };
    let Some(Network { place, kind }) = network(&mounts, directory) else { return Ok(()) };
    Err(ConnectorError::permanent(format!(
        "the state {} lies on {}, a network file system or one that is not known to be local ({kind}), where \
         locks cannot be trusted: put it on a local disk",
        directory.display(),
        place.display()
    )))
}

#[async_trait]
impl StateStore for Store {
    fn store_id(&self) -> StoreId {
        self.file.id.clone()
    }

    async fn load(&self, space: &str, key: &str) -> Result<Option<Bytes>, ConnectorError> {
        let (space, key) = (space.to_owned(), key.to_owned());
        self.file
            .requests
            .ask(move |work| {
                let sql = "SELECT value FROM state WHERE space = ?1 AND key = ?2";
                let mut value = work.db.prepare_cached(sql)?;
                let value = value.query_row(params![space, key], |row| row.get::<_, Vec<u8>>(0));
                Ok(value.optional()?.map(Bytes::from))
            })
            .await
    }

    async fn scan(
        &self,
        space: &str,
        prefix: &str,
    ) -> Result<Vec<(String, Bytes)>, ConnectorError> {
        let (space, prefix) = (space.to_owned(), prefix.to_owned());
        self.file
            .requests
            .ask(move |work| {
                let sql = "SELECT key, value FROM state
                           WHERE space = ?1 AND key >= ?2 AND substr(key, 1, length(?2)) = ?2
                           ORDER BY key";
                let mut rows = work.db.prepare_cached(sql)?;
                let rows = rows.query_map(params![space, prefix], |row| {
                    Ok((row.get(0)?, Bytes::from(row.get::<_, Vec<u8>>(1)?)))
                })?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    async fn commit(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError> {
        let ops = self.file.targets.resolve(ops)?;
        self.file.requests.ask(move |work| apply(work, &ops, MadeOf::Any)).await
    }

    async fn commit_of_one(&self, ops: Vec<StoreOp>) -> Result<(), ConnectorError> {
        let ops = self.file.targets.resolve(ops)?;
        self.file.requests.ask(move |work| apply(work, &ops, MadeOf::One)).await
    }

    async fn lock(&self, name: &str) -> Result<Option<StateLock>, ConnectorError> {
        // The file stays: removing it could take it from a process that has just opened it.
        let IncarnationId(hash) = IncarnationId::of(name.as_bytes());
        let path = self.file.directory.join(LOCKS).join(format!("{hash:032x}.lock"));
        match lock(&path) {
            Ok(file) => Ok(Some(StateLock::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                let text = format!("cannot lock {} for `{name}`: {error}", path.display());
                Err(ConnectorError::permanent(text))
            }
        }
    }

    async fn queue_consumer(
        &self,
        queue: &QueueSpec,
        reader: &Reader,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(EmbeddedConsumer::open(self, queue, reader).await?))
    }

    async fn queue_producer(&self, queue: &QueueSpec) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(EmbeddedProducer::open(self, queue).await?))
    }

    async fn queue_admin(&self, queue: &QueueSpec) -> Result<Arc<dyn QueueAdmin>, ConnectorError> {
        Ok(Arc::new(EmbeddedAdmin::open(self, queue)?))
    }

    async fn queue_names(&self, pipeline: &str) -> Result<Vec<String>, ConnectorError> {
        let pipeline = pipeline.to_owned();
        self.file
            .requests
            .ask(move |work| {
                let sql = "SELECT DISTINCT name FROM queues WHERE pipeline = ?1 ORDER BY name";
                let mut names = work.db.prepare_cached(sql)?;
                let names = names.query_map([&pipeline], |row| row.get(0))?;
                Ok(names.collect::<rusqlite::Result<_>>()?)
            })
            .await
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        let Some(thread) = self.leave() else { return Ok(()) };
        self.file.requests.stop();
        // Joining blocks, and this may be a lane.
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        match joined {
            Ok(Ok(())) => Ok(()),
            _ => Err(ConnectorError::permanent(format!(
                "the thread of the state {} ended badly: what it said is in the log",
                self.file.directory.display()
            ))),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Nobody waits for its end.
        if self.leave().is_some() {
            self.file.requests.stop();
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.file.id).finish()
    }
}
