use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::BoxError;

/// What a connector could not do, and whether it may go better later.
///
/// The text says what was wrong, where, what was expected and what to do; it names no secret.
#[derive(Debug, Clone)]
pub struct ConnectorError {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

/// How the runtime is to take a [`ConnectorError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// May go better later (a server that is away, a full disk, a lock): tried again with back-off.
    Transient,
    /// Will not go better by itself (a wrong path, no permission, a corrupt file): the stage fails.
    Permanent,
    /// The connector does not do this; the topology should have refused it.
    Unsupported,
    /// The consumer or producer was shut down.
    Closed,
    /// The consumer gets nothing though there is something, or hears nothing any more: it is closed and
    /// opened again, within the stage's budget of restarts.
    Stalled,
}

impl ConnectorError {
    /// An error that may go better later.
    pub fn transient(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Transient, message: message.into(), source: None }
    }

    /// An error that will not go better by itself.
    pub fn permanent(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Permanent, message: message.into(), source: None }
    }

    /// The connector does not do `what`.
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

    /// The consumer does not get on, and has to be opened again.
    pub fn stalled(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Stalled, message: message.into(), source: None }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn caused_by(self, source: impl Into<BoxError>) -> Self {
        Self { source: Some(Arc::from(source.into())), ..self }
    }

    /// How to take it.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether to try again.
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
