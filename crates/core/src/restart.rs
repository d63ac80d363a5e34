//! The restart budget: how often, and how soon, what died is restarted.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::retry::doubled;

/// How often a stage's actors, `init` and connections may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestartPolicy {
    /// At most this many restarts in `period`.
    pub max_restarts: u32,
    /// The time during which restarts count.
    pub period: Duration,
    /// The back-off before the first restart.
    pub min: Duration,
    /// The longest back-off.
    pub max: Duration,
}

/// What to do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Restart it after this long.
    After(Duration),
    /// The budget is used up: it has failed.
    GiveUp,
}

/// The restarts of one stage.
#[derive(Debug, Clone)]
pub struct RestartBudget {
    policy: RestartPolicy,
    /// The times of the restarts within the last period. At most `max_restarts` of them.
    recent: VecDeque<Instant>,
}

impl RestartBudget {
    /// An unused budget.
    pub fn new(policy: RestartPolicy) -> Self {
        Self { policy, recent: VecDeque::new() }
    }

    /// Records a failure. The back-off doubles with every restart in the period; failures further
    /// apart than the period start from the beginning.
    pub fn failed(&mut self, now: Instant) -> Restart {
        while self.recent.front().is_some_and(|at| now.duration_since(*at) >= self.policy.period) {
            self.recent.pop_front();
        }
        let before = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if before >= self.policy.max_restarts {
            return Restart::GiveUp;
        }
        self.recent.push_back(now);
        Restart::After(doubled(self.policy.min, self.policy.max, before + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: RestartPolicy = RestartPolicy {
        max_restarts: 3,
        period: Duration::from_secs(60),
        min: Duration::from_millis(100),
        max: Duration::from_millis(300),
    };

    #[test]
    fn a_budget_is_used_up_within_its_period_and_comes_back_after_it() {
        let mut budget = RestartBudget::new(POLICY);
        let start = Instant::now();
        let ms = Duration::from_millis;
        assert_eq!(budget.failed(start), Restart::After(ms(100)));
        assert_eq!(budget.failed(start + ms(1)), Restart::After(ms(200)));
        assert_eq!(budget.failed(start + ms(2)), Restart::After(ms(300)));
        assert_eq!(budget.failed(start + ms(3)), Restart::GiveUp);
        assert_eq!(budget.failed(start + Duration::from_secs(61)), Restart::After(ms(100)));
    }

    proptest! {
        #[test]
        fn never_more_restarts_in_a_period_than_the_budget_has(
            gaps in prop::collection::vec(0_u64..40_000, 1..100),
        ) {
            let mut budget = RestartBudget::new(POLICY);
            let mut now = Instant::now();
            let mut restarts: Vec<Instant> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if let Restart::After(_) = budget.failed(now) {
                    restarts.push(now);
                }
            }
            for window in restarts.windows(POLICY.max_restarts as usize + 1) {
                prop_assert!(window[window.len() - 1] - window[0] >= POLICY.period);
            }
        }
    }
}
