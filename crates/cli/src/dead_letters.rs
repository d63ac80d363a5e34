use std::sync::Arc;

use brigade_core::DeadLetter;
use brigade_core::connector::{Outgoing, Peeked, QueueAdmin};
use brigade_runtime::{Registry, dead_letter_queue, redrive_queue};
use clap::{Args, Subcommand};

use crate::Exit;
use crate::common::{FileArguments, Opened, print, table};

/// Look at dead letters, and send them back.
#[derive(Debug, Args)]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters.
    List {
        #[command(flatten)]
        choice: Choice,
        /// How many, of each queue.
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Show one, whole.
    Show {
        #[command(flatten)]
        choice: Choice,
        /// Its number, as `list` shows it.
        number: u64,
    },
    /// Send dead letters back to the stage that gave them up.
    Redrive {
        #[command(flatten)]
        choice: Choice,
        /// Their numbers; without any, all of them.
        numbers: Vec<u64>,
    },
    /// Delete dead letters.
    Delete {
        #[command(flatten)]
        choice: Choice,
        /// Their numbers.
        #[arg(required = true)]
        numbers: Vec<u64>,
    },
}

/// Which dead letters.
#[derive(Debug, Args)]
struct Choice {
    #[command(flatten)]
    file: FileArguments,
    /// Only those of this stage.
    #[arg(long)]
    stage: Option<String>,
}

/// A queue of dead letters.
struct Letters {
    name: String,
    queue: Arc<dyn QueueAdmin>,
}

/// How many are sent back at once.
const REDRIVE_BATCH: u64 = 500;

impl DeadLetters {
    pub(crate) async fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let choice = match &self.command {
            Command::List { choice, .. }
            | Command::Show { choice, .. }
            | Command::Redrive { choice, .. }
            | Command::Delete { choice, .. } => choice,
        };
        let opened = choice.file.look(registry).await?;
        let letters = find(&opened, registry, choice.stage.as_deref()).await?;
        match &self.command {
            Command::List { limit, .. } => list(&letters, *limit).await?,
            Command::Show { number, .. } => show(&letters, *number).await?,
            Command::Redrive { numbers, .. } => {
                all_there(&letters, numbers).await?;
                let sent = redrive(&opened, registry, &letters, numbers).await?;
                print(&format!("{} sent back", letters_counted(sent)))?;
            }
            Command::Delete { numbers, .. } => {
                all_there(&letters, numbers).await?;
                let mut deleted = 0;
                for letters in &letters {
                    deleted += letters.queue.delete(numbers).await?;
                }
                print(&format!("{} deleted", letters_counted(deleted)))?;
            }
        }
        drop(letters);
        opened.close().await?;
        Ok(Exit::Done)
    }
}

fn letters_counted(count: u64) -> String {
    match count {
        1 => "1 dead letter".to_owned(),
        count => format!("{count} dead letters"),
    }
}

