//! Retry: what to do with a message whose attempt failed.

use std::time::Duration;

/// A stage's retry policy. Back-off doubles from `min` to `max`, with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a message is tried in total, at least once.
    pub attempts: u32,
    /// The back-off after the first failed attempt.
    pub min: Duration,
    /// The longest back-off.
    pub max: Duration,
}

/// Back-offs up to this long wait in process, using the message's credit; longer ones go back to a
/// queue that can delay, so that they do not hold credit and are not forgotten in a crash.
pub const IN_PROCESS_MAX: Duration = Duration::from_secs(1);

/// The longest delay of a message: a hundred years. A component may ask for any length, and clocks
/// have a limit.
pub const DELAY_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Where a failed message can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Only in process: its queue cannot delay, or order would be lost.
    InProcess,
    /// In its queue as well.
    InQueue,
}

/// What becomes of a message whose attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Try again in this process after this long.
    InProcess(Duration),
    /// Put it back on its queue, to be handed out after this long.
    InQueue(Duration),
    /// Its attempts are used up.
    Exhausted,
}

impl RetryPolicy {
    /// Decides what happens after the `failed`th attempt failed. `asked` is the delay the component
    /// asked for; `random` is uniform in 0..1.
    ///
    /// The jitter is "equal jitter": half of the back-off is fixed, half is random, so that
    /// messages that failed together do not come back together, and none comes back at once.
    pub fn decide(
        &self,
        failed: u32,
        asked: Option<Duration>,
        waiting: Waiting,
        random: f64,
    ) -> Retry {
        if failed >= self.attempts {
            return Retry::Exhausted;
        }
        let delay = asked.unwrap_or_else(|| {
            let half = self.back_off(failed).min(DELAY_MAX) / 2;
            half + half.mul_f64(random.clamp(0.0, 1.0))
        });
        let delay = delay.min(DELAY_MAX);
        if delay > IN_PROCESS_MAX && waiting == Waiting::InQueue {
            Retry::InQueue(delay)
        } else {
            Retry::InProcess(delay)
        }
    }

    /// The back-off after the `failed`th attempt, without jitter.
    pub fn back_off(&self, failed: u32) -> Duration {
        doubled(self.min, self.max, failed)
    }
}

/// `min`, doubled for each failure after the first, at most `max`.
pub fn doubled(min: Duration, max: Duration, failures: u32) -> Duration {
    const DOUBLINGS_MAX: u32 = 31;
    let doublings = failures.saturating_sub(1).min(DOUBLINGS_MAX);
    min.saturating_mul(1 << doublings).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(attempts: u32, min_ms: u64, max_ms: u64) -> RetryPolicy {
        RetryPolicy {
            attempts,
            min: Duration::from_millis(min_ms),
            max: Duration::from_millis(max_ms),
        }
    }

    #[test]
    fn no_back_off_is_longer_than_clocks_go() {
        let ages = RetryPolicy { attempts: 3, min: Duration::MAX, max: Duration::MAX };
        for asked in [None, Some(Duration::MAX)] {
            let decided = ages.decide(1, asked, Waiting::InQueue, 1.0);
            assert_eq!(decided, Retry::InQueue(DELAY_MAX));
        }
    }

    #[test]
    fn back_off_doubles_up_to_its_maximum() {
        let policy = policy(9, 200, 1000);
        let ms: Vec<_> = (1..=5).map(|n| policy.back_off(n).as_millis()).collect();
        assert_eq!(ms, [200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn long_back_offs_wait_in_a_queue_that_can() {
        let policy = policy(9, 4000, 4000);
        assert!(matches!(policy.decide(1, None, Waiting::InQueue, 0.5), Retry::InQueue(_)));
        assert!(matches!(policy.decide(1, None, Waiting::InProcess, 0.5), Retry::InProcess(_)));
        let asked = Some(Duration::from_millis(1));
        assert!(matches!(policy.decide(1, asked, Waiting::InQueue, 0.5), Retry::InProcess(_)));
    }

    proptest! {
        #[test]
        fn a_message_is_tried_exactly_as_often_as_the_policy_says(
            attempts in 1_u32..50, random in 0.0_f64..1.0,
        ) {
            let policy = policy(attempts, 10, 1000);
            let mut failed = 0;
            loop {
                failed += 1;
                match policy.decide(failed, None, Waiting::InProcess, random) {
                    Retry::InProcess(delay) => {
                        prop_assert!(delay >= policy.back_off(failed) / 2);
                        prop_assert!(delay <= policy.back_off(failed));
                    }
                    Retry::InQueue(_) => prop_assert!(false, "it cannot wait there"),
                    Retry::Exhausted => break,
                }
            }
            prop_assert_eq!(failed, attempts);
        }
    }
}
