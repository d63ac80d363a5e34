//! Field paths: where in a JSON payload a key or an event time is found.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use jiff::civil::date;
use jiff::fmt::temporal::Pieces;
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
    /// Its names, from the outermost.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// The value at the path, if there is one.
    pub fn find<'v>(&self, payload: &'v Value) -> Option<&'v Value> {
        self.0.iter().try_fold(payload, |value, name| match value {
            Value::Array(items) => items.get(name.parse::<usize>().ok()?),
            other => other.get(name.as_ref()),
        })
    }

    /// The value at the path as the bytes of a key: a string as it is, anything else as JSON. A
    /// number is written as a 64-bit integer or float, so that `1` and `1.0` are different keys,
    /// while close integers beyond 64 bits may be the same key.
    ///
    /// ```
    /// use brigade_core::field::FieldPath;
    /// let path: FieldPath = "id".parse()?;
    /// let key = |id| path.key(&serde_json::json!({ "id": id }));
    /// assert_eq!(key(serde_json::json!(7)), key(serde_json::json!("7")));
    /// assert_ne!(key(serde_json::json!(7)), key(serde_json::json!(7.0)));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn key(&self, payload: &Value) -> Option<Vec<u8>> {
        match self.find(payload)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone().into_bytes()),
            other => Some(other.to_string().into_bytes()),
        }
    }

    /// The value at the path as a time: milliseconds since 1970 (a whole number), or RFC 3339 with
    /// a time zone, truncated to milliseconds.
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
            Value::Number(ms) => ms.as_i64().or_else(|| whole(ms.as_f64()?)).map(Timestamp),
            Value::String(text) => rfc_3339(text),
            _ => None,
        }
    }
}

/// A whole number that is written as a fraction, such as `1.0`.
fn whole(number: f64) -> Option<i64> {
    /// Below this every whole number is exact as a float.
    const EXACT: f64 = (1_u64 << 53) as f64;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and small enough")]
    (number.fract() == 0.0 && number.abs() < EXACT).then_some(number as i64)
}

/// A time, including one too far away for time zone arithmetic: the end of the year 9999 is often
/// used for "never".
fn rfc_3339(text: &str) -> Option<Timestamp> {
    /// At most this many fractional digits are read.
    const DIGITS: usize = 9;
    let (before, after) = text.split_once('.').unwrap_or((text, ""));
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    let cut = match digits > DIGITS {
        true => Cow::Owned(format!("{before}.{}{}", &after[..DIGITS], &after[digits..])),
        false => Cow::Borrowed(text),
    };
    let pieces = Pieces::parse(&*cut).ok()?;
    let offset = pieces.to_numeric_offset()?;
    let local = pieces.date().to_datetime(pieces.time()?);
    let since = local.duration_since(date(1970, 1, 1).at(0, 0, 0, 0));
    let ms = since.as_nanos().div_euclid(1_000_000) - i128::from(offset.seconds()) * 1000;
    i64::try_from(ms).ok().map(Timestamp)
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn time(at: &Value) -> Option<i64> {
        let path: FieldPath = "at".parse().expect("it is a path");
        path.time(&json!({ "at": at })).map(|time| time.0)
    }

    #[test]
    fn times_are_read_however_they_are_written() {
        let second = [
            json!(1000),
            json!(1000.0),
            json!("1970-01-01T00:00:01Z"),
            json!("1970-01-01t00:00:01z"),
            json!("1970-01-01T01:00:01+01:00"),
            json!("1969-12-31T23:30:01.0009-00:30"),
            json!("1970-01-01T00:00:01.000000000000000009Z"),
        ];
        for at in second {
            assert_eq!(time(&at), Some(1000), "{at}");
        }
        assert_eq!(time(&json!("9999-12-31T23:59:59.999Z")), Some(253_402_300_799_999));
        assert_eq!(time(&json!("9999-12-31T23:59:59-12:00")), Some(253_402_343_999_000));
        assert_eq!(time(&json!("1969-12-31T23:59:59.9999Z")), Some(-1), "no later than it is");
        assert_eq!(time(&json!(-5)), Some(-5));
    }

    #[test]
    fn what_is_no_time_is_none() {
        let none = [
            json!(1000.5),
            json!(1e300),
            json!("1970-01-01"),
            json!("1970-01-01T00:00:01"),
            json!("12:00:00Z"),
            json!("1970-13-01T00:00:01Z"),
            json!("1970-01-01T00:00:01.Z"),
            json!(""),
            json!("."),
            json!("é.é"),
            json!(true),
            json!(null),
        ];
        for at in none {
            assert_eq!(time(&at), None, "{at}");
        }
    }
}
