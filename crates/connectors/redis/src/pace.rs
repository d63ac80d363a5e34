//! How many messages a read asks for, and how long they may take to come. The server takes a number
//! where the caller wants bytes, so it depends on the size of recent messages.

use std::future::Future;
use std::time::{Duration, Instant};

use brigade_core::connector::{Incoming, Want};
use parking_lot::Mutex;

use crate::failure::Failure;
use crate::server::ANSWER_MAX;

/// The most messages that the first read asks for.
const FIRST: usize = 8;
/// After a read that brought all it asked for, the next may ask for this many times as much.
const GROWTH: usize = 4;
/// If all messages were as long as the longest recent one, a read would bring at most this many
/// times as much as there is room for.
const OVER: usize = 8;
/// After a read of a single message that did not come in time, the next may take this many times as
/// long.
const PATIENCE_GROWTH: u32 = 4;
/// The longest that a read may take.
const PATIENCE_MAX: Duration = Duration::from_secs(600);
/// For this long, reads may take longer than usual: a message that did not come may be handed out
/// elsewhere first, and come back later.
const PATIENT_FOR: Duration = Duration::from_secs(1800);

/// What the last reads say about the next.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The most messages that any read asks for, whatever is wanted.
    max: usize,
    /// The most messages that the next read asks for.
    most: usize,
    /// The recent mean size; at least the mean of the last read.
    size: usize,
    /// The size of the longest recent message; it decays with each read that brings no longer one.
    longest: usize,
    /// How long answers may take, if longer than usual, and since when.
    patient: Option<(Duration, Instant)>,
}

impl Pace {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, most: FIRST, size: 0, longest: 0, patient: None }
    }

    /// How many messages to ask for, at least one.
    pub(crate) fn count(&self, want: Want) -> usize {
        let fit = |bytes: usize, size| bytes.checked_div(size).unwrap_or(usize::MAX);
        let fit =
            fit(want.bytes, self.size).min(fit(want.bytes.saturating_mul(OVER), self.longest));
        want.messages.min(self.most).min(fit).clamp(1, self.max)
    }

    /// Records that a read that asked for `asked` messages brought messages of these sizes.
    pub(crate) fn brought(&mut self, asked: usize, sizes: impl Iterator<Item = usize>) {
        let (mut messages, mut bytes, mut longest) = (0, 0_usize, 0);
        for size in sizes {
            messages += 1;
            bytes = bytes.saturating_add(size);
            longest = size.max(longest);
        }
        let Some(mean) = bytes.checked_div(messages) else { return };
        self.size = mean.max(self.size - self.size / 4 + mean / 4);
        self.longest = longest.max(self.longest - self.longest / 8);
        if messages >= asked.min(self.most) {
            self.most = self.most.max(asked.saturating_mul(GROWTH)).min(self.max);
        }
    }

    /// How long an answer may take now.
    pub(crate) fn answer_max(&self, now: Instant) -> Duration {
        let is_over = |since: Instant| now.duration_since(since) >= PATIENT_FOR;
        let patient = self.patient.filter(|(_, since)| !is_over(*since));
        patient.map_or(ANSWER_MAX, |(answer_max, _)| answer_max)
    }

    /// A read that asked for so many messages brought nothing but an error. If messages did not come within
    /// `late`, it was perhaps too much to come in time.
    pub(crate) fn failed(&mut self, asked: usize, late: Option<Duration>, now: Instant) {
        self.most = 1;
        let answer_max = self.answer_max(now);
        if asked == 1 && late.is_some_and(|late| late >= answer_max) {
            self.patient = Some(((answer_max * PATIENCE_GROWTH).min(PATIENCE_MAX), now));
        }
    }
}

/// A pace shared by several reads, one after the other.
#[derive(Debug)]
pub(crate) struct Paced {
    pace: Mutex<Pace>,
    /// For how long messages were waited for in vain, in the read under way.
    late: Mutex<Option<Duration>>,
}

impl Paced {
    pub(crate) fn new(max: usize) -> Self {
        Self { pace: Mutex::new(Pace::new(max)), late: Mutex::default() }
    }

    pub(crate) fn count(&self, want: Want) -> usize {
        self.pace.lock().count(want)
    }

    /// Asks for messages, as part of a read; it is told how long the answer may take.
    pub(crate) async fn ask<T, F>(&self, ask: impl FnOnce(Duration) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let begun = Instant::now();
        let answer_max = self.pace.lock().answer_max(begun);
        let answer = ask(answer_max).await;
        // What else takes long, such as another question before, says nothing about messages.
        let is_late = answer.as_ref().is_err_and(Failure::is_late);
        *self.late.lock() = is_late.then(|| begun.elapsed());
        answer
    }

