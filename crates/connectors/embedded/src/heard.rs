//! Signs of life: which other processes have been silent for too long.
//!
//! A process writes a sign of life into the store every few seconds. What counts is whether another
//! process's sign changes, not the wall-clock time in it: that clock may be set, which would make
//! all others look silent. Only time in which this process could write its own signs counts: while
//! the store is locked or its disk is full, nobody can.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The most time that one sign of life stands for. Signs come every five seconds; one that comes
/// much later could not be written before, or this process was suspended.
const SIGN_MAX: Duration = Duration::from_secs(10);

/// What this process has seen of others.
#[derive(Debug)]
pub(crate) struct Heard {
    /// When this process last wrote a sign of its own.
    signed: Instant,
    /// The time during which it could.
    time: Duration,
    /// The last signs of others, and the value of `time` when each was first seen.
    others: HashMap<i64, (i64, Duration)>,
}

impl Heard {
    /// For a process that enters and thereby writes its first sign.
    pub(crate) fn new(now: Instant) -> Self {
        Self { signed: now, time: Duration::ZERO, others: HashMap::new() }
    }

    /// Records that this process has written a sign of its own.
    pub(crate) fn signed(&mut self, now: Instant) {
        self.time += now.saturating_duration_since(self.signed).min(SIGN_MAX);
        self.signed = now;
    }

    /// Which of these holders, each with its last sign, have been silent for longer than `limit`.
    /// Holders that are no longer among them are forgotten.
    pub(crate) fn silent(&mut self, signs: &[(i64, i64)], limit: Duration) -> Vec<i64> {
        let before = std::mem::take(&mut self.others);
        let mut silent = Vec::new();
        for &(holder, sign) in signs {
            let known = before.get(&holder).filter(|(known, _)| *known == sign);
            let since = known.map_or(self.time, |(_, since)| *since);
            if self.time - since > limit {
                silent.push(holder);
            }
            self.others.insert(holder, (sign, since));
        }
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const EVERY: Duration = Duration::from_secs(5);
    const OTHER: i64 = 7;

    /// Records `signs` signs of life of this process, one per `every`; returns whether the other,
    /// whose signs are given by `sign`, was silent after the last.
    fn after(heard: &mut Heard, signs: u32, every: Duration, sign: impl Fn(u32) -> i64) -> bool {
        let begun = heard.signed;
        let mut silent = Vec::new();
        for n in 1..=signs {
            heard.signed(begun + every * n);
            silent = heard.silent(&[(OTHER, sign(n))], MINUTE);
        }
        !silent.is_empty()
    }

    #[test]
    fn who_gives_no_sign_for_long_is_silent() {
        let mut heard = Heard::new(Instant::now());
        assert!(heard.silent(&[(OTHER, 0)], MINUTE).is_empty(), "at the first look nobody is");
        assert!(!after(&mut heard, 12, EVERY, |_| 0), "not longer than a minute");
        assert!(after(&mut heard, 1, EVERY, |_| 0));
        // When others free what it had, that is written as a sign of its own.
        assert!(!after(&mut heard, 13, EVERY, |_| 1));
        assert!(after(&mut heard, 1, EVERY, |_| 1));
    }

    #[test]
    fn who_gives_signs_is_not_silent_whatever_time_they_tell() {
        for step in [1, 5000, -3_600_000, 3_600_000] {
            let mut heard = Heard::new(Instant::now());
            assert!(!after(&mut heard, 100, EVERY, |n| i64::from(n) * step), "{step} ms");
        }
    }

    #[test]
    fn time_in_which_nobody_could_write_does_not_count() {
        const HOUR: Duration = Duration::from_secs(3600);
        let mut heard = Heard::new(Instant::now());
        assert!(heard.silent(&[(OTHER, 0)], MINUTE).is_empty());
        assert!(!after(&mut heard, 6, HOUR, |_| 0), "the store was locked between signs");
        assert!(after(&mut heard, 1, EVERY, |_| 0));
    }

    #[test]
    fn who_is_gone_is_forgotten() {
        let mut heard = Heard::new(Instant::now());
        assert!(!after(&mut heard, 5, EVERY, |_| 0));
        assert!(heard.silent(&[], MINUTE).is_empty());
        assert!(heard.others.is_empty());
    }
}
