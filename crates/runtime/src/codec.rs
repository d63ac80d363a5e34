//! Conversion of payloads from and to a queue's `codec`. The structured form is JSON.

mod binary;

use brigade_core::{Codec, long_integer};
use bytes::Bytes;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Decodes a payload to a value.
///
/// # Errors
/// It is not written in that codec, holds what JSON cannot express, is nested too deep, or is
/// followed by something else.
pub(crate) fn decode(codec: Codec, payload: &[u8]) -> Result<Value, String> {
    match codec {
        Codec::Json => serde_json::from_slice(payload)
            .map_err(|error| format!("the payload is no JSON: {error}")),
        Codec::Messagepack => binary::read_messagepack(payload),
        Codec::Cbor => binary::read_cbor(payload),
        Codec::Text => match std::str::from_utf8(payload) {
            Ok(text) => Ok(Value::String(text.to_owned())),
            Err(error) => Err(format!("the payload is no UTF-8 text: {error}")),
        },
        Codec::Bytes => Err("the queue's codec is `bytes`: its payloads are no values".to_owned()),
    }
}

/// Encodes a value as a payload.
///
/// # Errors
/// That codec cannot express it.
pub(crate) fn encode(codec: Codec, value: &Value) -> Result<Bytes, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("not to be written: {error}");
    let bytes = match (codec, value) {
        (Codec::Text, Value::String(text)) => text.clone().into_bytes(),
        (Codec::Json | Codec::Text | Codec::Bytes, value) => {
            serde_json::to_vec(value).map_err(|error| wrong(&error))?
        }
        (Codec::Messagepack, value) => {
            rmp_serde::to_vec_named(value).map_err(|error| wrong(&error))?
        }
        (Codec::Cbor, value) => {
            let mut bytes = Vec::new();
            ciborium::into_writer(value, &mut bytes).map_err(|error| wrong(&error))?;
            bytes
        }
    };
    Ok(bytes.into())
}

/// Converts a payload from one codec to another. Bytes stay as they are, whatever the other side
/// is, and so does JSON that becomes a text, unless it is a string.
///
/// # Errors
/// See [`decode`] and [`encode`]; also if an integer would change its value.
pub(crate) fn transcode(from: Codec, to: Codec, payload: &Bytes) -> Result<Bytes, String> {
    if from == to || from == Codec::Bytes || to == Codec::Bytes {
        return Ok(payload.clone());
    }
    if from == Codec::Json && to == Codec::Text {
        return text(payload);
    }
    if from == Codec::Json
        && matches!(to, Codec::Messagepack | Codec::Cbor)
        && let Some(number) = long_integer(payload)
    {
        let codec = to.as_str();
        return Err(format!(
            "the integer {number} is beyond 64 bits, which the codec `{codec}` is not written with: write it as a \
             text, or keep to JSON"
        ));
    }
    encode(to, &decode(from, payload)?)
}

/// JSON as a text: a string's own, anything else as it is written, because a value would lack digits
/// of long numbers, and fields that stand twice.
fn text(json: &Bytes) -> Result<Bytes, String> {
    let no_json = |error: &dyn std::fmt::Display| format!("the payload is no JSON: {error}");
    if json.trim_ascii_start().first() == Some(&b'"') {
        let text: String = serde_json::from_slice(json).map_err(|error| no_json(&error))?;
        return Ok(text.into());
    }
    // What is ignored may be no UTF-8.
    let text = std::str::from_utf8(json).map_err(|error| no_json(&error))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| no_json(&error))?;
    Ok(json.clone())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STRUCTURED: [Codec; 3] = [Codec::Json, Codec::Messagepack, Codec::Cbor];

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e300..1e300).prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,5}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_comes_back_from_every_codec(value in value()) {
            for codec in STRUCTURED {
                let payload = encode(codec, &value).unwrap();
                prop_assert_eq!(decode(codec, &payload).unwrap(), value.clone());
            }
            let text = Value::from("some text");
            prop_assert_eq!(decode(Codec::Text, &encode(Codec::Text, &text).unwrap()).unwrap(), text);
        }

        #[test]
        fn nothing_panics_and_nothing_is_taken_that_has_more_behind_it(
            bytes in prop::collection::vec(any::<u8>(), 0..64), value in value(), more in 1_usize..4,
        ) {
            for codec in STRUCTURED {
                let _ = decode(codec, &bytes);
                let mut payload = encode(codec, &value).unwrap().to_vec();
                payload.extend(vec![b'1'; more]);
                let read = decode(codec, &payload);
                // One more digit is a different number in JSON.
                prop_assert!(read.is_err() || codec == Codec::Json && value.is_number());
            }
        }
    }

    #[test]
    fn what_json_cannot_say_does_not_decode() {
        // Binary data, a number as a key, an array that claims four billion elements.
        let messagepack: [&[u8]; 3] = [&[0xc4, 1, 7], &[0x81, 1, 2], &[0xdd, 255, 255, 255, 255]];
        for payload in messagepack {
            assert!(decode(Codec::Messagepack, payload).is_err(), "{payload:?}");
        }
        let cbor: [&[u8]; 3] =
            [&[0x41, 7], &[0xa1, 1, 2], &[0x9b, 255, 255, 255, 255, 255, 255, 255, 255]];
        for payload in cbor {
            assert!(decode(Codec::Cbor, payload).is_err(), "{payload:?}");
        }
        let deep = [&[0x91; 10_000][..], &[1]].concat();
        assert!(decode(Codec::Messagepack, &deep).is_err());
        let deep = [&[0x81; 10_000][..], &[1]].concat();
        assert!(decode(Codec::Cbor, &deep).is_err());
    }

    #[test]
    fn an_integer_that_would_become_another_is_not_written() {
        let long = Bytes::from_static(br#"{ "id": 123456789012345678901 }"#);
        let most = Bytes::from_static(br#"{"id":18446744073709551615}"#);
        for to in [Codec::Messagepack, Codec::Cbor] {
            let told = transcode(Codec::Json, to, &long).unwrap_err();
            assert!(told.contains("123456789012345678901") && told.contains(to.as_str()), "{told}");
            let there = transcode(Codec::Json, to, &most).unwrap();
            assert_eq!(transcode(to, Codec::Json, &there).unwrap(), most);
        }
    }

    #[test]
    fn json_is_the_same_as_a_text() {
        let text = |json: &str| {
            transcode(Codec::Json, Codec::Text, &Bytes::copy_from_slice(json.as_bytes()))
        };
        for json in [
            r#"{"id":123456789012345678901, "price": 0.12345678901234567890}"#,
            r#"{"id":1,"id":2}"#,
            "[1e999, 1.50]",
            "null",
        ] {
            assert_eq!(text(json).unwrap(), json);
        }
        assert_eq!(text(" \"Gr\\u00fc\u{df}e\"\n").unwrap(), "Grüße");
        for wrong in ["", "{", "{\"a\":1}}", "Grüße", "\"a", "nul"] {
            assert!(text(wrong).unwrap_err().starts_with("the payload is no JSON: "), "{wrong}");
        }
        let odd = Bytes::from_static(b"[\"\xff\"]");
        assert!(transcode(Codec::Json, Codec::Text, &odd).is_err());
    }

    #[test]
    fn bytes_stay_what_they_are() {
        let odd = Bytes::from_static(b"\xff{");
        for codec in STRUCTURED {
            assert_eq!(transcode(Codec::Bytes, codec, &odd).unwrap(), odd);
            assert_eq!(transcode(codec, Codec::Bytes, &odd).unwrap(), odd);
        }
    }
}
