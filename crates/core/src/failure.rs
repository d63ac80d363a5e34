//! [`Failure`]: why a component could not handle a message.

use std::time::Duration;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a component could not handle a message, which decides what happens to it next.
///
/// Deliberately not a `std::error::Error`, so that `?` lifts any error into [`Failure::Retry`].
///
/// ```
/// use brigade_core::Failure;
/// fn parse(text: &str) -> Result<u32, Failure> {
///     if text.is_empty() {
///         return Err(Failure::reject("no number")); // a dead letter, now
///     }
///     Ok(text.parse()?) // tried again, by the stage's `retry`
/// }
/// assert!(matches!(parse("x"), Err(Failure::Retry { .. })));
/// assert!(matches!(parse(""), Err(Failure::Reject(_))));
/// ```
#[derive(Debug)]
pub enum Failure {
    /// May succeed next time: retried by the stage's `retry`.
    Retry {
        /// What went wrong.
        error: BoxError,
        /// When to try again; `None` leaves it to the stage's back-off.
        after: Option<Duration>,
    },
    /// Will never succeed: becomes a dead letter now, whatever the stage's `on_exhausted` says.
    Reject(BoxError),
}

impl Failure {
    /// Gives up on this message now; it becomes a dead letter.
    pub fn reject(why: impl Into<BoxError>) -> Self {
        Self::Reject(why.into())
    }

    /// Asks for another attempt, by the stage's `retry`.
    pub fn retry(why: impl Into<BoxError>) -> Self {
        Self::Retry { error: why.into(), after: None }
    }

    /// Asks for another attempt after this long, at most a hundred years; it counts as an attempt.
    pub fn retry_after(after: Duration, why: impl Into<BoxError>) -> Self {
        Self::Retry { error: why.into(), after: Some(after) }
    }

    /// The error inside.
    pub fn error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        match self {
            Self::Retry { error, .. } | Self::Reject(error) => error.as_ref(),
        }
    }
}

impl<E: Into<BoxError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}
