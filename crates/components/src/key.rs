//! A value of a payload as a key, of a table's row or of a message seen before.

use std::fmt::Write;

use brigade_core::field::FieldPath;
use jaq_json::{Num, Val};

/// The value at a path of a payload, if there is one.
pub(crate) fn find<'v>(path: &FieldPath, payload: &'v Val) -> Option<&'v Val> {
    path.names().try_fold(payload, |value, name| match value {
        Val::Arr(items) => items.get(name.parse::<usize>().ok()?),
        Val::Obj(fields) => fields.get(&Val::from(name.to_owned())),
        _ => None,
    })
}

/// A value as a key: a text as it is, anything else as JSON, with the names in objects sorted, and
/// a number by its value, however it is written and however many digits it has.
pub(crate) fn key_of(value: &Val) -> String {
    match value {
        Val::TStr(text) => String::from_utf8_lossy(text).into_owned(),
        other => {
            let mut key = String::new();
            write_json(other, &mut key);
            key
        }
    }
}

fn write_json(value: &Val, key: &mut String) {
    let text = |bytes: &[u8]| serde_json::Value::from(String::from_utf8_lossy(bytes)).to_string();
    match value {
        Val::Null => key.push_str("null"),
        Val::Bool(is) => key.push_str(if *is { "true" } else { "false" }),
        Val::Num(number) => key.push_str(&number_text(number)),
        Val::TStr(bytes) | Val::BStr(bytes) => key.push_str(&text(bytes)),
        Val::Arr(values) => {
            key.push('[');
            for (at, value) in values.iter().enumerate() {
                key.push_str(if at > 0 { "," } else { "" });
                write_json(value, key);
            }
            key.push(']');
        }
        Val::Obj(fields) => {
            let mut fields: Vec<(String, &Val)> =
                fields.iter().map(|(name, value)| (key_of(name), value)).collect();
            fields.sort_by(|one, other| one.0.cmp(&other.0));
            key.push('{');
            for (at, (name, value)) in fields.iter().enumerate() {
                key.push_str(if at > 0 { "," } else { "" });
                key.push_str(&text(name.as_bytes()));
                key.push(':');
                write_json(value, key);
            }
            key.push('}');
        }
    }
}

/// A number by its value: `1`, `1.0` and `10e-1` give the same text.
fn number_text(number: &Num) -> String {
    match number {
        Num::Int(number) => plain(&number.to_string()),
        Num::BigInt(number) => plain(&number.to_string()),
        Num::Float(number) if number.is_finite() => plain(&format!("{number:e}")),
        Num::Float(number) => number.to_string(),
        Num::Dec(text) => plain(text),
    }
}

/// The canonical text of a JSON number: its digits without leading or trailing zeros, with the
/// decimal point among them, or padded with zeros if it is close, or else with an exponent.
fn plain(text: &str) -> String {
    /// The most digits of a number that is written without an exponent.
    const DIGITS_MAX: i64 = 40;
    let (sign, text) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    // Exponents beyond 64 bits are beyond any practical use.
    let exponent: i64 = exponent.parse().unwrap_or(match exponent.starts_with('-') {
        true => i64::MIN / 4,
        false => i64::MAX / 4,
    });
    let exponent = exponent.clamp(i64::MIN / 4, i64::MAX / 4);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = [whole, fraction].concat();
    let zeros = digits.len() - digits.trim_start_matches('0').len();
    let digits = digits.trim_matches('0');
    if digits.is_empty() {
        return "0".to_owned();
    }
    // The number is 0.DIGITS times ten to the power of this.
    let point = whole.len() as i64 - zeros as i64 + exponent;
    let count = digits.len() as i64;
    let mut plain = sign.to_owned();
    let zeros = |n: i64| "0".repeat(usize::try_from(n).unwrap_or_default());
    let written = match point {
        _ if point.max(count) > DIGITS_MAX.max(count) || point < -DIGITS_MAX => {
            write!(plain, "{digits}e{}", point - count)
        }
        _ if point >= count => write!(plain, "{digits}{}", zeros(point - count)),
        _ if point <= 0 => write!(plain, "0.{}{digits}", zeros(-point)),
        _ => {
            let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or_default());
            write!(plain, "{whole}.{fraction}")
        }
    };
    written.expect("a text takes whatever is written");
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jq::read;

    fn key(text: &str) -> String {
        key_of(&read(text.as_bytes()).unwrap())
    }

    #[test]
    fn a_number_is_one_key_however_it_is_written() {
        let groups = [
            &["1", "1.0", "1e0", "10e-1", "1.00000000000000000000000"][..],
            &["0", "-0", "0.0", "0e99", "-0.000"],
            &["100", "1e2", "1E+2", "100.00"],
            &["1e20", "100000000000000000000", "1.0e+20"],
            &["1e45", "1000000000000000000000000000000000000000000000", "10.0e44"],
            &["1.5e300", "15e299", "0.15e301"],
            &["-2.5e-3", "-0.0025", "-25e-4"],
            &["0.12345678901234567891", "1.2345678901234567891e-1"],
        ];
        for group in groups {
            for text in group {
                assert_eq!(key(text), key(group[0]), "{text}");
                // A long number next to it makes the whole payload be parsed with all digits.
                let beside = format!("[{text},1700000000000000000.5]");
                assert_eq!(key(&beside), format!("[{},1700000000000000000.5]", key(group[0])));
            }
        }
        let all: std::collections::BTreeSet<String> = groups.iter().map(|g| key(g[0])).collect();
        assert_eq!(all.len(), groups.len());
    }

    #[test]
    fn numbers_that_differ_in_their_last_digit_are_two_keys() {
        assert_ne!(key("123456789012345678901"), key("123456789012345678902"));
        assert_ne!(key("0.12345678901234567891"), key("0.12345678901234567892"));
        assert_ne!(key("9007199254740993"), key("9007199254740992"));
    }

    #[test]
    fn numbers_are_written_as_people_do() {
        assert_eq!(plain("18446744073709551615"), "18446744073709551615");
        assert_eq!(plain("-12.50"), "-12.5");
        assert_eq!(plain("0.001"), "0.001");
        assert_eq!(plain("123e100"), "123e100");
        assert_eq!(plain("1e-100"), "1e-100");
        let huge = "1e99999999999999999999";
        assert_eq!(plain(huge), plain(huge));
        assert_ne!(plain(huge), plain("1e-99999999999999999999"));
    }

    #[test]
    fn an_object_is_one_key_in_whatever_order_its_names_stand() {
        assert_eq!(key(r#"{"b":[1.0,"x\u007f"],"a":null}"#), "{\"a\":null,\"b\":[1,\"x\u{7f}\"]}");
        assert_eq!(key(r#""a text""#), "a text");
        assert_eq!(key("true"), "true");
    }
}
