//! Following one file while it grows, over rotation and truncation.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::fingerprint::{Fingerprint, OneLife};
use crate::ledger::Position;
use crate::lines::Lines;
use crate::reader::{Count, Ended, Reader, Step};
use crate::rotated::Opened;
use crate::settings::Form;
use crate::told::Told;
use crate::trace::Trace;

/// How long a file has to be quiet that has lost its name to another, before it is left: its writer
/// has it open until it is told.
const QUIET: Duration = Duration::from_secs(1);
/// How long is waited for that. Who writes on longer was not told, and has to wait for nobody's quiet: it is
/// read beside the next one.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a file that was left has to be quiet before nobody looks at it any more.
const KEPT: Duration = Duration::from_secs(60);
/// How many files that were left are looked at.
const KEPT_MAX: usize = 16;

/// Follows the file of a name, and the files that had the name before it.
pub(crate) struct Follower<'r> {
    pub(crate) reader: &'r mut Reader,
    pub(crate) path: PathBuf,
    /// Where the name leads or last led, if it is a link.
    pub(crate) target: Option<PathBuf>,
    /// The key of the file whose records the consumer expects.
    told: Option<String>,
    /// How far files were read that were left, by key; empty lines count.
    pub(crate) left: HashMap<String, u64>,
    /// Files that were left and may have late writers, oldest first, and when something last came from each.
    pub(crate) late: VecDeque<(Followed, Instant)>,
    /// What cannot be read for now.
    pub(crate) cannot: Told,
}

/// A file that is being read.
pub(crate) struct Followed {
    path: PathBuf,
    pub(crate) file: File,
    pub(crate) key: String,
    /// None while it has no whole line, as nothing tells it from others then.
    life: Option<Life>,
}

/// What is read of a file until it is cut.
struct Life {
    /// Where it began.
    position: Position,
    lines: Lines<OneLife>,
    /// The number of the next record, and where it begins.
    next: (u64, u64),
    /// The last record that can be known again.
    last: Option<Trace>,
}

/// Since when a file has lost its name to another, and since when it is quiet.
struct Lost {
    since: Instant,
    quiet: Instant,
}

impl<'r> Follower<'r> {
    pub(crate) fn new(reader: &'r mut Reader) -> Self {
        let path = reader.settings.path();
        let (left, late, cannot) = (HashMap::new(), VecDeque::new(), Told::default());
        Self { reader, path, target: None, told: None, left, late, cannot }
    }

    pub(crate) fn run(mut self) -> Step<()> {
        let first = self.first()?;
        let mut current = self.begin(first)?;
        let mut lost: Option<Lost> = None;
        loop {
            let grew = self.read_on(&mut current, false)?;
            self.look_at_the_late()?;
            match self.after(&current)? {
                None => lost = None,
                Some(next) => {
                    let now = Instant::now();
                    let lost_it = lost.get_or_insert(Lost { since: now, quiet: now });
                    if grew {
                        lost_it.quiet = now;
                    }
                    let Lost { since, quiet } = *lost_it;
                    if now - quiet >= QUIET || now - since >= QUIET_WAIT_MAX {
                        current = self.go_on_to(next, current)?;
                        lost = None;
                        continue;
                    }
                }
            }
            self.reader.pause()?;
        }
    }

    /// The file to begin with: the oldest with lines that were not read, else the one of the name.
    fn first(&mut self) -> Step<Opened> {
        let name = self.path.display().to_string();
        let mut told = !self.reader.positions.iter().any(|(_, position)| position.path == name);
        loop {
            let named = self.named()?;
            if let Some(others) = self.others(named.as_ref(), None)? {
                if let (Some(named), false) = (&named, others.any_known || told) {
                    told = true;
                    if self.known(named)?.is_none() {
                        tracing::warn!(
                            queue = %self.reader.queue, file = %name,
                            "the file that was read before is not there any more, nor in its directory \
                             by another name: what was written to it after it was read is not read"
                        );
                    }
                }
                if let Some(next) = others.next.or(named) {
                    return Ok(next);
                }
            }
            self.reader.pause()?;
        }
    }

    /// Begins with a file, or goes on where it was left.
    fn begin(&self, opened: Opened) -> Step<Followed> {
        let position = self.known(&opened)?;
        let Opened { path, file, key, .. } = opened;
        let mut followed = Followed { path, file, key, life: None };
        followed.life = position.map(|position| self.life(position, &followed)).transpose()?;
        Ok(followed)
    }

    fn life(&self, position: Position, followed: &Followed) -> Step<Life> {
        let position = position.read_as(Form::LINES);
        let next = position.begins_at();
        let file = self.reader.checked(&followed.path, followed.file.try_clone())?;
        let file = OneLife::new(file, next.1, position.fingerprint.clone(), true);
        let file = self.reader.checked(&followed.path, file)?;
        let lines = Lines::new(file, next.1, self.reader.settings.max_message_bytes());
        Ok(Life { position, lines, next, last: None })
    }

