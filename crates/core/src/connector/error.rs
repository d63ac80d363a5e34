//! [`ConnectorError`]: what a connector could not do, and how the runtime reacts.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::BoxError;

/// What a connector could not do, and whether it may work later.
///
/// The text says what was wrong, where, what was expected and what to do; it contains no secret.
#[derive(Debug, Clone)]
pub struct ConnectorError {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// How the runtime reacts to a [`ConnectorError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// May work later (a server that is away, a full disk, a lock): retried with back-off.
    Transient,
    /// Will not work without intervention (a wrong path, no permission, a corrupt file): the stage
    /// fails.
    Permanent,
    /// The connector does not support this; the topology should have refused it.
    Unsupported,
    /// The consumer or producer was shut down.
    Closed,
    /// The consumer gets no messages though there are some, or no longer hears from its server: it
    /// is closed and reopened, within the stage's restart budget.
    Stalled,
}

impl ConnectorError {
    /// An error that may go away by itself.
    pub fn transient(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Transient, message: message.into(), source: None }
    }

    /// An error that will not go away by itself.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Permanent, message: message.into(), source: None }
    }

    /// The connector does not support `what`.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Unsupported, message: what.into(), source: None }
    }

    /// The consumer or producer of `queue` was shut down.
    pub fn closed(queue: &str) -> Self {
        Self {
            kind: ErrorKind::Closed,
            message: format!("the connection to queue `{queue}` is shut down"),
            source: None,
        }
    }

    /// The consumer makes no progress and has to be reopened.
    pub fn stalled(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Stalled, message: message.into(), source: None }
    }

    /// Attaches a cause to the error.
    #[must_use]
    pub fn caused_by(self, source: impl Into<BoxError>) -> Self {
        Self { source: Some(Arc::from(source.into())), ..self }
    }

    /// How the runtime reacts to it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether to retry.
    pub fn is_transient(&self) -> bool {
        self.kind == ErrorKind::Transient
    }
}

impl fmt::Display for ConnectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ConnectorError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}
