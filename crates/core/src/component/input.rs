//! What components take: [`Input`] and its implementations.

use std::any::Any;
use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Conversion;
use crate::Message;

/// What a component can take: anything that serde can read from JSON, [`Raw`] (the payload's bytes)
/// or the whole [`Message`].
#[diagnostic::on_unimplemented(
    message = "a component cannot take `{Self}`",
    note = "derive it: `#[derive(serde::Deserialize)]`, or take `Raw` or `Message`"
)]
pub trait Input: Sized + Send + 'static {
    /// Decodes a message. `parsed` is its payload already decoded, if available.
    ///
    /// # Errors
    /// The payload is not what the component takes.
    fn decode(message: &Message, parsed: Option<Parsed>) -> Result<Self, DecodeError>;
}

/// A decoded payload, so that it is not decoded again.
pub enum Parsed {
    /// Its JSON.
    Json(Value),
    /// The value it was encoded from, passed over a direct edge. A component that takes another
    /// type decodes the payload.
    Typed(Box<dyn Any + Send>),
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(value) => f.debug_tuple("Json").field(value).finish(),
            Self::Typed(_) => f.write_str("Typed"),
        }
    }
}

/// A payload that is not what the component takes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

impl DecodeError {
    /// An error with this explanation.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// A payload's raw bytes; `None` is a tombstone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Raw(pub Option<Bytes>);

impl<T: DeserializeOwned + Send + 'static> Input for T {
    fn decode(message: &Message, parsed: Option<Parsed>) -> Result<Self, DecodeError> {
        let parsed = match parsed {
            Some(Parsed::Typed(value)) => match value.downcast::<Self>() {
                Ok(value) => return Ok(*value),
                Err(_) => None,
            },
            Some(Parsed::Json(value)) => Some(value),
            None => None,
        };
        let wrong = |error: serde_json::Error| {
            DecodeError(format!("the payload is no {}: {error}", short_name::<T>()))
        };
        match (parsed, &message.payload) {
            (Some(value), _) => {
                Conversion::Construct.timed(|| serde_json::from_value(value)).map_err(wrong)
            }
            (None, Some(bytes)) => {
                Conversion::Deserialize.timed(|| serde_json::from_slice(bytes)).map_err(wrong)
            }
            (None, None) => Err(DecodeError(format!(
                "the payload is null; the component takes {}",
                short_name::<T>()
            ))),
        }
    }
}

impl Input for Raw {
    fn decode(message: &Message, _: Option<Parsed>) -> Result<Self, DecodeError> {
        Ok(Self(message.payload.clone()))
    }
}

impl Input for Message {
    fn decode(message: &Message, _: Option<Parsed>) -> Result<Self, DecodeError> {
        Ok(message.clone())
    }
}

/// A type's name without paths, for error messages.
fn short_name<T>() -> String {
    let name = std::any::type_name::<T>();
    // Any JSON is a `Value`; "JSON" is the name people know.
    if name == std::any::type_name::<Value>() {
        return "JSON".to_owned();
    }
    let mut parts = name.split("::");
    let mut short = parts.next().unwrap_or(name).to_owned();
    for part in parts {
        // What precedes `::` is a crate or a module.
        let path = short.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
        short.truncate(path.len());
        short.push_str(part);
    }
    short
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_type_is_told_without_its_paths() {
        assert_eq!(short_name::<Value>(), "JSON");
        assert_eq!(short_name::<u64>(), "u64");
        assert_eq!(short_name::<HashMap<String, u64>>(), "HashMap<String, u64>");
        assert_eq!(short_name::<Option<Vec<(String, Value)>>>(), "Option<Vec<(String, Value)>>");
    }
}
