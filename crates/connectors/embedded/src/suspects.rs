//! Suspects: messages that were in flight when their process died.
//!
//! Any of them may be what killed it. Each is handed out alone, so that the next death tells: only a
//! message that was *alone* in flight counts a crash. Others wait meanwhile, for a bounded time.

use std::time::{Duration, Instant};

/// How long ordinary messages wait, at most, for suspects to have the process to themselves.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// What a claim may take now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Ordinary messages.
    Ordinary,
    /// One suspect.
    Suspect,
    /// Nothing yet.
    Wait,
}

/// What a process knows of suspects and of its own leases.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    /// Since when suspects have waited, or one is in flight.
    since: Option<Instant>,
}

impl Quarantine {
    /// Whether anybody waits for suspects.
    pub(crate) fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// Decides about a claim on one queue. `waiting`: suspects wait in the store; `here`: in this
    /// queue; `leases`: this process's leases in the store; `own`: those of this queue; `suspect`:
    /// whether one of them is a suspect.
    pub(crate) fn turn(
        &mut self,
        now: Instant,
        waiting: bool,
        here: bool,
        leases: usize,
        own: usize,
        suspect: bool,
    ) -> Turn {
        if !waiting && !suspect {
            self.since = None;
            return Turn::Ordinary;
        }
        let since = *self.since.get_or_insert(now);
        let patient = now.duration_since(since) < QUIET_MAX;
        if leases == 0 && here {
            // Each suspect has the quiet time for itself.
            self.since = Some(now);
            return Turn::Suspect;
        }
        match (patient, here) {
            (true, _) => Turn::Wait,
            (false, true) if own == 0 => Turn::Suspect,
            (false, true) => Turn::Wait,
            (false, false) => Turn::Ordinary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn without_suspects_nobody_waits() {
        let turn = Quarantine::default().turn(Instant::now(), false, false, 7, 3, false);
        assert_eq!(turn, Turn::Ordinary);
    }

    #[test]
    fn a_suspect_is_handed_out_once_nothing_else_is_in_flight() {
        let (mut quarantine, now) = (Quarantine::default(), Instant::now());
        assert_eq!(quarantine.turn(now, true, true, 1, 0, false), Turn::Wait);
        assert_eq!(quarantine.turn(now, true, true, 0, 0, false), Turn::Suspect);
        assert_eq!(quarantine.turn(now, true, true, 1, 1, true), Turn::Wait);
        assert_eq!(quarantine.turn(now, false, false, 1, 0, true), Turn::Wait);
    }

    proptest! {
        #[test]
        fn nobody_waits_for_ever(
            waiting: bool, here: bool, leases in 0_usize..4, suspect: bool,
        ) {
            let (mut quarantine, now) = (Quarantine::default(), Instant::now());
            let here = here && waiting;
            quarantine.turn(now, waiting, here, leases, 0, suspect);
            let later = now + QUIET_MAX;
            let turn = quarantine.turn(later, waiting, here, leases, 0, suspect);
            prop_assert_ne!(turn, Turn::Wait);
        }
    }
}
