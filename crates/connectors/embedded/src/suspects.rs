//! Suspects: messages that were in flight when their process died.
//!
//! Any of them may be what killed it. Each is handed out alone, so that the next death is
//! conclusive: only a message that was *alone* in flight counts a crash. Others wait meanwhile, for
//! a bounded time: after that both take turns, however many suspects there are and however long
//! each takes.

use std::time::{Duration, Instant};

/// The longest that ordinary messages wait for what is in flight to end, and again for suspects
/// after that; and how long their own turn lasts before they wait for suspects again.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// What a claim may take now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Ordinary messages.
    Ordinary,
    /// Ordinary messages, or one suspect if there are none.
    OrdinaryElseSuspect,
    /// One suspect.
    Suspect,
    /// Nothing yet.
    Wait,
}

/// What a process knows about suspects and its own leases when it decides on a claim on one queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Whether suspects wait in the store.
    pub(crate) waiting: bool,
    /// Whether suspects wait in this queue.
    pub(crate) here: bool,
    /// This process's leases in the store.
    pub(crate) leases: usize,
    /// Those of this queue.
    pub(crate) own: usize,
    /// Whether one of them is a suspect.
    pub(crate) suspect: bool,
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    phase: Phase,
}

#[derive(Debug, Clone, Copy, Default)]
enum Phase {
    /// There are no suspects.
    #[default]
    Off,
    /// Ordinary messages wait: since when, and whether a suspect was handed out in that time.
    Quiet { since: Instant, begun: bool },
    /// Ordinary messages are handed out: since when, and whether a suspect was handed out in the
    /// preceding quiet.
    Open { since: Instant, begun: bool },
}

impl Phase {
    /// The phase at this time; the turn of ordinary messages ends only when suspects are waiting in
    /// the queue being claimed.
    fn at(self, now: Instant, here: bool) -> Self {
        let over = |since: Instant| now.duration_since(since) >= QUIET_MAX;
        match self {
            Self::Off => Self::Quiet { since: now, begun: false },
            Self::Quiet { since, begun } if over(since) => Self::Open { since: now, begun },
            Self::Open { since, begun: true } if here && over(since) => {
                Self::Quiet { since: now, begun: false }
            }
            phase => phase,
        }
    }
}

impl Quarantine {
    /// Whether suspects are being waited for.
    pub(crate) fn is_on(&self) -> bool {
        !matches!(self.phase, Phase::Off)
    }

    /// Decides on a claim on one queue.
    pub(crate) fn turn(&mut self, now: Instant, seen: Seen) -> Turn {
        if !seen.waiting && !seen.suspect {
            self.phase = Phase::Off;
            return Turn::Ordinary;
        }
        self.phase = self.phase.at(now, seen.here);
        let alone = seen.here && seen.leases == 0;
        match self.phase {
            Phase::Quiet { since, begun } if alone => {
                // The first suspect has the whole quiet time to itself, however long it took to
                // become quiet.
                let since = if begun { since } else { now };
                self.phase = Phase::Quiet { since, begun: true };
                Turn::Suspect
            }
            Phase::Quiet { .. } => Turn::Wait,
            // It did not become quiet. The next best is that the suspect is alone in this queue,
            // and, after as long again, not even that.
            Phase::Open { since, begun: false }
                if seen.here && (seen.own == 0 || now.duration_since(since) >= QUIET_MAX) =>
            {
                self.phase = Phase::Open { since: now, begun: true };
                Turn::Suspect
            }
            Phase::Open { .. } if alone => Turn::OrdinaryElseSuspect,
            Phase::Open { .. } | Phase::Off => Turn::Ordinary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONE: Seen = Seen { waiting: false, here: false, leases: 0, own: 0, suspect: false };
    const HERE: Seen = Seen { waiting: true, here: true, ..NONE };

    #[test]
    fn without_suspects_nobody_waits() {
        let seen = Seen { leases: 7, own: 3, ..NONE };
        assert_eq!(Quarantine::default().turn(Instant::now(), seen), Turn::Ordinary);
    }

    #[test]
    fn a_suspect_is_handed_out_once_nothing_else_is_in_flight() {
        let (mut quarantine, now) = (Quarantine::default(), Instant::now());
        assert_eq!(quarantine.turn(now, Seen { leases: 1, ..HERE }), Turn::Wait);
        assert_eq!(quarantine.turn(now, HERE), Turn::Suspect);
        let handed_out = Seen { leases: 1, own: 1, suspect: true, ..HERE };
        assert_eq!(quarantine.turn(now, handed_out), Turn::Wait);
        let other = Seen { leases: 1, suspect: true, ..NONE };
        assert_eq!(quarantine.turn(now, other), Turn::Wait);
    }

    #[test]
    fn where_nobody_asks_for_suspects_others_wait_once() {
        let (mut quarantine, now) = (Quarantine::default(), Instant::now());
        let elsewhere = Seen { waiting: true, ..NONE };
        assert_eq!(quarantine.turn(now, elsewhere), Turn::Wait);
        for periods in 1..10 {
            let later = now + QUIET_MAX * periods;
            assert_eq!(quarantine.turn(later, elsewhere), Turn::Ordinary);
        }
    }

    proptest! {
        #[test]
        fn nobody_waits_for_ever(
            waiting: bool, here: bool, own in 0_usize..4, others in 0_usize..4, suspect: bool,
        ) {
            let (mut quarantine, now) = (Quarantine::default(), Instant::now());
            let seen = Seen { waiting, here: here && waiting, leases: own + others, own, suspect };
            quarantine.turn(now, seen);
            prop_assert_ne!(quarantine.turn(now + QUIET_MAX, seen), Turn::Wait);
        }

        /// For any number of suspects, and any number of messages in flight at each claim.
        #[test]
        fn suspects_and_others_both_have_their_turn(
            claims in prop::collection::vec((1_u64..1000, 0_usize..3, 0_usize..3), 100..400),
        ) {
            const LONGEST: Duration = Duration::from_secs(1);
            let (mut quarantine, start) = (Quarantine::default(), Instant::now());
            let (mut now, mut ordinary, mut suspects) = (start, start, start);
            for (ms, own, others) in claims {
                now += Duration::from_millis(ms);
                let turn = quarantine.turn(now, Seen { leases: own + others, own, ..HERE });
                match turn {
                    Turn::Ordinary | Turn::OrdinaryElseSuspect => ordinary = now,
                    Turn::Suspect => suspects = now,
                    Turn::Wait => {}
                }
                prop_assert!(now - ordinary <= QUIET_MAX * 2 + LONGEST * 3, "others wait");
                prop_assert!(now - suspects <= QUIET_MAX * 4 + LONGEST * 5, "suspects wait");
            }
        }
    }
}
