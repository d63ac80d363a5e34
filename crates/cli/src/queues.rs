//! `brigade queues`: lists queues, shows, puts, releases and purges their messages.

use std::io::{BufRead, BufReader};
use std::sync::Arc;

use anyhow::Context;
use brigade_core::connector::{Outgoing, QueueAdmin};
use brigade_core::{Codec, Message};
use brigade_runtime::{Entry, Registry};
use clap::{Args, Subcommand};

use crate::Exit;
use crate::common::{FileArguments, Opened, number, print, say, table};

/// Look into queues.
#[derive(Debug, Args)]
pub(crate) struct Queues {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the queues and how much they hold.
    List {
        #[command(flatten)]
        file: FileArguments,
    },
    /// Show a queue's first messages without taking them.
    Peek {
        #[command(flatten)]
        file: FileArguments,
        /// The queue.
        queue: String,
        /// How many messages.
        #[arg(long, default_value_t = 10)]
        limit: u64,
    },
    /// Put the lines of standard input on a queue, one message per line.
    Put {
        #[command(flatten)]
        file: FileArguments,
        /// The queue.
        queue: String,
        /// The key for messages that have none at the queue's `key`.
        #[arg(long)]
        key: Option<String>,
    },
    /// Let parked messages be handed out again.
    Release {
        #[command(flatten)]
        file: FileArguments,
        /// The queue.
        queue: String,
        /// The messages' positions, as `peek` shows them; if none are given, all of them.
        positions: Vec<u64>,
    },
    /// Delete every message of a queue that is not being worked on.
    Purge {
        #[command(flatten)]
        file: FileArguments,
        /// The queue.
        queue: String,
    },
}

/// How many lines are put in one transaction at most.
const PUT_BATCH: usize = 1000;
/// How many bytes of the input are read at once: as many as a pipe holds.
const READ: usize = 64 << 10;

impl Queues {
    pub(crate) async fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let opened = match &self.command {
            Command::Put { file, .. } => file.open(registry).await?,
            Command::List { file }
            | Command::Peek { file, .. }
            | Command::Release { file, .. }
            | Command::Purge { file, .. } => file.look(registry).await?,
        };
        let done = self.done(&opened, registry).await;
        opened.close_after(done).await?;
        Ok(Exit::Done)
    }

    async fn done(&self, opened: &Opened, registry: &Registry) -> anyhow::Result<()> {
        match &self.command {
            Command::List { .. } => list(opened, registry).await,
            Command::Peek { queue, limit, .. } => peek(opened, registry, queue, *limit).await,
            Command::Put { queue, key, .. } => put(opened, registry, queue, key.as_deref()).await,
            Command::Release { queue, positions, .. } => {
                release(opened, registry, queue, positions).await
            }
            Command::Purge { queue, .. } => {
                let purged = opened.queue(queue, registry).await?.purge().await?;
                print(&format!("{purged} messages deleted"))
            }
        }
    }
}

/// Releases the parked messages at these positions, or all if there are none.
async fn release(
    opened: &Opened,
    registry: &Registry,
    name: &str,
    positions: &[u64],
) -> anyhow::Result<()> {
    let of_queue = || format!("queue `{name}`");
    let queue = opened.queue(name, registry).await?;
    // Whether it can be done for queues of this type at all is said first.
    queue.release(Some(&[])).await.with_context(of_queue)?;
    for position in positions {
        let is_parked = queue.get(*position).await?.is_some_and(|peeked| peeked.parked.is_some());
        anyhow::ensure!(
            is_parked,
            "queue `{name}`: no message is parked at position {position}; nothing was done"
        );
    }
    let only = (!positions.is_empty()).then_some(positions);
    let released = queue.release(only).await.with_context(of_queue)?;
    print(&format!("{released} messages released"))
}

async fn list(opened: &Opened, registry: &Registry) -> anyhow::Result<()> {
    let topology = opened.pipeline.topology();
    let mut rows =
        table(&["queue", "type", "for", "ready", "delayed", "in flight", "parked", "bytes"]);
    let declared = topology.queues.iter().map(|(name, q)| (name.to_string(), q.type_name.clone()));
    let kept = opened.state.queue_names(&topology.pipeline).await?;
    let kept = kept.into_iter().filter(|name| !topology.queues.contains_key(name.as_str()));
    let kept = kept.map(|name| (name, "embedded".to_owned()));
    let mut notes = Vec::new();
    for (name, kind) in declared.chain(kept) {
        let asked = async { Ok(opened.queue(&name, registry).await?.status().await?) };
        let status = asked.await.unwrap_or_else(|error: anyhow::Error| {
            rows.add_row([name.as_str(), kind.as_str(), "", "?", "?", "?", "?", "?"]);
            notes.push(format!("note: queue `{name}`: {error:#}"));
            Vec::new()
        });
        for status in status {
            let lag = status.lag;
            rows.add_row([
                name.clone(),
                kind.clone(),
                status.group,
                number(lag.ready),
                number(lag.delayed),
                number(lag.in_flight),
                number(lag.parked),
                number(lag.bytes),
            ]);
        }
    }
    print(&rows.to_string())?;
    notes.iter().for_each(|note| say(note));
    Ok(())
}

