//! A connector of one's own, type `spool`: a directory in which each file is a message. One writes
//! files into it, under their final name only when they are whole; the other reads and deletes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use brigade::connector::{
    Acked, Connector, ConnectorEnv, ConnectorError, Consumer, Failed, Features, Incoming, Lag,
    Outgoing, Problem, Produced, Producer, QueueSpec, Reader, Receipt, Want,
};
use brigade::state::StoreOp;
use brigade::{IncarnationId, Message, MessageId};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::Notify;

// ANCHOR: features
/// What is not here cannot be asked for: `brigade check` refuses it.
const FEATURES: Features = Features {
    consume: true,
    produce: true,
    durable: true,
    batch: true,
    empty_payload: true,
    binary: true,
    ..Features::NONE
};
// ANCHOR_END: features

// ANCHOR: connector
/// The connector.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spool;

/// The keys of a queue of this type.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    directory: PathBuf,
}

#[async_trait]
impl Connector for Spool {
    fn type_name(&self) -> &'static str {
        "spool"
    }

    fn features(&self, _: &Value) -> Features {
        FEATURES
    }

    // Written by hand here; with `schemars` it is derived from `Settings`.
    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "required": ["directory"],
            "properties": {
                "directory": { "type": "string", "description": "Where the messages' files are." },
            },
        })
    }

    fn check(&self, queue: &QueueSpec) -> Vec<Problem> {
        match queue.settings["directory"].as_str() {
            Some("") => vec![Problem::at("directory", "the path is empty")],
            _ => Vec::new(),
        }
    }

    async fn consumer(
        &self,
        queue: &QueueSpec,
        _: &Reader,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Consumer>, ConnectorError> {
        Ok(Arc::new(SpoolConsumer::open(queue)?))
    }

    async fn producer(
        &self,
        queue: &QueueSpec,
        _: &ConnectorEnv,
    ) -> Result<Arc<dyn Producer>, ConnectorError> {
        Ok(Arc::new(SpoolProducer { directory: opened(queue)? }))
    }
}

/// The queue's directory, made if it is not there.
fn opened(queue: &QueueSpec) -> Result<Arc<Path>, ConnectorError> {
    let Settings { directory } = queue.settings()?;
    fs::create_dir_all(&directory).map_err(|error| wrong(&directory, error))?;
    Ok(directory.into())
}
// ANCHOR_END: connector

/// A disk that is full may be emptied; a missing permission does not come by itself.
fn wrong(path: &Path, error: std::io::Error) -> ConnectorError {
    let text = format!("{}: {error}", path.display());
    match error.kind() {
        ErrorKind::PermissionDenied => ConnectorError::permanent(text),
        _ => ConnectorError::transient(text),
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, ConnectorError> + Send + 'static,
) -> Result<T, ConnectorError> {
    let done = tokio::task::spawn_blocking(run).await;
    done.unwrap_or_else(|error| Err(ConnectorError::transient(error.to_string())))
}

// ANCHOR: producer
struct SpoolProducer {
    directory: Arc<Path>,
}

/// Tells the files of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn write(directory: &Path, payload: &[u8]) -> std::io::Result<()> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{time:020}-{}-{number:012}", std::process::id());
    let unfinished = directory.join(format!("{name}.tmp"));
    // It survives the process then; to survive the loss of power, sync the file and the directory.
    fs::write(&unfinished, payload)?;
    fs::rename(unfinished, directory.join(format!("{name}.msg")))
}

#[async_trait]
impl Producer for SpoolProducer {
    fn features(&self) -> Features {
        FEATURES
    }

    async fn produce(&self, batch: &[Outgoing]) -> Result<Vec<Produced>, ConnectorError> {
        let payloads = batch.iter().map(|outgoing| outgoing.message.payload.clone());
        let payloads: Vec<_> = payloads.collect();
        let directory = Arc::clone(&self.directory);
        blocking(move || {
            for payload in &payloads {
                let payload = payload.as_deref().unwrap_or_default();
                write(&directory, payload).map_err(|error| wrong(&directory, error))?;
            }
            Ok(payloads.iter().map(|_| Produced::Confirmed).collect())
        })
        .await
    }

