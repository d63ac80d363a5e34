//! Throttle: a token bucket.

use std::time::{Duration, Instant};

/// At most `rate` messages in `per`, and at most `burst` at once.
///
/// The token bucket as in RFC 2697, with time as an argument.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    /// The time one token takes to come back.
    per_token: Duration,
    burst: u32,
    /// When the bucket will be full again.
    full_at: Option<Instant>,
}

impl TokenBucket {
    /// A full bucket. `rate` and `burst` count as at least 1.
    pub fn new(rate: u32, per: Duration, burst: u32) -> Self {
        Self { per_token: per / rate.max(1), burst: burst.max(1), full_at: None }
    }

    /// Takes one token, or says how long to wait for it.
    ///
    /// # Errors
    /// There is no token; nothing was taken.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        let missing = full_at - now;
        let capacity = self.per_token * (self.burst - 1);
        if missing > capacity {
            return Err(missing - capacity);
        }
        self.full_at = Some(full_at + self.per_token);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_stretch_of_time_has_more_than_the_rate_and_one_burst(
            rate in 1_u32..50, burst in 1_u32..20,
            gaps in prop::collection::vec(0_u64..200, 1..200),
        ) {
            let per = Duration::from_secs(1);
            let mut bucket = TokenBucket::new(rate, per, burst);
            let start = Instant::now();
            let (mut now, mut taken) = (start, 0_u32);
            for gap in gaps {
                now += Duration::from_millis(gap);
                if bucket.take(now).is_ok() {
                    taken += 1;
                }
                let allowed = (now - start).as_secs_f64() * f64::from(rate) + f64::from(burst);
                prop_assert!(f64::from(taken) <= allowed + 1e-3);
            }
        }

        #[test]
        fn who_waits_as_long_as_told_gets_a_token(rate in 1_u32..1000, burst in 1_u32..5) {
            let mut bucket = TokenBucket::new(rate, Duration::from_secs(1), burst);
            let mut now = Instant::now();
            for _ in 0..20 {
                if let Err(wait) = bucket.take(now) {
                    now += wait;
                    prop_assert!(bucket.take(now).is_ok());
                }
            }
        }
    }
}
