//! Dead letters, and their JSON form on a queue.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Codec, Headers, Message, MessageId, Timestamp};

/// A message given up on, kept byte for byte with its cause, origin, attempts and time.
///
/// On a queue it is a JSON object, version 1: see [`to_json`](DeadLetter::to_json).
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// The message as the stage got it.
    pub message: Message,
    /// The encoding of its payload.
    pub codec: Codec,
    /// Why it was given up on.
    pub cause: Cause,
    /// The pipeline.
    pub pipeline: String,
    /// The stage that gave it up.
    pub stage: String,
    /// The queue it came from; for a redriven message, the one it came from before it was first
    /// given up on.
    pub queue: String,
    /// Its position there, in readable form.
    pub position: String,
    /// How many attempts failed.
    pub attempts: u32,
    /// When the first attempt failed.
    pub first_at: Timestamp,
    /// When it was given up on.
    pub last_at: Timestamp,
    /// Set if the payload is only the beginning of what was in the queue.
    pub truncated: Option<Truncated>,
}

/// Why a message was given up on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// The kind, one of a closed set: a metric's label.
    pub kind: CauseKind,
    /// The error's own words.
    pub message: String,
    /// What caused it, outermost first.
    #[serde(default)]
    pub chain: Vec<String>,
}

impl Cause {
    /// A cause with no deeper one.
    pub fn new(kind: CauseKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), chain: Vec::new() }
    }

    /// A cause made of an error and its chain of causes, at most 16 deep.
    pub fn of(kind: CauseKind, error: &(dyn std::error::Error + 'static)) -> Self {
        const DEPTH_MAX: usize = 16;
        let chain = std::iter::successors(error.source(), |inner| inner.source());
        Self {
            kind,
            message: error.to_string(),
            chain: chain.take(DEPTH_MAX).map(ToString::to_string).collect(),
        }
    }
}

/// The kinds of causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CauseKind {
    /// The component rejected it: retrying would not help.
    Rejected,
    /// The component's attempts are used up.
    Error,
    /// The component panicked on its last attempt.
    Panic,
    /// The component took longer than the stage's `timeout` on its last attempt.
    Timeout,
    /// It may be crashing the process that handles it: processes died of it, or it was handed out
    /// again and again without an outcome.
    Crash,
    /// The payload could not be decoded.
    Decode,
    /// The payload does not fit the schema of the queue it came from.
    Schema,
    /// The message, or an output of it, is longer than its queue ever takes.
    TooLarge,
    /// The message is older than the stage's `expire`.
    Expired,
    /// An output does not fit the schema of its queue, went to no declared output, or asks for a
    /// delay where delays are not supported.
    Output,
    /// A queue refused an output for good.
    Refused,
}

impl CauseKind {
    /// Its name in files, labels and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Error => "error",
            Self::Panic => "panic",
            Self::Timeout => "timeout",
            Self::Crash => "crash",
            Self::Decode => "decode",
            Self::Schema => "schema",
            Self::TooLarge => "too_large",
            Self::Expired => "expired",
            Self::Output => "output",
            Self::Refused => "refused",
        }
    }
}

/// What is known about a message whose payload was not kept whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncated {
    /// The length of the whole payload, in bytes.
    pub bytes: u64,
    /// The XXH3-128 of the whole payload, as 32 hexadecimal digits.
    pub xxh3: String,
    /// Where it begins in the file it came from.
    pub from: u64,
    /// Where it ends, exclusive.
    pub to: u64,
}

/// Bytes that are not a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// Not JSON, or not a dead letter's object.
    #[error("not a dead letter: {0}")]
    Json(#[from] serde_json::Error),
    /// A version that this program does not know.
    #[error("a dead letter of version {0}; this program knows version 1")]
    Version(u32),
    /// Text that should be base64, or an invalid id.
    #[error("not a dead letter: `{field}`: {message}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        message: String,
    },
}

const VERSION: u32 = 1;
/// The codec of a redriven message's payload, unless it is JSON.
const CODEC_HEADER: &str = "brigade-codec";
/// The queue that a redriven message came from.
const QUEUE_HEADER: &str = "brigade-queue";

