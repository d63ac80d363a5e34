//! `brigade dead-letters`: lists, shows, redrives and deletes dead letters.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use brigade_core::connector::{
    ConnectorError, ErrorKind, Outgoing, Peeked, QueueAdmin, QueueStatus,
};
use brigade_core::state::StateLock;
use brigade_core::{DeadLetter, MessageId};
use brigade_runtime::{Registry, dead_letter_queue, redrive_queue};
use clap::{Args, Subcommand};

use crate::Exit;
use crate::common::{FileArguments, Opened, print, table};

/// Inspect dead letters, and send them back.
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
        /// How many to list per queue.
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Show one in full.
    Show {
        #[command(flatten)]
        choice: Choice,
        /// Its number, as `list` shows it.
        number: u64,
    },
    /// Send dead letters back to the stage that gave up on them.
    Redrive {
        #[command(flatten)]
        choice: Choice,
        /// Their numbers; if none are given, all of them.
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

/// A queue of dead letters, and which of them are meant.
struct Letters {
    name: String,
    queue: Arc<dyn QueueAdmin>,
    pipeline: Arc<str>,
    stage: Option<String>,
}

/// How many are inspected and sent back at once.
const BATCH: u64 = 500;
/// How often it is checked whether another command is done.
const LOOK: Duration = Duration::from_millis(100);

impl DeadLetters {
    pub(crate) async fn run(&self, registry: &Registry) -> anyhow::Result<Exit> {
        let choice = match &self.command {
            Command::List { choice, .. }
            | Command::Show { choice, .. }
            | Command::Redrive { choice, .. }
            | Command::Delete { choice, .. } => choice,
        };
        let opened = choice.file.look(registry).await?;
        let done = self.done(&opened, registry, choice.stage.as_deref()).await;
        opened.close_after(done).await?;
        Ok(Exit::Done)
    }

    async fn done(
        &self,
        opened: &Opened,
        registry: &Registry,
        stage: Option<&str>,
    ) -> anyhow::Result<()> {
        let letters = find(opened, registry, stage).await?;
        match &self.command {
            Command::List { limit, .. } => list(&letters, *limit).await?,
            Command::Show { number, .. } => show(&letters, *number).await?,
            Command::Redrive { numbers, .. } => {
                let _alone = alone(opened).await?;
                let sent = redrive(opened, registry, &letters, numbers).await?;
                // For each one it was reported why it stays.
                anyhow::ensure!(
                    sent > 0 || numbers.is_empty(),
                    "nothing was sent back: each that was named stays"
                );
                print(&format!("{} sent back", letters_counted(sent)))?;
            }
            Command::Delete { numbers, .. } => {
                let _alone = alone(opened).await?;
                let chosen = chosen(&letters, numbers).await?;
                can_delete(&letters, &chosen).await?;
                let mut deleted = 0;
                for (letters, chosen) in letters.iter().zip(chosen) {
                    let positions: Vec<u64> = chosen.iter().map(|peeked| peeked.position).collect();
                    deleted += letters.queue.delete(&positions).await?;
                }
                print(&format!("{} deleted", letters_counted(deleted)))?;
            }
        }
        Ok(())
    }
}

/// The lock that is held while letters are sent back or deleted: two commands doing so at the same
/// time would send back the same ones.
async fn alone(opened: &Opened) -> anyhow::Result<StateLock> {
    let mut told = false;
    loop {
        if let Some(lock) = opened.state.lock("dead-letters").await? {
            return Ok(lock);
        }
        if !told {
            crate::common::say(
                "note: another command sends back or deletes dead letters of this state; this one waits \
                 for it",
            );
        }
        told = true;
        tokio::time::sleep(LOOK).await;
    }
}

impl Letters {
    /// The dead letter in a message, if it is one of those meant. What cannot be read belongs to no
    /// stage.
    fn meant(&self, peeked: &Peeked) -> Option<anyhow::Result<DeadLetter>> {
        match letter(peeked) {
            Ok(letter) => {
                let of_stage = self.stage.as_ref().is_none_or(|stage| letter.stage == *stage);
                (of_stage && *letter.pipeline == *self.pipeline).then_some(Ok(letter))
            }
            Err(error) => self.stage.is_none().then_some(Err(error)),
        }
    }

    /// How many messages there are, of any stage.
    async fn count(&self) -> anyhow::Result<u64> {
        let status = self.queue.status().await?;
        let known = status.iter().map(|QueueStatus { lag, .. }| {
            let in_use = lag.in_flight.unwrap_or(0) + lag.parked.unwrap_or(0);
            lag.ready.map(|ready| ready + lag.delayed.unwrap_or(0) + in_use)
        });
        if let Some(count) = known.sum::<Option<u64>>() {
            return Ok(count);
        }
        let mut count = 0;
        loop {
            match self.queue.peek(count, BATCH).await?.len() {
                0 => return Ok(count),
                more => count += more as u64,
            }
        }
    }
}

fn letters_counted(count: u64) -> String {
    match count {
        1 => "1 dead letter".to_owned(),
        count => format!("{count} dead letters"),
    }
}

/// The queues of dead letters that can be inspected; for the others it is reported why they cannot.
///
/// # Errors
/// None of their types can be inspected.
async fn find(
    opened: &Opened,
    registry: &Registry,
    only: Option<&str>,
) -> anyhow::Result<Vec<Letters>> {
    let topology = opened.pipeline.topology();
    if let Some(stage) = only {
        let known = || topology.stages.keys().map(|name| &**name).collect::<Vec<_>>().join(", ");
        anyhow::ensure!(
            topology.stages.contains_key(stage),
            "no stage `{stage}`; there are: {}",
            known()
        );
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
    let (mut letters, mut refused) = (Vec::new(), Vec::new());
    for name in names {
        match opened.queue(&name, registry).await {
            Ok(queue) => {
                let (pipeline, stage) = (Arc::clone(&topology.pipeline), only.map(str::to_owned));
                letters.push(Letters { name, queue, pipeline, stage });
            }
            Err(error) => match shut(&error) {
                Some(why) => refused.push(why),
                None => crate::common::say(&format!("note: {error}")),
            },
        }
    }
    anyhow::ensure!(!letters.is_empty() || refused.is_empty(), refused.join("\n"));
    refused.iter().for_each(|why| crate::common::say(&format!("note: {why}")));
    Ok(letters)
}

/// A text that says so, and what to do, if the type of a queue cannot be inspected.
fn shut(error: &anyhow::Error) -> Option<String> {
    let why = error.downcast_ref::<ConnectorError>()?;
    (why.kind() == ErrorKind::Unsupported).then(|| {
        format!(
            "{why}, so its dead letters can neither be listed nor sent back: give the queue another type, as \
             `embedded`, and put what it has there into that with `brigade queues put`"
        )
    })
}

async fn list(letters: &[Letters], limit: u64) -> anyhow::Result<()> {
    let mut rows = table(&["number", "queue", "stage", "cause", "attempts", "from", "message"]);
    for letters in letters {
        let (mut looked_at, mut listed) = (0, 0);
        while listed < limit {
            // Whole letters, which may be long: no more of them than it takes, unless few are meant.
            let more = (limit - listed).max(looked_at).min(BATCH);
            let batch = letters.queue.peek(looked_at, more).await?;
            if batch.is_empty() {
                break;
            }
            looked_at += batch.len() as u64;
            let meant = batch.iter().filter_map(|peeked| Some((peeked, letters.meant(peeked)?)));
            let room = usize::try_from(limit - listed).unwrap_or(usize::MAX);
            for (peeked, letter) in meant.take(room) {
                rows.add_row(row(&letters.name, peeked, letter));
                listed += 1;
            }
        }
    }
    print(&rows.to_string())
}

fn row(queue: &str, peeked: &Peeked, letter: anyhow::Result<DeadLetter>) -> [String; 7] {
    let (number, queue) = (peeked.position.to_string(), queue.to_owned());
    match letter {
        Ok(letter) => [
            number,
            queue,
            letter.stage,
            letter.cause.kind.as_str().to_owned(),
            letter.attempts.to_string(),
            letter.position,
            shortened(&letter.cause.message),
        ],
        Err(error) => {
            let [stage, cause, attempts, from] = ["?"; 4].map(str::to_owned);
            [number, queue, stage, cause, attempts, from, error.to_string()]
        }
    }
}

async fn show(letters: &[Letters], number: u64) -> anyhow::Result<()> {
    let chosen = chosen(letters, &[number]).await?;
    for peeked in chosen.iter().flatten() {
        let bytes = peeked.message.payload.as_deref().unwrap_or_default();
        match serde_json::from_slice::<serde_json::Value>(bytes) {
            Ok(json) => print(&serde_json::to_string_pretty(&json)?)?,
            // Whatever it is, it is shown.
            Err(_) => print(&String::from_utf8_lossy(bytes))?,
        }
    }
    Ok(())
}

/// The letters with these numbers, by queue; all must exist, and each in one queue only: every
/// store counts its own, so a number in several queues is ambiguous.
async fn chosen(letters: &[Letters], numbers: &[u64]) -> anyhow::Result<Vec<Vec<Peeked>>> {
    let mut chosen: Vec<Vec<Peeked>> = letters.iter().map(|_| Vec::new()).collect();
    // A number given twice counts once.
    let numbers: BTreeSet<u64> = numbers.iter().copied().collect();
    for number in numbers {
        let mut queues: Vec<String> = Vec::new();
        for (letters, chosen) in letters.iter().zip(&mut chosen) {
            let peeked = letters.queue.get(number).await?;
            let meant = peeked.filter(|peeked| letters.meant(peeked).is_some());
            queues.extend(meant.is_some().then(|| format!("`{}`", letters.name)));
            chosen.extend(meant);
        }
        let stage = letters.first().and_then(|letters| letters.stage.as_ref());
        let whose = stage.map_or_else(String::new, |stage| format!(" of stage `{stage}`"));
        anyhow::ensure!(!queues.is_empty(), "no dead letter {number}{whose}; nothing was done");
        anyhow::ensure!(
            queues.len() == 1,
            "dead letter {number} is in several queues, {}: say whose is meant with `--stage`; nothing was \
             done",
            queues.join(" and ")
        );
    }
    Ok(chosen)
}

/// Whether the letters that were chosen can be deleted: otherwise nothing is done.
async fn can_delete(letters: &[Letters], chosen: &[Vec<Peeked>]) -> anyhow::Result<()> {
    for (letters, _) in letters.iter().zip(chosen).filter(|(_, chosen)| !chosen.is_empty()) {
        letters.queue.can_delete().await?;
    }
    Ok(())
}

/// Sends back those with these numbers, or all that are there now: letters added meanwhile may be
/// the same ones again. Returns how many.
async fn redrive(
    opened: &Opened,
    registry: &Registry,
    letters: &[Letters],
    numbers: &[u64],
) -> anyhow::Result<u64> {
    let mut sent = 0;
    let all_chosen = chosen(letters, numbers).await?;
    can_delete(letters, &all_chosen).await?;
    for (letters, chosen) in letters.iter().zip(all_chosen) {
        let mut copies = Copies::of(letters).await?;
        if !numbers.is_empty() {
            sent += send_back(opened, registry, letters, &chosen, &mut copies).await?.sent;
            continue;
        }
        let (mut left, mut stay) = (letters.count().await?, 0);
        if left > 0 {
            // Before any is sent back: it would come again with each attempt to delete it.
            letters.queue.can_delete().await?;
        }
        while left > 0 {
            let batch = letters.queue.peek(stay, BATCH.min(left)).await?;
            if batch.is_empty() {
                break;
            }
            let looked_at = batch.len() as u64;
            let Gone { gone, sent: back } =
                send_back(opened, registry, letters, &batch, &mut copies).await?;
            // However a queue counts: what stays is never less than nothing.
            let stays = looked_at.saturating_sub(gone);
            (left, stay, sent) = (left - looked_at.min(left), stay + stays, sent + back);
        }
    }
    Ok(sent)
}

/// The copies of letters on a queue that several stages read, which has one for each of them. For
/// each message, as many letters are sent back as one stage has.
struct Copies {
    /// Whether there are copies: for other queues nothing is recorded.
    several: bool,
    /// For a message of a stage: how many letters each group has had so far, and how many were
    /// sent.
    seen: HashMap<(MessageId, String), (HashMap<String, u64>, u64)>,
}

impl Copies {
    async fn of(letters: &Letters) -> anyhow::Result<Self> {
        let several = letters.queue.status().await?.len() > 1;
        Ok(Self { several, seen: HashMap::new() })
    }

    /// Whether a letter is a copy, for another reader, of one that was sent back.
    fn has(&mut self, group: &str, letter: &DeadLetter) -> bool {
        if !self.several {
            return false;
        }
        let seen = self.seen.entry((letter.message.id, letter.stage.clone())).or_default();
        let (groups, sent) = seen;
        let own = groups.entry(group.to_owned()).or_default();
        *own += 1;
        let is_copy = *own <= *sent;
        *sent = (*sent).max(*own);
        is_copy
    }
}

/// What became of letters.
#[derive(Default)]
struct Gone {
    /// How many are no longer on their queue.
    gone: u64,
    /// How many of these were sent back; the others were copies.
    sent: u64,
}

/// Puts dead letters on the redrive queues of their stages, then deletes them: after a crash in
/// between, one exists twice, with the same message id.
async fn send_back(
    opened: &Opened,
    registry: &Registry,
    letters: &Letters,
    batch: &[Peeked],
    copies: &mut Copies,
) -> anyhow::Result<Gone> {
    let mut all = Gone::default();
    for peeked in batch {
        let Some(meant) = letters.meant(peeked) else { continue };
        let letter = match meant.and_then(|letter| fit_to_go_back(peeked, letter, opened)) {
            Ok(letter) => letter,
            Err(why) => {
                crate::common::say(&format!("note: {} stays: {why}", peeked.position));
                continue;
            }
        };
        if !copies.has(&peeked.group, &letter) {
            let back = opened.queue(&redrive_queue(&letter.stage), registry).await?;
            for produced in back.put(vec![Outgoing::from(letter.into_redrive())]).await? {
                produced.confirmed()?;
            }
            all.sent += 1;
        }
        all.gone += letters.queue.delete(&[peeked.position]).await?;
    }
    Ok(all)
}

/// A dead letter that its stage can take; others stay where they are.
fn fit_to_go_back(
    peeked: &Peeked,
    letter: DeadLetter,
    opened: &Opened,
) -> anyhow::Result<DeadLetter> {
    anyhow::ensure!(peeked.holder.is_none(), "a stage that reads the queue works on it");
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
    let shown = text.chars().take(SHOWN_MAX);
    let escaped = shown.map(|c| match c.is_control() {
        true => c.escape_debug().to_string(),
        false => c.to_string(),
    });
    escaped.collect()
}
