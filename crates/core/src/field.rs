//! Field paths: where in a JSON payload a key or an event time stands.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::Timestamp;

/// A path into a JSON payload: names joined by dots, as in `customer.id`.
///
/// ```
/// use brigade_core::field::FieldPath;
/// let path: FieldPath = "customer.id".parse()?;
/// let order = serde_json::json!({ "customer": { "id": 7 } });
/// assert_eq!(path.find(&order), Some(&serde_json::json!(7)));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldPath(Box<[Box<str>]>);

/// A path with no name, or with an empty one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a field path such as `customer.id`, found `{0}`")]
pub struct FieldPathError(String);

impl FieldPath {
    /// What stands there, if anything does.
    pub fn find<'v>(&self, payload: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(payload, |value, name| match value {
            Value::Array(items) => items.get(name.parse::<usize>().ok()?),
            other => other.get(name.as_ref()),
        })
    }

    /// What stands there as the bytes of a key: a string as it is, anything else as JSON.
    pub fn key(&self, payload: &Value) -> Option<Vec<u8>> {
        match self.find(payload)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone().into_bytes()),
            other => Some(other.to_string().into_bytes()),
        }
    }

    /// What stands there as a time: milliseconds since 1970, or RFC 3339 with a zone.
    ///
    /// ```
    /// use brigade_core::{Timestamp, field::FieldPath};
    /// let path: FieldPath = "at".parse()?;
    /// let there = |at| path.time(&serde_json::json!({ "at": at }));
    /// assert_eq!(there("1970-01-01T00:00:01Z"), Some(Timestamp(1000)));
    /// assert_eq!(there("tomorrow"), None);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn time(&self, payload: &Value) -> Option<Timestamp> {
        match self.find(payload)? {
            Value::Number(ms) => ms.as_i64().map(Timestamp),
            Value::String(text) => {
                let time: jiff::Timestamp = text.parse().ok()?;
                Some(Timestamp(time.as_millisecond()))
            }
            _ => None,
        }
    }
}

impl FromStr for FieldPath {
    type Err = FieldPathError;

    fn from_str(text: &str) -> Result<Self, FieldPathError> {
        let names: Box<[Box<str>]> = text.split('.').map(Into::into).collect();
        if names.iter().any(|name| name.is_empty()) {
            return Err(FieldPathError(text.to_owned()));
        }
        Ok(Self(names))
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}
