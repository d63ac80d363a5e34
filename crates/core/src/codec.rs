//! The codecs of payloads, and the numbers in JSON as they are written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The encoding of a queue's payloads.
///
/// Within Brigade a payload that is read as a value is JSON; the runtime converts from and to the
/// other codecs where messages enter and leave a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// JSON.
    #[default]
    Json,
    /// MessagePack. What JSON cannot express (binary data, map keys that are not strings, integers
    /// beyond 64 bits, extensions) does not decode; timestamps are read as RFC 3339.
    Messagepack,
    /// CBOR, with the same limits; its tags are dropped.
    Cbor,
    /// UTF-8 text; components that read values get a JSON string.
    Text,
    /// Bytes that are never read as a value.
    Bytes,
}

impl Codec {
    /// Whether no conversion is needed.
    pub fn is_json(&self) -> bool {
        *self == Self::Json
    }

    /// Its name in files and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Messagepack => "messagepack",
            Self::Cbor => "cbor",
            Self::Text => "text",
            Self::Bytes => "bytes",
        }
    }

    /// The codec with this name.
    ///
    /// ```
    /// use brigade_core::Codec;
    /// assert_eq!(Codec::of_name("cbor"), Some(Codec::Cbor));
    /// assert_eq!(Codec::of_name("xml"), None);
    /// ```
    pub fn of_name(name: &str) -> Option<Self> {
        let all = [Self::Json, Self::Messagepack, Self::Cbor, Self::Text, Self::Bytes];
        all.into_iter().find(|codec| codec.as_str() == name)
    }
}

/// The first integer in a JSON text that is beyond 64 bits, as its digits are written: as a number
/// it would lose some of them. `None` also if the bytes are not JSON.
///
/// ```
/// use brigade_core::long_integer;
/// assert_eq!(long_integer(br#"{ "id": 18446744073709551616 }"#), Some("18446744073709551616"));
/// assert_eq!(long_integer(br#"[-9223372036854775808, 18446744073709551615, 1e30]"#), None);
/// ```
pub fn long_integer(json: &[u8]) -> Option<&str> {
    let number = numbers(json).find(|number| is_long(number))?;
    std::str::from_utf8(number).ok()
}

/// The numbers in a JSON text, in order and as they are written there; strings have none. In bytes
/// that are not JSON, it is whatever looks like one.
///
/// ```
/// use brigade_core::numbers;
/// let found: Vec<_> = numbers(br#"{ "1": [2.50, "3"], "b": -4e0 }"#).collect();
/// assert_eq!(found, [&b"2.50"[..], b"-4e0"]);
/// ```
pub fn numbers(json: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = json;
    std::iter::from_fn(move || {
        while let [first, behind @ ..] = rest {
            match first {
                b'"' => rest = behind_text(behind),
                b'-' | b'0'..=b'9' => {
                    let in_number =
                        |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                    let end = rest.iter().position(|byte| !in_number(byte)).unwrap_or(rest.len());
                    let (number, behind) = rest.split_at(end);
                    rest = behind;
                    return Some(number);
                }
                _ => rest = behind,
            }
        }
        None
    })
}

/// What follows the string that has begun.
fn behind_text(mut rest: &[u8]) -> &[u8] {
    loop {
        rest = match rest {
            [b'\\', _, behind @ ..] => behind,
            [b'"', behind @ ..] => return behind,
            [_, behind @ ..] => behind,
            [] => return rest,
        };
    }
}

fn is_long(number: &[u8]) -> bool {
    /// This many digits always fit.
    const FIT: usize = 18;
    let digits = number.strip_prefix(b"-").unwrap_or(number);
    if digits.len() <= FIT || !digits.iter().all(u8::is_ascii_digit) {
        return false;
    }
    let number = std::str::from_utf8(number).unwrap_or_default();
    number.parse::<i64>().is_err() && number.parse::<u64>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_integers_beyond_64_bits_are_found_and_no_digits_of_texts() {
        let long = [
            "18446744073709551616",
            "-9223372036854775809",
            r#"{ "18446744073709551616": [1, 123456789012345678901] }"#,
            r#"["\\", 123456789012345678901, "]"#,
        ];
        let found = ["18446744073709551616", "-9223372036854775809"];
        for (json, at) in long.into_iter().zip(0..) {
            let wanted = found.get(at).copied().unwrap_or("123456789012345678901");
            assert_eq!(long_integer(json.as_bytes()), Some(wanted), "{json}");
        }
        let short = [
            "18446744073709551615",
            "-9223372036854775808",
            "0.123456789012345678901",
            "123456789012345678901e-5",
            r#""123456789012345678901""#,
            r#"["\"123456789012345678901", "\\"]"#,
            "",
            "\"",
            "\"\\",
        ];
        for json in short {
            assert_eq!(long_integer(json.as_bytes()), None, "{json}");
        }
    }
}
