use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the payloads of a queue are written in.
///
/// Within Brigade a payload that is read as a value is JSON; the runtime reads and writes the other
/// codecs where a queue begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// JSON.
    #[default]
    Json,
    /// MessagePack. What JSON cannot say (binary data, keys that are no texts, integers beyond 64
    /// bits) does not decode.
    Messagepack,
    /// CBOR, with the same limits.
    Cbor,
    /// UTF-8 text: for those who read values, a JSON string.
    Text,
    /// Bytes that are never read as a value.
    Bytes,
}

impl Codec {
    /// Whether nothing has to be done for it.
    pub fn is_json(&self) -> bool {
        *self == Self::Json
    }

    /// The word for it in files and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Messagepack => "messagepack",
            Self::Cbor => "cbor",
            Self::Text => "text",
            Self::Bytes => "bytes",
        }
    }

    /// The codec of this name.
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
