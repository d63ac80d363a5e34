//! The wall clock, for ages and times of failures; waiting uses tokio's clock.

use std::time::SystemTime;

use brigade_core::Timestamp;
use tokio::time::Instant;

/// The time now. If a test has paused time, it advances with the paused clock.
pub(crate) fn now() -> Timestamp {
    let ahead = Instant::now().into_std().saturating_duration_since(std::time::Instant::now());
    (SystemTime::now() + ahead).into()
}
