//! What components return: [`Output`] and its implementations.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::Value;

use super::{Emit, Emitted, Raw};
use crate::{BoxError, Message};

/// What a component can return.
///
/// Derive it for your own types (`#[derive(Serialize, Output)]`): their values are emitted as JSON.
/// It is implemented for `()` (nothing), `Option` (nothing or one), `Vec` (any number), [`Emit`]
/// (several outputs, keys, headers, delays), `serde_json::Value`, [`Bytes`] and [`Raw`] (raw bytes)
/// and [`Message`] (payload, key and headers as they are).
#[diagnostic::on_unimplemented(
    message = "a component cannot answer `{Self}`",
    note = "derive it: `#[derive(serde::Serialize, brigade::Output)]`",
    note = "or answer `()`, `Option<..>`, `Vec<..>`, `Emit`, `serde_json::Value` or `Bytes`"
)]
pub trait Output: Send + 'static {
    /// Converts it to outputs.
    fn into_emit(self) -> Emit;
}

/// A value that did not encode as JSON.
#[derive(Debug, thiserror::Error)]
#[error("the value for {output} does not encode as JSON: {source}")]
pub struct OutputError {
    output: String,
    source: BoxError,
}

impl OutputError {
    pub(super) fn new(output: Option<Cow<'static, str>>, source: impl Into<BoxError>) -> Self {
        let output = match output {
            Some(name) => format!("output `{name}`"),
            None => "the output".to_owned(),
        };
        Self { output, source: source.into() }
    }
}

impl Output for () {
    fn into_emit(self) -> Emit {
        Emit::none()
    }
}

impl Output for Emit {
    fn into_emit(self) -> Emit {
        self
    }
}

impl Output for Value {
    fn into_emit(self) -> Emit {
        Emit::typed(self)
    }
}

impl Output for Bytes {
    fn into_emit(self) -> Emit {
        Emit::bytes(self)
    }
}

impl Output for Raw {
    fn into_emit(self) -> Emit {
        Emit::from(Emitted::new(self.0))
    }
}

impl Output for Message {
    fn into_emit(self) -> Emit {
        let emitted = Emitted::new(self.payload).with_key(self.key).with_headers(self.headers);
        Emit::from(match self.event_time {
            Some(time) => emitted.with_event_time(time),
            None => emitted,
        })
    }
}

impl<T: Output> Output for Option<T> {
    fn into_emit(self) -> Emit {
        self.map_or_else(Emit::none, T::into_emit)
    }
}

impl<T: Output> Output for Vec<T> {
    fn into_emit(self) -> Emit {
        self.into_iter().fold(Emit::none(), |emit, value| emit.merge(value.into_emit()))
    }
}
