//! Payloads that came, beside those that were expected.

use std::fmt;

use brigade_core::Message;
use serde_json::{Number, Value};

/// A payload that came.
pub(super) struct Got<'m> {
    bytes: Option<&'m [u8]>,
    /// As JSON, or its text.
    value: Value,
}

impl<'m> Got<'m> {
    pub(super) fn of(message: &'m Message) -> Self {
        let bytes = message.payload.as_deref();
        let text = |bytes: &[u8]| Value::String(String::from_utf8_lossy(bytes).into_owned());
        let json = |bytes| serde_json::from_slice(bytes).unwrap_or_else(|_| text(bytes));
        Self { bytes, value: bytes.map_or(Value::Null, json) }
    }

    /// Whether it is the expected one: by its value, or byte for byte if that is in `raw`, where
    /// nothing (`raw: null`) is a payload that is none. As a value that one is `null`, too.
    pub(super) fn is(&self, expected: &Value) -> bool {
        let is_raw = match raw(expected) {
            Some(Value::String(text)) => self.bytes == Some(text.as_bytes()),
            Some(Value::Null) => self.bytes.is_none(),
            _ => false,
        };
        is_raw || is_equal(&self.value, expected)
    }
}

impl fmt::Display for Got<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            Some(_) => self.value.fmt(f),
            None => f.write_str("{\"raw\":null}"),
        }
    }
}

/// What an expected payload is to be byte for byte, if it is given so.
fn raw(expected: &Value) -> Option<&Value> {
    let keys = expected.as_object().filter(|keys| keys.len() == 1)?;
    keys.get("raw")
}

/// Whether two values are equal, where `5` and `5.0` are.
fn is_equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => is_equal_number(one, other),
        (Value::Array(ones), Value::Array(others)) => {
            let mut pairs = ones.iter().zip(others);
            ones.len() == others.len() && pairs.all(|(one, other)| is_equal(one, other))
        }
        (Value::Object(ones), Value::Object(others)) => {
            let is_there = |(key, one)| others.get(key).is_some_and(|other| is_equal(one, other));
            ones.len() == others.len() && ones.iter().all(is_there)
        }
        _ => one == other,
    }
}

fn is_equal_number(one: &Number, other: &Number) -> bool {
    match (whole(one), whole(other)) {
        (None, None) => one == other,
        (one, other) => one == other,
    }
}

/// A number without a fraction, unless it is so large that its digits are not all known.
fn whole(number: &Number) -> Option<i128> {
    match (number.as_i128(), number.as_f64()) {
        (Some(whole), _) => Some(whole),
        (None, Some(float)) if float.fract() == 0.0 && float.abs() < 2_f64.powi(64) => {
            Some(float as i128)
        }
        _ => None,
    }
}

/// The digits that a float keeps, whatever they are.
const DIGITS: usize = f64::DIGITS as usize;

/// A number in a value that was, as far as can still be seen, written as an integer of more than 64 bits: it
/// has more digits than a float surely keeps.
pub(super) fn beyond_64_bits(value: &Value) -> Option<&Number> {
    match value {
        Value::Number(number) => {
            let float = number.as_f64().filter(|_| number.is_f64())?;
            let beyond = float >= 2_f64.powi(64) || float <= -(2_f64.powi(63));
            let shortest = format!("{float:e}");
            let digits = shortest.split('e').next().unwrap_or_default();
            let digits = digits.chars().filter(char::is_ascii_digit).count();
            (beyond && digits > DIGITS).then_some(number)
        }
        Value::Array(items) => items.iter().find_map(beyond_64_bits),
        Value::Object(keys) => keys.values().find_map(beyond_64_bits),
        _ => None,
    }
}

/// Reports what is in only one of two lists.
pub(super) fn compare(
    place: &str,
    expected: &[Value],
    got: Vec<Got<'_>>,
    ordered: bool,
    wrong: &mut Vec<String>,
) {
    if ordered {
        let differs = |at: &usize| match (expected.get(*at), got.get(*at)) {
            (Some(want), Some(have)) => !have.is(want),
            _ => true,
        };
        if let Some(at) = (0..expected.len().max(got.len())).find(differs) {
            let nothing = || "nothing".to_owned();
            let want = expected.get(at).map_or_else(nothing, Value::to_string);
            let have = got.get(at).map_or_else(nothing, Got::to_string);
            wrong.push(format!("{place}, output {}: {want} expected, {have} found", at + 1));
        }
        return;
    }
    let mut left = got;
    // What is to be the same byte for byte fits fewer, and so chooses first.
    let (bytes, values): (Vec<_>, Vec<_>) =
        expected.iter().partition(|expected| raw(expected).is_some());
    for want in bytes.into_iter().chain(values) {
        match left.iter().position(|have| have.is(want)) {
            Some(at) => drop(left.remove(at)),
            None => wrong.push(format!("{place}: missing {want}")),
        }
    }
    wrong.extend(left.iter().map(|have| format!("{place}: not expected {have}")));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_equal_by_their_value() {
        for (one, other) in [
            (json!(5), json!(5.0)),
            (json!({ "a": [1, { "b": -0.0 }] }), json!({ "a": [1.0, { "b": 0 }] })),
            (json!(u64::MAX), json!(u64::MAX)),
            (json!(2.5), json!(2.5)),
            (json!(1e300), json!(1e300)),
        ] {
            assert!(is_equal(&one, &other) && is_equal(&other, &one), "{one} {other}");
        }
        for (one, other) in [
            (json!(5), json!(5.5)),
            (json!(9_007_199_254_740_993_u64), json!(9_007_199_254_740_992.0)),
            (json!(5), json!("5")),
            (json!([5]), json!([5, 5])),
            (json!({ "a": 1 }), json!({ "a": 1, "b": null })),
            (json!({ "a": 1 }), json!({ "b": 1 })),
        ] {
            assert!(!is_equal(&one, &other) && !is_equal(&other, &one), "{one} {other}");
        }
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_found() {
        let found = |text: &str| beyond_64_bits(&serde_json::from_str(text).unwrap()).is_some();
        for text in ["18446744073709551616", "[1,{\"a\":-12345678901234567890}]"] {
            assert!(found(text), "{text}");
        }
        for text in
            ["18446744073709551615", "-9223372036854775808", "0.5", "1e18", "6.02e23", "-1.5e300"]
        {
            assert!(!found(text), "{text}");
        }
    }

    #[test]
    fn a_payload_is_expected_by_value_or_byte_for_byte() {
        let long = Message::new("{\"id\":123456789012345678901}");
        assert!(Got::of(&long).is(&json!({ "raw": "{\"id\":123456789012345678901}" })));
        assert!(!Got::of(&long).is(&json!({ "raw": "{\"id\":123456789012345678902}" })));
        let (gone, null) = (Message::default(), Message::new("null"));
        assert!(Got::of(&gone).is(&json!({ "raw": null })) && Got::of(&gone).is(&json!(null)));
        assert!(Got::of(&null).is(&json!(null)) && !Got::of(&null).is(&json!({ "raw": null })));
        let (want, got) =
            ([json!(null), json!({ "raw": null })], vec![Got::of(&gone), Got::of(&null)]);
        let mut wrong = Vec::new();
        compare("queue `q`", &want, got, false, &mut wrong);
        assert_eq!(wrong, [""; 0]);
        compare("queue `q`", &[], vec![Got::of(&gone)], false, &mut wrong);
        assert_eq!(wrong, ["queue `q`: not expected {\"raw\":null}"]);
    }
}
