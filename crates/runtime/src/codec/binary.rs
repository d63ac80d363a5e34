//! MessagePack and CBOR as JSON.

use std::fmt;
use std::io::Cursor;

use serde::Deserializer;
use serde::de::{
    DeserializeSeed, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde_json::{Map, Number, Value};

/// The deepest nesting of values, as for JSON.
const DEPTH_MAX: usize = 128;

/// Reads MessagePack.
pub(super) fn read_messagepack(payload: &[u8]) -> Result<Value, String> {
    use rmp_serde::decode::Error;
    let mut reader = rmp_serde::Deserializer::new(Cursor::new(payload));
    reader.set_max_depth(DEPTH_MAX);
    let value = Json.deserialize(&mut reader).map_err(|error| {
        let what = match error {
            Error::InvalidMarkerRead(_) | Error::InvalidDataRead(_) => CUT_OFF.to_owned(),
            Error::TypeMismatch(_) => "there is a byte that begins nothing".to_owned(),
            Error::Utf8Error(_) => "a text is no UTF-8".to_owned(),
            Error::DepthLimitExceeded => deep(),
            Error::Uncategorized(text) | Error::Syntax(text) => text,
            error => error.to_string(),
        };
        format!("the payload is no MessagePack that JSON can say: {what}")
    })?;
    let read = reader.get_ref().position();
    whole(value, payload.len() as u64 - read)
}

/// Reads CBOR.
pub(super) fn read_cbor(payload: &[u8]) -> Result<Value, String> {
    use ciborium::de::Error;
    let mut rest = payload;
    let read: Result<Tagless, _> =
        ciborium::de::from_reader_with_recursion_limit(&mut rest, DEPTH_MAX);
    let Tagless(value) = read.map_err(|error| {
        let what = match error {
            Error::Io(_) => CUT_OFF.to_owned(),
            Error::Syntax(place) => format!("its byte {place} begins nothing"),
            Error::Semantic(_, text) => text,
            Error::RecursionLimitExceeded => deep(),
        };
        format!("the payload is no CBOR that JSON can say: {what}")
    })?;
    whole(value, rest.len() as u64)
}

const CUT_OFF: &str = "it ends in the middle";

fn deep() -> String {
    format!("it has more than {DEPTH_MAX} levels")
}

fn whole(value: Value, left: u64) -> Result<Value, String> {
    match left {
        0 => Ok(value),
        left => Err(format!("the payload has {left} bytes behind its value")),
    }
}

/// A value of CBOR.
struct Tagless(Value);

impl<'de> serde::Deserialize<'de> for Tagless {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Json.deserialize(deserializer).map(Self)
    }
}

/// Reads any value as JSON. CBOR's tags are dropped: what they are put to says the same in JSON. Of
/// MessagePack's extensions, timestamps are read, as RFC 3339.
struct Json;

impl<'de> DeserializeSeed<'de> for Json {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what JSON has")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E: Error>(self, is: bool) -> Result<Value, E> {
        Ok(is.into())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_i128<E: Error>(self, number: i128) -> Result<Value, E> {
        let number = Number::from_i128(number).ok_or_else(|| beyond(&number))?;
        Ok(number.into())
    }

    fn visit_u128<E: Error>(self, number: u128) -> Result<Value, E> {
        let number = Number::from_u128(number).ok_or_else(|| beyond(&number))?;
        Ok(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(number.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<Value, E> {
        Err(E::custom("it has binary data"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(Self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = entries.next_key_seed(Name)? {
            fields.insert(name, entries.next_value_seed(Self)?);
        }
        Ok(fields.into())
    }

    /// A tag of CBOR, and what it is put to.
    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        let (_, inner) = tagged.variant::<IgnoredAny>()?;
        inner.newtype_variant_seed(self)
    }

    /// An extension of MessagePack.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        inner.deserialize_any(Extension(None))
    }
}

fn beyond<E: Error>(number: &dyn fmt::Display) -> E {
    E::custom(format_args!("the integer {number} is beyond 64 bits"))
}

/// Reads the name of a field.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_string(self)
    }
}

impl Visitor<'_> for Name {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text as a key")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }
}

/// Reads an extension of MessagePack: its type, and its data once that is known.
struct Extension(Option<i8>);

impl<'de> DeserializeSeed<'de> for Extension {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Extension {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an extension")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Value, A::Error> {
        let kind = parts.next_element()?;
        let read = parts.next_element_seed(Self(kind))?;
        read.ok_or_else(|| A::Error::custom("an extension without data"))
    }

