//! Messages as entries of a stream, and back.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use brigade_core::connector::{ConnectorError, Defect, Incoming, Outgoing, Receipt};
use brigade_core::{CauseKind, Headers, IncarnationId, Message, MessageId, Timestamp};
use bytes::Bytes;
use redis::Value;
use serde_json::{Map, Value as Json, json};

use super::connector::Keys;

/// How many bits of a position are the entry's number: an id has 64 bits for the time and 64 for
/// the number, a position 64 in all.
const SEQUENCE_BITS: u32 = 20;
/// Positions from here on stand for ids that do not fit into one.
const ODD: u64 = 1 << 63;
/// An id whose time is from here on, in the year 2248, counts something other than time.
const TIME_END: u64 = ODD >> SEQUENCE_BITS;

/// The most field names in an error.
const NAMES_MAX: usize = 10;

/// A stream entry's id: `TIME-NUMBER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EntryId {
    time: u64,
    number: u64,
}

impl FromStr for EntryId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (time, number) = text.split_once('-')?;
            Some(Self { time: time.parse().ok()?, number: number.parse().ok()? })
        };
        read().ok_or_else(|| format!("`{text}` is no id of an entry (`TIME-NUMBER`)"))
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.time, self.number)
    }
}

impl EntryId {
    /// Milliseconds (43 bits) and number (20 bits); for an odd id, which does not fit, a number
    /// derived from it.
    pub(crate) fn position(self) -> u64 {
        let Self { time, number } = self;
        if time < TIME_END && number < 1 << SEQUENCE_BITS {
            return time << SEQUENCE_BITS | number;
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&IncarnationId::of(self.to_string().as_bytes()).0.to_le_bytes()[..8]);
        ODD | u64::from_le_bytes(bytes)
    }

    /// The id at a position; `None` if the position stands for an odd one.
    pub(crate) fn unpack(position: u64) -> Option<Self> {
        let time = position >> SEQUENCE_BITS;
        (position < ODD).then_some(Self { time, number: position & ((1 << SEQUENCE_BITS) - 1) })
    }

    /// The id of a message whose entry gives none.
    fn message(self, incarnation: IncarnationId) -> MessageId {
        let position = self.position();
        if position < ODD {
            return MessageId::root(incarnation, position);
        }
        let whole = format!("{:032x}#{self}", incarnation.0);
        MessageId::root(IncarnationId::of(whole.as_bytes()), 0)
    }

    /// Whether a message's id was derived from this one because its entry gave none.
    pub(crate) fn names(self, message: &Message, incarnation: IncarnationId) -> bool {
        message.id == self.message(incarnation)
    }

    /// When the entry was put, if the id's time is a time.
    fn time(self) -> Option<Timestamp> {
        let time = i64::try_from(self.time).ok().filter(|_| self.time < TIME_END);
        time.map(Timestamp)
    }
}

/// The next number to try for an odd id, when another id has this one.
pub(crate) fn next_odd(position: u64) -> u64 {
    ODD | position.wrapping_add(1)
}

/// The fields of a message, names and values.
pub(crate) fn fields(outgoing: &Outgoing) -> Vec<(Vec<u8>, Vec<u8>)> {
    let message = &outgoing.message;
    let mut fields = Vec::new();
    let mut add = |name: &str, value: &[u8]| fields.push((name.into(), value.to_vec()));
    if let Some(payload) = &message.payload {
        add("payload", payload);
    }
    if let Some(key) = &message.key {
        add("key", key);
    }
    add("id", message.id.to_string().as_bytes());
    if let Some(time) = message.event_time {
        add("event_time", time.0.to_string().as_bytes());
    }
    for (name, value) in message.headers.iter() {
        match value {
            Some(value) => add(&format!("h:{name}"), value),
            None => add(&format!("n:{name}"), b""),
        }
    }
    fields
}

/// The message id in a field `id`, if it is one as [`fields`] writes it: other programs have fields
/// of this name too, with numbers that repeat.
fn own_id(text: &str) -> Option<MessageId> {
    let id: MessageId = text.parse().ok()?;
    (id.to_string() == text).then_some(id)
}