    async fn shutdown(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
}
// ANCHOR_END: producer

// ANCHOR: consumer
/// How often it looks for new files while there are none.
const LOOK: Duration = Duration::from_millis(20);

struct SpoolConsumer {
    name: Arc<str>,
    directory: Arc<Path>,
    held: Mutex<Held>,
    changed: Notify,
    /// Held for as long as the consumer is there: one process reads a directory.
    _lock: File,
}

/// The files that were seen and are not done, by numbers that receipts carry.
#[derive(Default)]
struct Held {
    next: u64,
    files: BTreeMap<u64, Seen>,
    closed: bool,
}

#[derive(Clone)]
struct Seen {
    path: PathBuf,
    attempts: u32,
    redeliveries: u32,
    /// How often it was handed out: a receipt of an earlier time does nothing.
    handed_out: u64,
    /// From when on it may be handed out; `None` while it is.
    free_at: Option<Instant>,
}

impl Held {
    /// Enters files that are new.
    fn enter(&mut self, listed: BTreeSet<PathBuf>) {
        let known: BTreeSet<&PathBuf> = self.files.values().map(|seen| &seen.path).collect();
        let fresh: Vec<PathBuf> = listed.into_iter().filter(|path| !known.contains(path)).collect();
        for path in fresh {
            let free_at = Some(Instant::now());
            let seen = Seen { path, attempts: 0, redeliveries: 0, handed_out: 0, free_at };
            self.files.insert(self.next, seen);
            self.next += 1;
        }
    }