/// The form on the wire. Bytes that are UTF-8 are written as text, others as base64 in a field of
/// the same name with `_base64`.
#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    #[serde(flatten)]
    payload: Bin,
    #[serde(default, skip_serializing_if = "Codec::is_json")]
    codec: Codec,
    key: Option<WireBytes>,
    headers: Vec<(String, Option<WireBytes>)>,
    cause: Cause,
    stage: String,
    queue: String,
    position: String,
    message_id: String,
    attempts: u32,
    first_at: i64,
    last_at: i64,
    pipeline: String,
    #[serde(default)]
    event_time: Option<i64>,
    truncated: Option<Truncated>,
}

#[derive(Serialize, Deserialize, Default)]
struct Bin {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WireBytes {
    Text(String),
    Base64 { base64: String },
}

impl WireBytes {
    fn of(bytes: &Bytes) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Base64 { base64: BASE64_STANDARD.encode(bytes) },
        }
    }

    fn bytes(self, field: &'static str) -> Result<Bytes, DeadLetterError> {
        match self {
            Self::Text(text) => Ok(text.into()),
            Self::Base64 { base64 } => decode(&base64, field),
        }
    }
}

fn decode(base64: &str, field: &'static str) -> Result<Bytes, DeadLetterError> {
    BASE64_STANDARD
        .decode(base64)
        .map(Bytes::from)
        .map_err(|error| DeadLetterError::Field { field, message: error.to_string() })
}

impl DeadLetter {
    /// The JSON object that represents it on a queue:
    ///
    /// ```json
    /// {"version":1, "payload":"<text>", "key":null, "headers":[],
    ///  "cause":{"kind":"error","message":"...","chain":[]},
    ///  "stage":"check", "queue":"arrivals", "position":"flights.jsonl:7",
    ///  "message_id":"<32 hexadecimal digits>", "attempts":5, "first_at":0, "last_at":0,
    ///  "pipeline":"flights", "event_time":null, "truncated":null}
    /// ```
    ///
    /// If the queue has another `codec` than JSON, there is also `"codec"`.
    ///
    /// A payload that is not UTF-8 is written as `payload_base64`; a null payload has neither
    /// field. A key or a header's value that is not UTF-8 is written as `{"base64":"..."}`. Times
    /// are milliseconds since 1970.
    pub fn to_json(&self) -> Bytes {
        let payload = match &self.message.payload {
            None => Bin::default(),
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => Bin { payload: Some(text.to_owned()), payload_base64: None },
                Err(_) => {
                    Bin { payload: None, payload_base64: Some(BASE64_STANDARD.encode(bytes)) }
                }
            },
        };
        let headers = self.message.headers.iter();
        let wire = Wire {
            version: VERSION,
            payload,
            codec: self.codec,
            key: self.message.key.as_ref().map(WireBytes::of),
            headers: headers.map(|(name, v)| (name.to_owned(), v.map(WireBytes::of))).collect(),
            cause: self.cause.clone(),
            stage: self.stage.clone(),
            queue: self.queue.clone(),
            position: self.position.clone(),
            message_id: self.message.id.to_string(),
            attempts: self.attempts,
            first_at: self.first_at.0,
            last_at: self.last_at.0,
            pipeline: self.pipeline.clone(),
            event_time: self.message.event_time.map(|time| time.0),
            truncated: self.truncated.clone(),
        };
        serde_json::to_vec(&wire).expect("strings and numbers always encode").into()
    }

    /// The message as it goes back to its stage: two headers, after its own, carry the queue it
    /// came from and its codec.
    pub fn into_redrive(self) -> Message {
        let message = self.message.with_header(QUEUE_HEADER, self.queue);
        message.with_header(CODEC_HEADER, self.codec.as_str())
    }

    /// Removes the header that carries the codec from a message that was redriven to its stage.
    /// JSON if there is none.
    pub fn take_codec(message: &mut Message) -> Codec {
        take_last(message, CODEC_HEADER, Codec::of_name).unwrap_or_default()
    }

    /// Removes the header that names the queue a redriven message came from. Messages redriven by
    /// older programs have none.
    pub fn take_queue(message: &mut Message) -> Option<String> {
        take_last(message, QUEUE_HEADER, |name| Some(name.to_owned()))
    }

    /// Parses what [`to_json`](DeadLetter::to_json) wrote.
    ///
    /// # Errors
    /// The bytes are not a dead letter, or one of a later version.
    pub fn from_json(json: &[u8]) -> Result<Self, DeadLetterError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(json)?;
        if version != VERSION {
            return Err(DeadLetterError::Version(version));
        }
        let wire: Wire = serde_json::from_slice(json)?;
        let payload = match (wire.payload.payload, wire.payload.payload_base64) {
            (Some(text), _) => Some(text.into()),
            (None, Some(base64)) => Some(decode(&base64, "payload_base64")?),
            (None, None) => None,
        };
        let mut headers = Headers::new();
        for (name, value) in wire.headers {
            headers.push(&name, value.map(|value| value.bytes("headers")).transpose()?);
        }
        let id: MessageId = wire.message_id.parse().map_err(|error| DeadLetterError::Field {
            field: "message_id",
            message: format!("{error}"),
        })?;
        Ok(Self {
            message: Message {
                id,
                key: wire.key.map(|key| key.bytes("key")).transpose()?,
                headers,
                payload,
                event_time: wire.event_time.map(Timestamp),
            },
            codec: wire.codec,
            cause: wire.cause,
            pipeline: wire.pipeline,
            stage: wire.stage,
            queue: wire.queue,
            position: wire.position,
            attempts: wire.attempts,
            first_at: Timestamp(wire.first_at),
            last_at: Timestamp(wire.last_at),
            truncated: wire.truncated,
        })
    }
}

