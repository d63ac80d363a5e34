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
    /// The value of a payload that is JSON, for components that take a [`Value`]. Others decode the
    /// payload: a value lacks digits of long numbers, and fields that stand twice.
    Json(Value),
    /// The value of a payload in another codec.
    Converted(Value),
    /// The value it was encoded from, passed over a direct edge. A component that takes another
    /// type decodes the payload.
    Typed(Box<dyn Any + Send>),
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(value) => f.debug_tuple("Json").field(value).finish(),
            Self::Converted(value) => f.debug_tuple("Converted").field(value).finish(),
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
        let wrong = |error: serde_json::Error| {
            DecodeError(format!("the payload is no {}: {error}", short_name::<T>()))
        };
        match parsed {
            Some(Parsed::Typed(value)) => {
                if let Ok(value) = value.downcast::<Self>() {
                    return Ok(*value);
                }
            }
            Some(Parsed::Json(value)) => {
                if let Ok(value) = as_it_is(value) {
                    return Ok(value);
                }
            }
            Some(Parsed::Converted(value)) => {
                return as_it_is(value).or_else(|value| {
                    Conversion::Construct.timed(|| serde_json::from_value(value)).map_err(wrong)
                });
            }
            None => {}
        }
        match &message.payload {
            Some(bytes) => {
                Conversion::Deserialize.timed(|| serde_json::from_slice(bytes)).map_err(wrong)
            }
            None => Err(DecodeError(format!(
                "the payload is null; the component takes {}",
                short_name::<T>()
            ))),
        }
    }
}

/// The value itself, if a [`Value`] is what is taken.
fn as_it_is<T: 'static>(value: Value) -> Result<T, Value> {
    let mut value = Some(value);
    let any: &mut dyn Any = &mut value;
    match any.downcast_mut::<Option<T>>().and_then(Option::take) {
        Some(taken) => Ok(taken),
        None => Err(value.expect("it was not taken")),
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
    fn a_value_that_is_there_is_taken_only_as_it_is() {
        let message = Message::new("{\"n\":123456789012345678901,\"m\":1}");
        let there = || serde_json::json!({ "there": true });
        let taken = Value::decode(&message, Some(Parsed::Json(there()))).expect("it is there");
        assert_eq!(taken, there());
        let typed: HashMap<String, u128> =
            Input::decode(&message, Some(Parsed::Json(there()))).expect("it is in the payload");
        assert_eq!(typed["n"], 123_456_789_012_345_678_901);
        let packed = Message::new(vec![0x81]);
        for parsed in [Parsed::Converted(there()), Parsed::Typed(Box::new(there()))] {
            assert_eq!(Value::decode(&packed, Some(parsed)).expect("it is there"), there());
        }
        let converted = Some(Parsed::Converted(there()));
        let typed: HashMap<String, bool> = Input::decode(&packed, converted).expect("it fits");
        assert!(typed["there"]);
    }

    #[test]
    fn a_type_is_told_without_its_paths() {
        assert_eq!(short_name::<Value>(), "JSON");
        assert_eq!(short_name::<u64>(), "u64");
        assert_eq!(short_name::<HashMap<String, u64>>(), "HashMap<String, u64>");
        assert_eq!(short_name::<Option<Vec<(String, Value)>>>(), "Option<Vec<(String, Value)>>");
    }
}
