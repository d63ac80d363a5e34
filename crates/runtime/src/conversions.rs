//! How long this process's conversions between payloads and values take.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use brigade_core::component::{Conversion, measure};

use crate::status::Times;

static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Measures conversions between payloads and values from now on, in this whole process. Each then
/// costs two looks at the clock more.
pub fn measure_conversions() {
    measure(since_begun);
}

fn since_begun() -> Duration {
    BEGUN.elapsed()
}

/// How many conversions of each kind there have been, and how long they took, since
/// [`measure_conversions`] was called first; none before that.
pub fn conversions() -> impl Iterator<Item = (&'static str, Times)> {
    Conversion::ALL.into_iter().map(|kind| (kind.name(), kind.taken().into()))
}