/// Removes the last header of a name, if it can be read: earlier ones are the message's own.
fn take_last<T>(
    message: &mut Message,
    header: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Option<T> {
    let of_name = |(_, (name, _)): &(usize, (&str, _))| *name == header;
    let (at, (_, value)) = message.headers.iter().enumerate().filter(of_name).last()?;
    let taken = read(std::str::from_utf8(value?).ok()?)?;
    let others = message.headers.iter().enumerate().filter(|(place, _)| *place != at);
    message.headers = others.map(|(_, (name, value))| (name, value.cloned())).collect();
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn letter(message: Message) -> DeadLetter {
        DeadLetter {
            message,
            codec: Codec::Cbor,
            cause: Cause::new(CauseKind::Error, "no \"luck\"\n"),
            pipeline: "flights".into(),
            stage: "check".into(),
            queue: "arrivals".into(),
            position: "flights.jsonl:7".into(),
            attempts: 5,
            first_at: Timestamp(1),
            last_at: Timestamp(2),
            truncated: None,
        }
    }

    proptest! {
        #[test]
        fn any_message_survives_being_a_dead_letter(
            payload in any::<Option<Vec<u8>>>(),
            key in any::<Option<Vec<u8>>>(),
            headers in any::<Vec<(String, Option<Vec<u8>>)>>(),
            id in any::<u128>(),
        ) {
            let message = Message {
                id: MessageId(id),
                key: key.map(Bytes::from),
                headers: headers.into_iter().map(|(n, v)| (n, v.map(Bytes::from))).collect(),
                payload: payload.map(Bytes::from),
                event_time: None,
            };
            let letter = letter(message);
            prop_assert_eq!(DeadLetter::from_json(&letter.to_json()).unwrap(), letter);
        }

        /// Messages that already have such headers are included.
        #[test]
        fn what_goes_back_to_its_stage_comes_as_it_was(
            own in prop::collection::vec((0_u8..3, any::<Option<String>>()), 0..5),
            codec in prop::sample::select(vec![Codec::Json, Codec::Cbor, Codec::Bytes]),
        ) {
            let name = |at| [CODEC_HEADER, QUEUE_HEADER, "other"][usize::from(at)].to_owned();
            let headers = own.into_iter().map(|(at, value)| (name(at), value.map(Bytes::from)));
            let message = Message { headers: headers.collect(), ..Message::new("{}") };
            let mut back = DeadLetter { codec, ..letter(message.clone()) }.into_redrive();
            prop_assert_eq!(DeadLetter::take_codec(&mut back), codec);
            prop_assert_eq!(DeadLetter::take_queue(&mut back), Some("arrivals".to_owned()));
            prop_assert_eq!(back, message);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in any::<Vec<u8>>()) {
            let _ = DeadLetter::from_json(&bytes);
        }
    }

    #[test]
    fn a_later_version_is_refused_by_its_number() {
        let error = DeadLetter::from_json(b"{\"version\":2}").unwrap_err();
        assert_eq!(error.to_string(), "a dead letter of version 2; this program knows version 1");
    }
}