    /// What became of a read that asked for so many messages.
    pub(crate) fn read<E>(&self, asked: usize, read: Result<&[Incoming], E>) {
        let late = self.late.lock().take();
        match read {
            Ok(read) => {
                let sizes = read.iter().map(|incoming| incoming.message.size());
                self.pace.lock().brought(asked, sizes);
            }
            Err(_) => self.pace.lock().failed(asked, late, Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1000;
    const WANT: Want = Want { messages: 4096, bytes: 64 << 20 };

    /// Reads a queue whose messages have this size; returns what each read asked for.
    fn reads(pace: &mut Pace, size: usize, reads: usize) -> Vec<usize> {
        let read = |_| {
            let asked = pace.count(WANT);
            pace.brought(asked, std::iter::repeat_n(size, asked));
            asked
        };
        (0..reads).map(read).collect()
    }

    #[test]
    fn short_messages_are_soon_asked_for_by_the_thousand() {
        assert_eq!(reads(&mut Pace::new(MAX), 100, 6), [8, 32, 128, 512, 1000, 1000]);
    }

    #[test]
    fn no_more_long_messages_are_asked_for_than_there_is_room_for() {
        assert_eq!(reads(&mut Pace::new(MAX), 5 << 20, 4), [8, 12, 12, 12]);
        assert_eq!(reads(&mut Pace::new(MAX), 100 << 20, 2), [8, 1], "one at least");
    }

    #[test]
    fn long_messages_count_at_once_and_for_a_while() {
        let mut pace = Pace::new(MAX);
        reads(&mut pace, 100, 6);
        assert_eq!(reads(&mut pace, 5 << 20, 2), [1000, 12]);
        let after = reads(&mut pace, 100, 20);
        assert!(after[1] < 20 && after[19] == MAX, "{after:?}");
    }

    #[test]
    fn where_one_is_long_the_next_may_all_be() {
        let mut pace = Pace::new(MAX);
        reads(&mut pace, 100, 6);
        pace.brought(MAX, [100; MAX - 1].into_iter().chain([5 << 20]));
        assert_eq!(pace.count(WANT), OVER * WANT.bytes / (5 << 20));
    }

    #[test]
    fn after_an_error_little_is_asked_for() {
        let mut pace = Pace::new(MAX);
        reads(&mut pace, 100, 6);
        pace.failed(1000, Some(ANSWER_MAX), Instant::now());
        assert_eq!(reads(&mut pace, 100, 3), [1, 4, 16]);
    }

    #[test]
    fn a_single_message_that_does_not_come_in_time_may_take_longer_for_a_while() {
        let (mut pace, begun) = (Pace::new(MAX), Instant::now());
        let seconds = Duration::from_secs;
        let mut max_after = |asked, took| {
            pace.failed(asked, Some(seconds(took)), begun);
            pace.answer_max(begun).as_secs()
        };
        assert_eq!(max_after(8, 10), 10, "fewer may come in time");
        assert_eq!(max_after(1, 9), 10, "it was something else");
        let tries = [10, 40, 160, 600, 600].map(|took| max_after(1, took));
        assert_eq!(tries, [40, 160, 600, 600, 600]);
        assert_eq!(pace.answer_max(begun + PATIENT_FOR), ANSWER_MAX);
        let mut pace = Pace::new(MAX);
        pace.failed(1, None, begun);
        assert_eq!(pace.answer_max(begun), ANSWER_MAX, "no message was waited for");
    }

    #[test]
    fn a_read_that_brings_little_changes_nothing() {
        let mut pace = Pace::new(MAX);
        pace.brought(8, std::iter::empty());
        pace.brought(8, [100; 3].into_iter());
        assert_eq!(pace.count(WANT), 8);
        assert_eq!(pace.count(Want { messages: 2, ..WANT }), 2);
    }

    #[test]
    fn it_asks_for_at_least_one_and_never_for_more_than_is_wanted() {
        for seed in 0..1000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let want = Want { messages: random.usize(1..5000), bytes: random.usize(..1_000_000) };
            let mut pace = Pace::new(MAX);
            for _ in 0..30 {
                let asked = pace.count(want);
                assert!((1..=MAX.min(want.messages)).contains(&asked), "{seed}: {asked}");
                match random.usize(..=asked) {
                    0 => pace.failed(asked, Some(ANSWER_MAX), Instant::now()),
                    n => pace.brought(asked, std::iter::repeat_n(random.usize(..10_000_000), n)),
                }
            }
        }
    }
}
