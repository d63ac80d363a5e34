//! Throttle: a token bucket.

use std::time::{Duration, Instant};

/// At most `rate` messages in `per`, and at most `burst` at once.
///
/// The token bucket as in RFC 2697, with time as an argument.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    /// The time it takes to regain one token.
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

    /// Takes one token, or returns how long to wait for it.
    ///
    /// # Errors
    /// There is no token; nothing was taken.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        let missing = full_at - now;
        let capacity = self.per_token.saturating_mul(self.burst - 1);
        if missing > capacity {
            return Err(missing - capacity);
        }
        // Beyond the clock's range, nobody waits long enough to notice whether this is right.
        let Some(full_at) = full_at.checked_add(self.per_token) else {
            return Err(self.per_token);
        };
        self.full_at = Some(full_at);
        Ok(())
    }
}

/// The burst of a throttle that names none: what `rate` allows in 20 ms, at least 1 and at most
/// `rate`.
///
/// Timers and threads are late by some milliseconds, at each message. With a burst of 1 that time
/// is lost, and a rate of 1000/s would come to less than half.
pub fn default_burst(rate: u32, per: Duration) -> u32 {
    const LATE: Duration = Duration::from_millis(20);
    let allowed = LATE.as_nanos() * u128::from(rate) / per.as_nanos().max(1);
    u32::try_from(allowed).unwrap_or(u32::MAX).min(rate).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_greatest_numbers_of_a_file_overflow_nothing() {
        let mut bucket = TokenBucket::new(1, Duration::from_millis(u64::MAX), u32::MAX);
        let now = Instant::now();
        assert!((0..1000).any(|_| bucket.take(now).is_err()), "the clock ends before the tokens");
    }

    #[test]
    fn a_low_rate_has_no_burst_of_its_own_accord() {
        let second = Duration::from_secs(1);
        assert_eq!(
            [1, 20, 99, 100, 1000].map(|rate| default_burst(rate, second)),
            [1, 1, 1, 2, 20]
        );
        assert_eq!(default_burst(6000, second * 60), 2);
        assert_eq!(default_burst(10, Duration::from_millis(10)), 10);
        assert_eq!(default_burst(u32::MAX, Duration::ZERO), u32::MAX);
    }

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
        fn no_rate_is_too_slow_and_no_burst_too_large(
            per in any::<u64>(), rate in any::<u32>(), burst in any::<u32>(),
        ) {
            let mut bucket = TokenBucket::new(rate, Duration::from_millis(per), burst);
            let now = Instant::now();
            prop_assert_eq!(bucket.take(now), Ok(()), "the bucket is full at first");
            let _last = (0..1000).map(|_| bucket.take(now)).last();
        }

        /// As timers are that count whole milliseconds, and threads that wait for a processor.
        #[test]
        fn who_is_late_each_time_still_gets_a_high_rate(
            rate in 100_u32..20_000, late in prop::collection::vec(0_u64..5000, 100),
        ) {
            let per = Duration::from_secs(1);
            let mut bucket = TokenBucket::new(rate, per, default_burst(rate, per));
            let start = Instant::now();
            let mut now = start;
            for late in late.iter().cycle().take(1000) {
                while let Err(wait) = bucket.take(now) {
                    now += wait + Duration::from_micros(*late);
                }
            }
            let longest = per * 1000 / rate + Duration::from_millis(5);
            prop_assert!(now - start <= longest, "{:?} > {longest:?}", now - start);
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