    fn visit_bytes<E: Error>(self, data: &[u8]) -> Result<Value, E> {
        /// The type of timestamps.
        const TIMESTAMP: i8 = -1;
        match self.0 {
            Some(TIMESTAMP) => match timestamp(data) {
                Some(time) => Ok(time.to_string().into()),
                None => Err(E::custom("it has a timestamp that is none")),
            },
            kind => {
                let kind = kind.unwrap_or_default();
                Err(E::custom(format_args!("it has an extension, of type {kind}")))
            }
        }
    }
}

/// A timestamp: seconds since 1970; or nanoseconds in 30 bits, and seconds in 34; or nanoseconds,
/// and seconds in 64 bits.
fn timestamp(data: &[u8]) -> Option<jiff::Timestamp> {
    let (seconds, nanos) = if let Ok(seconds) = data.try_into() {
        (i64::from(u32::from_be_bytes(seconds)), 0)
    } else if let Ok(both) = data.try_into() {
        let both = u64::from_be_bytes(both);
        (i64::try_from(both & ((1 << 34) - 1)).ok()?, u32::try_from(both >> 34).ok()?)
    } else {
        let (nanos, seconds) = data.split_first_chunk()?;
        (i64::from_be_bytes(seconds.try_into().ok()?), u32::from_be_bytes(*nanos))
    };
    jiff::Timestamp::new(seconds, i32::try_from(nanos).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tags_of_cbor_are_dropped() {
        // As Python's `cbor2` writes them: a time, a time in seconds, a decimal, all of it
        // described as CBOR; and a tag to a tag, and one to a key.
        let time = [&[0xc0, 0x74][..], b"2024-02-29T12:00:00Z"].concat();
        for (payload, value) in [
            ([&[0xa1, 0x62][..], b"at", &time].concat(), json!({ "at": "2024-02-29T12:00:00Z" })),
            (vec![0xc1, 0x1a, 0x65, 0x53, 0xf1, 0x00], json!(1_700_000_000)),
            (vec![0xc4, 0x82, 0x21, 0x19, 0x04, 0xe2], json!([-2, 1250])),
            (vec![0xd9, 0xd9, 0xf7, 0xa1, 0x61, b'n', 7], json!({ "n": 7 })),
            (vec![0xc6, 0xc7, 0xf5], json!(true)),
            (vec![0xa1, 0xc6, 0x61, b'n', 7], json!({ "n": 7 })),
            (vec![0xc2, 0x42, 1, 0], json!(256)),
        ] {
            assert_eq!(read_cbor(&payload).unwrap(), value, "{payload:x?}");
        }
    }

    #[test]
    fn timestamps_of_messagepack_are_rfc_3339() {
        // As JavaScript's `@msgpack/msgpack` writes dates.
        for (payload, value) in [
            (vec![0xd6, 0xff, 0x65, 0x53, 0xf1, 0x00], json!("2023-11-14T22:13:20Z")),
            (
                vec![0x91, 0xd7, 0xff, 0x77, 0x35, 0x94, 0x00, 0x65, 0x53, 0xf1, 0x00],
                json!(["2023-11-14T22:13:20.5Z"]),
            ),
            ([&[0xc7, 12, 0xff][..], &[0; 4], &[0xff; 8]].concat(), json!("1969-12-31T23:59:59Z")),
        ] {
            assert_eq!(read_messagepack(&payload).unwrap(), value, "{payload:x?}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_in_words() {
        let all = [
            (
                read_messagepack as fn(&[u8]) -> Result<Value, String>,
                &[0xd4, 5, 0][..],
                "an extension, of type 5",
            ),
            (read_messagepack, &[0xd5, 0xff, 0, 0], "a timestamp that is none"),
            (
                read_messagepack,
                &[0xc7, 12, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
                "a timestamp that is none",
            ),
            (read_messagepack, &[0x92, 1], "it ends in the middle"),
            (read_messagepack, &[0xc1], "a byte that begins nothing"),
            (read_messagepack, &[0xc4, 1, 7], "it has binary data"),
            (read_messagepack, &[0xa1, 0xff], "a text is no UTF-8"),
            (read_messagepack, &[0x81, 0xc4, 1, b'a', 2], "expected a text as a key"),
            (read_messagepack, &[0x91; 200], "more than 128 levels"),
            (read_messagepack, &[1, 1], "1 bytes behind its value"),
            (read_cbor, &[0xd8, 37, 0x41, 7], "it has binary data"),
            (read_cbor, &[0x82, 1], "it ends in the middle"),
            (read_cbor, &[0x81, 0x1c], "its byte 1 begins nothing"),
            (read_cbor, &[0xa1, 1, 2], "expected string"),
            (read_cbor, &[0x81; 200], "more than 128 levels"),
            (read_cbor, &[0xc6; 200], "more than 128 levels"),
            (
                read_cbor,
                &[0xc2, 0x49, 1, 0, 0, 0, 0, 0, 0, 0, 0],
                "the integer 18446744073709551616 is beyond 64 bits",
            ),
            (
                read_cbor,
                &[0x3b, 255, 255, 255, 255, 255, 255, 255, 255],
                "the integer -18446744073709551616 is beyond 64 bits",
            ),
        ];
        for (read, payload, what) in all {
            let told = read(payload).unwrap_err();
            assert!(told.ends_with(what), "{payload:x?}: {told}");
        }
    }
}
