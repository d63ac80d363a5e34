use std::io::BufRead;

use anyhow::Context;
use brigade_core::connector::Outgoing;
use brigade_core::{Codec, Message};
use brigade_runtime::Registry;
use clap::{Args, Subcommand};

use crate::Exit;
use crate::common::{FileArguments, number, print, table};

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
    /// Put the lines of standard input on a queue, a message each.
    Put {
        #[command(flatten)]
        file: FileArguments,
        /// The queue.
        queue: String,
        /// The key of the messages.
        #[arg(long)]
        key: Option<String>,
    },
    /// Let parked messages be handed out again.
    Release {
        #[command(flatten)]
        file: FileArguments,
        /// The queue.
        queue: String,
        /// The messages' positions, as `peek` shows them; without any: all.
        positions: Vec<u64>,
    },
    /// Delete every message of a queue that nobody works on.
    Purge {
        #[command(flatten)]
        file: FileArguments,
        /// The queue.
        queue: String,
    },
}

/// How many lines are put in one transaction.
const PUT_BATCH: usize = 1000;

impl Queues {
    pub(crate) async fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        match &self.command {
            Command::List { file } => list(file, registry).await,
            Command::Peek { file, queue, limit } => peek(file, registry, queue, *limit).await,
            Command::Put { file, queue, key } => put(file, registry, queue, key.as_deref()).await,
            Command::Release { file, queue, positions } => {
                let only = (!positions.is_empty()).then_some(&positions[..]);
                let opened = file.look(registry).await?;
                let released = opened.queue(queue, registry).await?.release(only).await?;
                print(&format!("{released} messages released"))?;
                opened.close().await?;
                Ok(Exit::Done)
            }
            Command::Purge { file, queue } => {
                let opened = file.look(registry).await?;
                let purged = opened.queue(queue, registry).await?.purge().await?;
                print(&format!("{purged} messages deleted"))?;
                opened.close().await?;
                Ok(Exit::Done)
            }
        }
    }
}

async fn list(file: &FileArguments, registry: &Registry) -> anyhow::Result<Exit> {
    let opened = file.look(registry).await?;
    let topology = opened.pipeline.topology();
    let mut rows =
        table(&["queue", "type", "for", "ready", "delayed", "in flight", "parked", "bytes"]);
    let declared = topology.queues.iter().map(|(name, q)| (name.to_string(), q.type_name.clone()));
    let kept = opened.state.queue_names(&topology.pipeline).await?;
    let kept = kept.into_iter().filter(|name| !topology.queues.contains_key(name.as_str()));
    let kept = kept.map(|name| (name, "embedded".to_owned()));
    for (name, kind) in declared.chain(kept) {
        let Ok(queue) = opened.queue(&name, registry).await else {
            rows.add_row([name.as_str(), kind.as_str(), "", "?", "?", "?", "?", "?"]);
            continue;
        };
        for status in queue.status().await? {
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
    opened.close().await?;
    Ok(Exit::Done)
}

async fn peek(
    file: &FileArguments,
    registry: &Registry,
    queue: &str,
    limit: u64,
) -> anyhow::Result<Exit> {
    let opened = file.look(registry).await?;
    let peeked = opened.queue(queue, registry).await?.peek(0, limit).await?;
    for peeked in peeked {
        let payload = peeked.message.payload.as_deref().unwrap_or_default();
        let parked = peeked.parked.map_or_else(String::new, |why| format!(" parked={why:?}"));
        print(&format!(
            "#{} {} attempts={} redeliveries={}{parked} {}",
            peeked.position,
            peeked.message.id,
            peeked.attempts,
            peeked.redeliveries,
            String::from_utf8_lossy(payload)
        ))?;
    }
    opened.close().await?;
    Ok(Exit::Done)
}

async fn put(
    file: &FileArguments,
    registry: &Registry,
    queue: &str,
    key: Option<&str>,
) -> anyhow::Result<Exit> {
    let opened = file.open(registry).await?;
    let admin = opened.queue(queue, registry).await?;
    let codec = opened.pipeline.topology().queues.get(queue).map_or(Codec::Json, |q| q.codec);
    let text = matches!(codec, Codec::Json | Codec::Text);
    let (mut batch, mut count) = (Vec::new(), 0_usize);
    for line in std::io::stdin().lock().split(b'\n') {
        let number = count + batch.len() + 1;
        let mut line = line.with_context(|| format!("line {number} cannot be read"))?;
        line.pop_if(|last| *last == b'\r');
        if text && let Err(error) = std::str::from_utf8(&line) {
            // Those before it are put all the same, whichever batches they fell in.
            admin.put(batch).await?;
            anyhow::bail!(
                "line {number} is not UTF-8 from byte {} on, and queue `{queue}` takes {}; the {} \
                 before it were put",
                error.valid_up_to() + 1,
                codec.as_str(),
                number - 1
            );
        }
        let mut message = Message::new(line);
        message.key = key.map(|key| key.to_owned().into());
        batch.push(Outgoing::from(message));
        if batch.len() >= PUT_BATCH {
            count += batch.len();
            admin.put(std::mem::take(&mut batch)).await?;
        }
    }
    count += batch.len();
    admin.put(batch).await?;
    print(&format!("{count} messages put"))?;
    drop(admin);
    opened.close().await?;
    Ok(Exit::Done)
}
