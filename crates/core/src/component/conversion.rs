//! How long conversions between payloads and values take, where somebody asks for that.
//!
//! They happen within the calls of components, wherever these make their outputs, and so nobody
//! else can measure them. The counts are the process's.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A step between a payload and a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conversion {
    /// A payload is read, as a component's type where it needs no other form in between.
    Deserialize,
    /// A component's input is made of what was read already: out of another codec, or for a schema
    /// where a value does as well as the payload.
    Construct,
    /// A value becomes a payload.
    Serialize,
}

impl Conversion {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Deserialize, Self::Construct, Self::Serialize];

    /// Its name: one lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deserialize => "deserialize",
            Self::Construct => "construct",
            Self::Serialize => "serialize",
        }
    }

    /// Does one of these, and counts it if somebody [measures](measure).
    pub fn timed<T>(self, convert: impl FnOnce() -> T) -> T {
        let Some(clock) = CLOCK.get() else { return convert() };
        let begun = clock();
        let converted = convert();
        let ns = u64::try_from(clock().saturating_sub(begun).as_nanos()).unwrap_or(u64::MAX);
        let (count, total) = &TAKEN[self as usize];
        count.fetch_add(1, Relaxed);
        total.fetch_add(ns, Relaxed);
        converted
    }

    /// How many there have been since somebody measures, and how long they took in total. One that
    /// panicked is not counted.
    pub fn taken(self) -> (u64, Duration) {
        let (count, ns) = &TAKEN[self as usize];
        (count.load(Relaxed), Duration::from_nanos(ns.load(Relaxed)))
    }
}

/// Measures conversions from now on, by a clock that tells the time since some moment. The first
/// clock stays: a later one is ignored.
pub fn measure(clock: fn() -> Duration) {
    // Whichever came first tells the same times.
    let _ = CLOCK.set(clock);
}

static CLOCK: OnceLock<fn() -> Duration> = OnceLock::new();

/// How many, and their nanoseconds, in the order of [`Conversion::ALL`].
static TAKEN: [(AtomicU64, AtomicU64); 3] = [const { (AtomicU64::new(0), AtomicU64::new(0)) }; 3];

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(0) };
    }

    /// A second later each time that it is asked.
    fn clock() -> Duration {
        NOW.set(NOW.get() + 1);
        Duration::from_secs(NOW.get())
    }

    #[test]
    fn conversions_are_counted_once_somebody_measures() {
        let one = || Conversion::Construct.timed(|| 7);
        assert_eq!((one(), Conversion::Construct.taken()), (7, (0, Duration::ZERO)));
        measure(clock);
        assert_eq!((one(), one()), (7, 7));
        // Other tests of this process may convert something too.
        let (count, took) = Conversion::Construct.taken();
        assert!(count >= 2 && took >= Duration::from_secs(2), "{count}, {took:?}");
    }
}