    /// Leaves a file for the next one.
    fn go_on_to(&mut self, next: Opened, mut current: Followed) -> Step<Followed> {
        if self.late.len() >= KEPT_MAX
            && let Some((mut oldest, _)) = self.late.pop_front()
        {
            self.finish(&mut oldest)?;
        }
        if current.life.is_none() {
            // From now on it is known, also if it never gets a whole line.
            self.begins(&mut current, true)?;
            self.tell(&current);
        }
        self.leave(&current);
        self.late.push_back((current, Instant::now()));
        self.begin(next)
    }

    /// Reads what late writers have put into files that were left. One that cannot be read any more, as nobody has to
    /// have written to it, is told and not looked at again.
    fn look_at_the_late(&mut self) -> Step<()> {
        for (mut late, since) in std::mem::take(&mut self.late) {
            let grew = match self.read_on(&mut late, false) {
                Err(Ended::Failed(error)) => {
                    tracing::warn!(%error, "it was rotated away and is not looked at any more");
                    self.leave(&late);
                    continue;
                }
                grew => grew?,
            };
            if !grew && since.elapsed() >= KEPT {
                self.finish(&mut late)?;
                continue;
            }
            self.late.push_back((late, if grew { Instant::now() } else { since }));
        }
        Ok(())
    }

    /// What is left of a file is its end, finished or not.
    fn finish(&mut self, followed: &mut Followed) -> Step<()> {
        self.read_on(followed, true)?;
        self.leave(followed);
        Ok(())
    }

    /// Notes how far a file was read, should it grow or come again.
    fn leave(&mut self, followed: &Followed) {
        let Some(life) = &followed.life else { return };
        let left = life.position.clone().left_at(life.next, life.last);
        self.reader.positions.insert(followed.key.clone(), left);
        self.left.insert(followed.key.clone(), life.lines.read_to());
    }

    /// Says what there is now, and whether there was anything; a last line without an end only if
    /// it is the end.
    fn read_on(&mut self, followed: &mut Followed, end: bool) -> Step<bool> {
        let length = self.reader.checked(&followed.path, followed.file.metadata())?.len();
        let cut = self.is_cut(followed, length)?;
        if cut {
            tracing::info!(
                queue = %self.reader.queue, file = %followed.path.display(),
                "the file was cut; it is read from its beginning"
            );
            followed.life = None;
        }
        if followed.life.is_none() && !self.begins(followed, end && length > 0)? {
            return Ok(cut);
        }
        let read = self.say(followed, length, end)?;
        Ok(cut || read)
    }

    /// Whether another life of the file has begun; else its fingerprint is of what there is now.
    fn is_cut(&mut self, followed: &mut Followed, length: u64) -> Step<bool> {
        let Some(life) = &mut followed.life else { return Ok(false) };
        let known = &mut life.position.fingerprint;
        let now = self.reader.checked(&followed.path, known.now(&followed.file))?;
        let has_tail = self.reader.checked(&followed.path, life.lines.reader_mut().has_tail())?;
        let now = now.filter(|_| has_tail && length >= life.lines.read_to());
        if now.as_ref() != Some(known) {
            // Who keeps the position has to hear of it.
            self.told = None;
        }
        let Some(now) = now else { return Ok(true) };
        life.lines.reader_mut().fingerprint = now.clone();
        *known = now;
        Ok(false)
    }

    /// Begins a life of the file, if it can be told from others by now, or never will be.
    fn begins(&self, followed: &mut Followed, ends: bool) -> Step<bool> {
        let (path, file) = (&followed.path, &followed.file);
        if !(self.reader.checked(path, Fingerprint::can_be_of(file))? || ends) {
            return Ok(false);
        }
        let position = Position::beginning(&path.display().to_string(), file, Form::LINES);
        let position = self.reader.checked(path, position)?;
        followed.life = Some(self.life(position, followed)?);
        Ok(true)
    }

    /// Says that what comes next is of this file.
    fn tell(&mut self, followed: &Followed) {
        let Some(life) = &followed.life else { return };
        if self.told.as_ref() != Some(&followed.key) {
            let mut position = life.position.clone();
            position.next = life.next;
            self.reader.say_file(Some(followed.key.clone()), position);
            self.told = Some(followed.key.clone());
        }
    }

    /// Says what there is behind what was read, and whether there was anything.
    fn say(&mut self, followed: &mut Followed, length: u64, end: bool) -> Step<bool> {
        let before = followed.life.as_ref().map_or(0, |life| life.lines.read_to());
        if length <= before && !end {
            return Ok(false);
        }
        self.tell(followed);
        let Some(life) = &mut followed.life else { return Ok(false) };
        let mut count = Count { next: life.next, last: life.last, position: &life.position };
        life.lines.takes_unfinished = end;
        let drained = self.reader.drain(&followed.path, &mut life.lines, &mut count);
        // What came before a fault was said.
        (life.next, life.last) = (count.next, count.last);
        drained?;
        Ok(life.lines.read_to() > before)
    }
}