/// Reads a message from an entry's fields, a list of names and values; also returns what is wrong
/// with it. If another program wrote fields of its own and no `payload`, a null payload would lose
/// them.
fn message(
    fields: &[Value],
    incarnation: IncarnationId,
    id: EntryId,
) -> (Message, Option<Box<Defect>>) {
    let mut message = Message::default();
    let (mut headers, mut others) = (Headers::new(), Vec::new());
    for (name, value) in pairs(fields) {
        let name = String::from_utf8_lossy(name);
        let text = std::str::from_utf8(value).ok();
        let value = || Some(Bytes::copy_from_slice(value));
        match name.split_once(':') {
            Some(("h", name)) => headers.push(name, value()),
            Some(("n", name)) => headers.push(name, None),
            _ => match (&*name, text.and_then(own_id), text.and_then(|text| text.parse().ok())) {
                ("payload", ..) => message.payload = value(),
                ("key", ..) => message.key = value(),
                ("id", Some(id), _) => message.id = id,
                ("event_time", _, Some(time)) => message.event_time = Some(Timestamp(time)),
                _ => others.push(name),
            },
        }
    }
    message.headers = headers;
    if message.id == MessageId::default() {
        message.id = id.message(incarnation);
    }
    if message.payload.is_some() || others.is_empty() {
        return (message, None);
    }
    message.payload = Some(all_as_json(fields));
    (message, Some(Box::new(no_payload(&others))))
}

fn pairs(fields: &[Value]) -> impl Iterator<Item = (&[u8], &[u8])> {
    fields.chunks_exact(2).filter_map(|pair| match pair {
        [Value::BulkString(name), Value::BulkString(value)] => Some((&**name, &**value)),
        _ => None,
    })
}

/// All fields of an entry as a JSON object, for a dead letter. A repeated field becomes a list; a
/// value that is not text becomes `{"base64": ..}`.
fn all_as_json(fields: &[Value]) -> Bytes {
    let mut all: Map<String, Json> = Map::new();
    for (name, value) in pairs(fields) {
        let name = std::str::from_utf8(name)
            .map_or_else(|_| name.escape_ascii().to_string(), str::to_owned);
        let value = match std::str::from_utf8(value) {
            Ok(text) => Json::from(text),
            Err(_) => json!({ "base64": BASE64_STANDARD.encode(value) }),
        };
        match all.entry(name).or_insert_with(|| Json::Array(Vec::new())) {
            Json::Array(values) => values.push(value),
            _ => unreachable!("only lists are put here"),
        }
    }
    for values in all.values_mut() {
        if let Json::Array(list) = values
            && list.len() == 1
        {
            *values = list.remove(0);
        }
    }
    Json::Object(all).to_string().into()
}