    /// What may be handed out now; it is not taken yet.
    fn free(&self, most: usize) -> Vec<(u64, Seen)> {
        let now = Instant::now();
        let free = self.files.iter().filter(|(_, seen)| seen.free_at.is_some_and(|at| at <= now));
        free.take(most).map(|(number, seen)| (*number, seen.clone())).collect()
    }
}

impl SpoolConsumer {
    fn open(queue: &QueueSpec) -> Result<Self, ConnectorError> {
        let directory = opened(queue)?;
        let path = directory.join("reader.lock");
        let lock = File::create(&path).map_err(|error| wrong(&path, error))?;
        // Transient: the other process may end, and then this one goes on.
        lock.try_lock()
            .map_err(|error| ConnectorError::transient(format!("{}: {error}", path.display())))?;
        let (name, held, changed) = (Arc::clone(&queue.name), Mutex::default(), Notify::new());
        Ok(Self { name, directory, held, changed, _lock: lock })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks which files there are.
    async fn look(&self) -> Result<(), ConnectorError> {
        let directory = Arc::clone(&self.directory);
        let listed = blocking(move || {
            let entries = fs::read_dir(&directory).map_err(|error| wrong(&directory, error))?;
            let files = entries.filter_map(Result::ok).filter(|entry| {
                // A directory cannot be read, whatever it is called.
                entry.file_type().is_ok_and(|kind| !kind.is_dir())
            });
            let paths = files.map(|entry| entry.path());
            Ok(paths.filter(|path| path.extension().is_some_and(|kind| kind == "msg")).collect())
        });
        let listed = listed.await?;
        self.held().enter(listed);
        Ok(())
    }

    /// Hands out files that were read. Nothing is awaited from the first change to the return, so
    /// a call that is dropped has taken nothing.
    fn take(&self, read: Vec<(u64, Option<Bytes>)>) -> Vec<Incoming> {
        let (mut taken, mut held) = (Vec::new(), self.held());
        for (number, payload) in read {
            let Some(payload) = payload else {
                // It was acked between the look and the reading.
                held.files.remove(&number);
                continue;
            };
            let Some(seen) = held.files.get_mut(&number) else { continue };
            seen.free_at = None;
            seen.handed_out += 1;
            // The same file gives the same id after a crash, and no other file ever does.
            let id = IncarnationId::of(seen.path.as_os_str().as_encoded_bytes());
            let message = Message::new(payload).with_id(MessageId::root(id, 0));
            let receipt = Receipt { position: number, fence: seen.handed_out };
            let mut incoming = Incoming::new(message, receipt);
            (incoming.attempts, incoming.redeliveries) = (seen.attempts, seen.redeliveries);
            taken.push(incoming);
        }
        taken
    }
}

/// Reads files until there are enough bytes; `None` stands for one that is gone.
fn read(files: Vec<(u64, Seen)>, most: usize) -> Result<Vec<(u64, Option<Bytes>)>, ConnectorError> {
    let (mut all, mut bytes) = (Vec::new(), 0);
    for (number, Seen { path, .. }) in files {
        if bytes >= most {
            break;
        }
        match fs::read(&path) {
            Ok(payload) => {
                bytes += payload.len();
                all.push((number, Some(payload.into())));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => all.push((number, None)),
            Err(error) => return Err(wrong(&path, error)),
        }
    }
    Ok(all)
}

#[async_trait]
impl Consumer for SpoolConsumer {
    fn features(&self) -> Features {
        FEATURES
    }

    async fn consume(&self, want: Want) -> Result<Vec<Incoming>, ConnectorError> {
        loop {
            if self.held().closed {
                return Err(ConnectorError::closed(&self.name));
            }
            let mut free = self.held().free(want.messages);
            if free.is_empty() {
                self.look().await?;
                free = self.held().free(want.messages);
            }
            let files = blocking(move || read(free, want.bytes)).await?;
            let taken = self.take(files);
            if !taken.is_empty() {
                return Ok(taken);
            }
            let _ = tokio::time::timeout(LOOK, self.changed.notified()).await;
        }
    }

    async fn ack(&self, receipts: Vec<Receipt>, _: Vec<StoreOp>) -> Result<Acked, ConnectorError> {
        let (mut done, mut acked) = (Vec::new(), Acked::default());
        for receipt in receipts {
            match self.held().files.get(&receipt.position) {
                Some(seen) if seen.handed_out == receipt.fence => {
                    done.push((receipt.position, seen.path.clone()));
                }
                Some(_) => acked.fenced.push(receipt),
                None => {} // Acked before: acking again is harmless.
            }
        }
        let removed = done.clone();
        blocking(move || {
            for (_, path) in &removed {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(wrong(path, error));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await?;
        let mut held = self.held();
        done.iter().for_each(|(number, _)| drop(held.files.remove(number)));
        Ok(acked)
    }

    async fn on_fail(&self, failed: Vec<Failed>) -> Result<Acked, ConnectorError> {
        let (mut acked, mut held) = (Acked::default(), self.held());
        for Failed { receipt, reason, delay } in failed {
            let seen = held.files.get_mut(&receipt.position);
            let Some(seen) = seen.filter(|seen| seen.handed_out == receipt.fence) else {
                acked.fenced.push(receipt);
                continue;
            };
            match reason.attempts() {
                Some(attempts) => seen.attempts = attempts,
                None => seen.redeliveries += 1,
            }
            seen.free_at = Some(Instant::now() + delay);
        }
        drop(held);
        self.changed.notify_one();
        Ok(acked)
    }

    async fn lag(&self) -> Result<Lag, ConnectorError> {
        self.look().await?;
        let held = self.held();
        let now = Instant::now();
        let count = |is: &dyn Fn(&Seen) -> bool| {
            Some(held.files.values().filter(|seen| is(seen)).count() as u64)
        };
        Ok(Lag {
            ready: count(&|seen| seen.free_at.is_some_and(|at| at <= now)),
            delayed: count(&|seen| seen.free_at.is_some_and(|at| at > now)),
            in_flight: count(&|seen| seen.free_at.is_none()),
            ..Lag::default()
        })
    }

    fn locate(&self, receipt: Receipt) -> String {
        let path = self.held().files.get(&receipt.position).map(|seen| seen.path.clone());
        path.map_or_else(|| self.name.to_string(), |path| path.display().to_string())
    }

    /// What is unresolved is in its files still: there is nothing to give back.
    async fn shutdown(&self) -> Result<(), ConnectorError> {
        self.held().closed = true;
        self.changed.notify_one();
        Ok(())
    }
}
// ANCHOR_END: consumer