async fn peek(opened: &Opened, registry: &Registry, queue: &str, limit: u64) -> anyhow::Result<()> {
    let peeked = opened.queue(queue, registry).await?.peek(0, limit).await?;
    for peeked in peeked {
        let payload = peeked.message.payload.as_deref().unwrap_or_default();
        let parked = peeked.parked.map_or_else(String::new, |why| format!(" parked={why:?}"));
        let reader = match &*peeked.group {
            "" => String::new(),
            group => format!(" for={group}"),
        };
        print(&format!(
            "#{} {}{reader} attempts={} redeliveries={}{parked} {}",
            peeked.position,
            peeked.message.id,
            peeked.attempts,
            peeked.redeliveries,
            String::from_utf8_lossy(payload)
        ))?;
    }
    Ok(())
}

async fn put(
    opened: &Opened,
    registry: &Registry,
    queue: &str,
    key: Option<&str>,
) -> anyhow::Result<()> {
    let admin = opened.queue_to_fill(queue, registry).await?;
    let codec = opened.pipeline.topology().queues.get(queue).map_or(Codec::Json, |q| q.codec);
    let entry = opened.pipeline.entry(queue)?;
    let mut putting = Putting { admin, queue, batch: Vec::new(), lines: 0 };
    let mut lines = BufReader::with_capacity(READ, std::io::stdin().lock());
    while let Some(line) = next_line(&mut lines) {
        let message = match message(line, queue, codec, key, entry.as_ref()) {
            Ok(message) => message,
            Err(why) => {
                // The lines before it are put anyway, whichever batches they are in.
                putting.put().await?;
                let before = putting.lines;
                anyhow::bail!("line {} {why}; the {before} before it were put", before + 1);
            }
        };
        putting.batch.push(Outgoing::from(message));
        // The next line may be long in coming, or never come.
        if putting.batch.len() >= PUT_BATCH || !lines.buffer().contains(&b'\n') {
            putting.put().await?;
        }
    }
    putting.put().await?;
    print(&format!("{} messages put", putting.lines))
}

/// The next line, without its line ending; `None` at the end.
fn next_line(lines: &mut impl BufRead) -> Option<std::io::Result<Vec<u8>>> {
    let mut line = Vec::new();
    match lines.read_until(b'\n', &mut line) {
        Ok(0) => None,
        Ok(_) => {
            line.pop_if(|last| *last == b'\n');
            Some(Ok(line))
        }
        Err(error) => Some(Err(error)),
    }
}

/// A line as a message, as a stage would put it on the queue; or why that is impossible.
fn message(
    line: std::io::Result<Vec<u8>>,
    queue: &str,
    codec: Codec,
    key: Option<&str>,
    entry: Option<&Entry>,
) -> Result<Message, String> {
    let mut line = line.map_err(|error| format!("cannot be read: {error}"))?;
    line.pop_if(|last| *last == b'\r');
    if matches!(codec, Codec::Json | Codec::Text)
        && let Err(error) = std::str::from_utf8(&line)
    {
        let (at, codec) = (error.valid_up_to() + 1, codec.as_str());
        return Err(format!("is not UTF-8 from byte {at} on, and queue `{queue}` takes {codec}"));
    }
    let mut message = Message::new(line);
    message.key = key.map(|key| key.to_owned().into());
    if let Some(entry) = entry {
        let received = entry.receive(&mut message);
        received.map_err(|cause| format!("cannot be put: {}", cause.message))?;
    }
    Ok(message)
}

/// Lines on their way to a queue.
struct Putting<'q> {
    admin: Arc<dyn QueueAdmin>,
    queue: &'q str,
    batch: Vec<Outgoing>,
    /// How many were put.
    lines: usize,
}

impl Putting<'_> {
    /// Puts the batch; if the queue does not take all of it, the error says what it took.
    async fn put(&mut self) -> anyhow::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return Ok(());
        }
        let (queue, before, last) = (self.queue, self.lines, self.lines + batch.len());
        let produced = self.admin.put(batch).await.with_context(|| {
            let first = before + 1;
            format!(
                "queue `{queue}`: the {before} lines before line {first} were put, and of lines {first} \
                 to {last} none or some"
            )
        })?;
        let mut refused = None;
        for (line, produced) in (before + 1..).zip(produced) {
            match produced.confirmed() {
                Ok(()) => self.lines += 1,
                Err(error) => {
                    refused.get_or_insert((line, error));
                }
            }
        }
        let Some((line, error)) = refused else { return Ok(()) };
        let put = self.lines;
        Err(error).with_context(|| {
            format!(
                "queue `{queue}`: of the first {last} lines {put} were put, but not line {line}"
            )
        })
    }
}
