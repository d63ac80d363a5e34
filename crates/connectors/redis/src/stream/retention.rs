//! What is kept of a stream once every group is past it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use brigade_core::Period;
use brigade_core::connector::{ConnectorError, Problem};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::connector::Keys;
use super::groups::mend_groups;
use super::scripts::TRIM;
use crate::wire::Wire;

/// A producer trims after putting this many messages, or after this much time.
const TRIM_EACH: usize = 1000;
const TRIM_AFTER: Duration = Duration::from_secs(1);

/// How much stays on the stream once every group has acked it, for programs that read it without a
/// group. What any group has not acked always stays.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Retention {
    /// At most this many entries, and up to 100 more, since Redis keeps that many together.
    /// Default: any number.
    messages: Option<u64>,
    /// No entry older than this, by the time in its id. Default: for ever.
    age: Option<Period>,
}

impl Retention {
    /// The arguments for a script: the most entries and their greatest age in milliseconds, -1 for
    /// no such bound. Both -1 mean no retention: what every group is past is removed.
    pub(super) fn arguments(retention: Option<Self>) -> [String; 2] {
        let told = |bound: Option<u128>| bound.map_or_else(|| "-1".to_owned(), |n| n.to_string());
        let messages = retention.and_then(|retention| retention.messages);
        let age = retention.and_then(|retention| retention.age);
        [told(messages.map(u128::from)), told(age.map(|Period(age)| age.as_millis()))]
    }

    /// Trims a stream to it, as far as the groups are past what is removed. If one of `groups` is
    /// missing, they are made again instead: they have to get what is there.
    pub(super) async fn trim(
        retention: Option<Self>,
        wire: &Arc<Wire>,
        keys: &Keys,
        groups: &[String],
    ) -> Result<(), ConnectorError> {
        let mut trim = TRIM.key(&keys.stream);
        for argument in Self::arguments(retention) {
            trim.arg(argument);
        }
        trim.arg(groups);
        if wire.script(trim).await? {
            return Ok(());
        }
        match mend_groups(wire, keys, groups).await {
            // No group is there at all: nothing goes that would make room for them.
            Err(failure) if failure.is_full() => {
                let error = wire.told(&failure);
                tracing::warn!(queue = %keys.queue, %error, "missing groups cannot be made");
                Ok(())
            }
            made => made.map_err(|failure| wire.told(&failure)),
        }
    }

    /// What is wrong with it, found without connecting.
    pub(super) fn problem(self) -> Option<Problem> {
        let message = match self {
            Self { messages: None, age: None } => "it bounds nothing",
            Self { messages: Some(0), .. } => "`messages` must be at least 1",
            Self { age: Some(Period(age)), .. } if age.is_zero() => "`age` must be more than 0",
            _ => return None,
        };
        Some(Problem::at("retention", message).help("such as `{ messages: 100000, age: 7d }`"))
    }
}

/// When a producer trims.
#[derive(Debug)]
pub(super) struct Trimming {
    retention: Option<Retention>,
    /// How many messages were put since the last trim, and when that was.
    since: Mutex<(usize, Option<Instant>)>,
}

impl Trimming {
    pub(super) fn new(retention: Option<Retention>) -> Self {
        Self { retention, since: Mutex::default() }
    }

    /// Trims now and then, before this many messages are put: after an error, none of them has been
    /// put.
    pub(super) async fn before(
        &self,
        many: usize,
        wire: &Arc<Wire>,
        keys: &Keys,
        groups: &[String],
    ) -> Result<(), ConnectorError> {
        if self.retention.is_none() {
            return Ok(());
        }
        let is_due = {
            let mut since = self.since.lock();
            let is_due =
                since.0 >= TRIM_EACH || since.1.is_none_or(|at| at.elapsed() >= TRIM_AFTER);
            if is_due {
                *since = (0, Some(Instant::now()));
            }
            since.0 += many;
            is_due
        };
        if is_due { Retention::trim(self.retention, wire, keys, groups).await } else { Ok(()) }
    }
}