fn no_payload(others: &[Cow<'_, str>]) -> Defect {
    let name = |name: &Cow<'_, str>| format!("`{}`", name.chars().take(40).collect::<String>());
    let mut names: Vec<String> = others.iter().take(NAMES_MAX).map(name).collect();
    if others.len() > NAMES_MAX {
        names.push(format!("{} more", others.len() - NAMES_MAX));
    }
    let message = format!(
        "the entry has no field `payload`; it has {}: write what is to be handled into `payload`",
        names.join(", ")
    );
    Defect { kind: CauseKind::Decode, message, truncated: None }
}

/// Reads an entry as the scripts and `XREADGROUP` return it: id, fields, and for claimed ones how
/// often it was handed out and what is kept of its attempts. The error says what is wrong with it.
fn read(entry: Value, incarnation: IncarnationId) -> Result<Option<(EntryId, Incoming)>, String> {
    let odd = |there: &dyn fmt::Debug| format!("an entry has an id and fields, this is {there:?}");
    let parts = match entry {
        Value::Array(parts) => parts,
        other => return Err(odd(&other)),
    };
    let mut parts = parts.into_iter();
    let id = match parts.next() {
        Some(Value::BulkString(id)) => id,
        other => return Err(odd(&other)),
    };
    let id: EntryId = String::from_utf8_lossy(&id).parse()?;
    // Someone deleted it while it was pending.
    let Some(Value::Array(fields)) = parts.next() else { return Ok(None) };
    let fence = match parts.next() {
        Some(Value::Int(count)) => u64::try_from(count).unwrap_or(1),
        _ => 1,
    };
    let kept = match parts.next() {
        Some(Value::BulkString(kept)) => String::from_utf8_lossy(&kept).into_owned(),
        _ => String::new(),
    };
    let (attempts, first) = kept.split_once(':').unwrap_or_default();
    let receipt = Receipt { position: id.position(), fence };
    let (message, defect) = message(&fields, incarnation, id);
    let mut incoming = Incoming::new(message, receipt);
    incoming.defect = defect;
    incoming.attempts = attempts.parse().unwrap_or(0);
    incoming.first_failed_at = first.parse().ok().map(Timestamp);
    let handed_out = u32::try_from(fence).unwrap_or(u32::MAX);
    incoming.redeliveries = handed_out.saturating_sub(1).saturating_sub(incoming.attempts);
    incoming.enqueued_at = id.time();
    Ok(Some((id, incoming)))
}

/// Reads an entry of a queue's stream, as the scripts and `XREADGROUP` return it; `None` if someone
/// has deleted it.
pub(crate) fn incoming(
    keys: &Keys,
    entry: Value,
    incarnation: IncarnationId,
) -> Result<Option<(EntryId, Incoming)>, ConnectorError> {
    let Keys { queue, stream, .. } = keys;
    read(entry, incarnation).map_err(|what| {
        ConnectorError::transient(format!(
            "queue `{queue}`: Redis tells of the stream `{stream}` what cannot be: {what}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn id(text: &str) -> EntryId {
        text.parse().expect("it is an id")
    }

    #[test]
    fn ids_are_packed_and_come_back() {
        for text in ["1526919030474-0", "1526919030474-55", "0-1", "8796093022207-1048575"] {
            assert_eq!(EntryId::unpack(id(text).position()), Some(id(text)));
            assert_eq!(id(text).to_string(), text);
        }
        for text in ["1526919030474", "x-1", "1-18446744073709551616"] {
            assert!(text.parse::<EntryId>().is_err(), "{text}");
        }
    }

    #[test]
    fn odd_ids_have_numbers_and_messages_of_their_own() {
        let incarnation = IncarnationId::of(b"orders");
        let texts = ["1-1048576", "1-1048577", "1763733600000000-0", "18446744073709551615-0"];
        let numbers: HashSet<u64> = texts.map(|text| id(text).position()).into();
        let messages: HashSet<MessageId> = texts.map(|text| id(text).message(incarnation)).into();
        assert_eq!((numbers.len(), messages.len()), (texts.len(), texts.len()));
        assert!(numbers.iter().all(|number| EntryId::unpack(*number).is_none()));
        assert!(id("9-0") < id("10-0") && id("1763733600000000-0") > id("1526919030474-0"));
        assert_eq!(id("1763733600000000-0").time(), None);
        assert_eq!(id("1526919030474-7").time(), Some(Timestamp(1_526_919_030_474)));
    }

    #[test]
    fn an_answer_that_is_no_entry_is_told_with_queue_and_stream() {
        let name = |name: &str| name.to_owned();
        let keys = Keys {
            queue: "orders".into(),
            stream: name("shop:orders"),
            group: name("shop"),
            later: name("later"),
            delayed: name("delayed"),
            attempts: name("attempts"),
            incarnation: name("incarnation"),
        };
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        for (odd, what) in [
            (Value::Nil, "nil"),
            (Value::Array(vec![Value::Int(7)]), "7"),
            (Value::Array(vec![text("seven"), Value::Array(Vec::new())]), "`seven`"),
        ] {
            let error = incoming(&keys, odd, IncarnationId(1)).expect_err(what).to_string();
            for part in ["queue `orders`", "stream `shop:orders`", what] {
                assert!(error.contains(part), "`{part}` is not in: {error}");
            }
        }
    }
}