/// The queues of dead letters that can be looked into.
async fn find(
    opened: &Opened,
    registry: &Registry,
    only: Option<&str>,
) -> anyhow::Result<Vec<Letters>> {
    let topology = opened.pipeline.topology();
    if let Some(stage) = only {
        anyhow::ensure!(topology.stages.contains_key(stage), "no stage `{stage}`");
    }
    let mut names: Vec<String> = Vec::new();
    for stage in topology.stages.values().filter(|s| only.is_none_or(|only| *s.name == *only)) {
        let name = match &stage.dead_letter {
            Some(queue) => queue.to_string(),
            None => dead_letter_queue(&stage.name),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let mut letters = Vec::new();
    for name in names {
        match opened.queue(&name, registry).await {
            Ok(queue) => letters.push(Letters { name, queue }),
            Err(error) => crate::common::say(&format!("note: {error}")),
        }
    }
    Ok(letters)
}

async fn list(letters: &[Letters], limit: u64) -> anyhow::Result<()> {
    let mut rows = table(&["number", "queue", "stage", "cause", "attempts", "from", "message"]);
    for Letters { name, queue } in letters {
        for peeked in queue.peek(0, limit).await? {
            let number = peeked.position.to_string();
            match letter(&peeked) {
                Ok(letter) => rows.add_row([
                    number,
                    name.clone(),
                    letter.stage,
                    letter.cause.kind.as_str().to_owned(),
                    letter.attempts.to_string(),
                    letter.position,
                    shortened(&letter.cause.message),
                ]),
                Err(error) => {
                    let text = error.to_string();
                    rows.add_row([number.as_str(), name, "?", "?", "?", "?", text.as_str()])
                }
            };
        }
    }
    print(&rows.to_string())
}

async fn show(letters: &[Letters], number: u64) -> anyhow::Result<()> {
    for Letters { queue, .. } in letters {
        let Some(peeked) = queue.get(number).await? else { continue };
        let bytes = peeked.message.payload.as_deref().unwrap_or_default();
        return match serde_json::from_slice::<serde_json::Value>(bytes) {
            Ok(json) => print(&serde_json::to_string_pretty(&json)?),
            // Whatever it is, it is shown.
            Err(_) => print(&String::from_utf8_lossy(bytes)),
        };
    }
    anyhow::bail!("no dead letter {number}")
}

/// Holds the numbers against what is there, before anything is done.
async fn all_there(letters: &[Letters], numbers: &[u64]) -> anyhow::Result<()> {
    for number in numbers {
        let mut there = false;
        for Letters { queue, .. } in letters {
            there |= queue.get(*number).await?.is_some();
        }
        anyhow::ensure!(there, "no dead letter {number}; nothing was done");
    }
    Ok(())
}

/// Puts dead letters on the redrive queues of their stages, then deletes them: after a crash in
/// between one is there twice, with the same message id.
async fn redrive(
    opened: &Opened,
    registry: &Registry,
    letters: &[Letters],
    numbers: &[u64],
) -> anyhow::Result<u64> {
    let mut sent = 0;
    for Letters { queue, .. } in letters {
        let mut stay = 0;
        loop {
            let batch = match numbers {
                [] => queue.peek(stay, REDRIVE_BATCH).await?,
                numbers => {
                    let mut batch = Vec::new();
                    for number in numbers {
                        batch.extend(queue.get(*number).await?);
                    }
                    batch
                }
            };
            if batch.is_empty() {
                break;
            }
            for peeked in &batch {
                let letter = match fit_to_go_back(peeked, opened) {
                    Ok(letter) => letter,
                    Err(why) => {
                        crate::common::say(&format!("note: {} stays: {why}", peeked.position));
                        stay += 1;
                        continue;
                    }
                };
                let back = opened.queue(&redrive_queue(&letter.stage), registry).await?;
                back.put(vec![Outgoing::from(letter.into_redrive())]).await?;
                sent += queue.delete(&[peeked.position]).await?;
            }
            if !numbers.is_empty() {
                break;
            }
        }
    }
    Ok(sent)
}

/// A dead letter whose stage can take it: others stay where they are.
fn fit_to_go_back(peeked: &Peeked, opened: &Opened) -> anyhow::Result<DeadLetter> {
    let letter = letter(peeked)?;
    if let Some(whole) = &letter.truncated {
        anyhow::bail!(
            "only its beginning was kept; the whole is {} bytes at {} of {}",
            whole.bytes,
            whole.from,
            letter.position
        );
    }
    let stages = &opened.pipeline.topology().stages;
    anyhow::ensure!(stages.contains_key(&*letter.stage), "there is no stage `{}`", letter.stage);
    Ok(letter)
}

fn letter(peeked: &Peeked) -> anyhow::Result<DeadLetter> {
    let bytes = peeked.message.payload.as_deref().unwrap_or_default();
    Ok(DeadLetter::from_json(bytes)?)
}

fn shortened(text: &str) -> String {
    const SHOWN_MAX: usize = 60;
    text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}
