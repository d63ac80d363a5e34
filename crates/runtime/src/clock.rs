//! The clock on the wall, for ages and times of failures; waits go by tokio's.

use std::time::SystemTime;

use brigade_core::Timestamp;
use tokio::time::Instant;

/// The time now. Where a test has stopped the time, it goes on as that does.
pub(crate) fn now() -> Timestamp {
    let ahead = Instant::now().into_std().saturating_duration_since(std::time::Instant::now());
    (SystemTime::now() + ahead).into()
}
