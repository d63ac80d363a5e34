//! Messages as entries of a stream, and back.

use brigade_core::connector::{ConnectorError, Incoming, Outgoing, Receipt};
use brigade_core::{Headers, IncarnationId, Message, MessageId, Timestamp};
use bytes::Bytes;
use redis::Value;

/// An entry's id has 64 bits for the time and 64 for a number; a receipt has 64 in all.
const SEQUENCE_BITS: u32 = 20;

/// A stream entry's id, packed: milliseconds (44 bits, to the year 2527) and number (20 bits).
pub(crate) fn pack(id: &str) -> Option<u64> {
    let (time, number) = id.split_once('-')?;
    let (time, number) = (time.parse::<u64>().ok()?, number.parse::<u64>().ok()?);
    let fits = time < 1 << (64 - SEQUENCE_BITS) && number < 1 << SEQUENCE_BITS;
    fits.then_some(time << SEQUENCE_BITS | number)
}

pub(crate) fn unpack(position: u64) -> String {
    format!("{}-{}", position >> SEQUENCE_BITS, position & ((1 << SEQUENCE_BITS) - 1))
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

/// Reads a message from an entry's fields, a list of names and values.
fn message(fields: &[Value], incarnation: IncarnationId, position: u64) -> Message {
    let mut message = Message::default();
    let mut headers = Headers::new();
    for pair in fields.chunks_exact(2) {
        let (Value::BulkString(name), Value::BulkString(value)) = (&pair[0], &pair[1]) else {
            continue;
        };
        let name = String::from_utf8_lossy(name);
        let value = Bytes::copy_from_slice(value);
        let text = || std::str::from_utf8(&value).ok();
        match name.split_once(':') {
            Some(("h", name)) => headers.push(name, Some(value)),
            Some(("n", name)) => headers.push(name, None),
            _ => match &*name {
                "payload" => message.payload = Some(value),
                "key" => message.key = Some(value),
                "id" => message.id = text().and_then(|text| text.parse().ok()).unwrap_or_default(),
                "event_time" => {
                    message.event_time = text().and_then(|text| text.parse().ok()).map(Timestamp);
                }
                _ => {}
            },
        }
    }
    message.headers = headers;
    if message.id == MessageId::default() {
        message.id = MessageId::root(incarnation, position);
    }
    message
}

/// Reads an entry as the scripts and `XREADGROUP` give it: id, fields, and for claimed ones how often
/// it was handed out and what is kept of its attempts.
pub(crate) fn incoming(
    entry: Value,
    incarnation: IncarnationId,
) -> Result<Option<Incoming>, ConnectorError> {
    let odd = || ConnectorError::transient("Redis gave an entry that is none");
    let Value::Array(parts) = entry else { return Err(odd()) };
    let mut parts = parts.into_iter();
    let Some(Value::BulkString(id)) = parts.next() else { return Err(odd()) };
    let id = String::from_utf8_lossy(&id).into_owned();
    // Deleted by somebody while it was pending.
    let Some(Value::Array(fields)) = parts.next() else { return Ok(None) };
    let position = pack(&id).ok_or_else(|| {
        ConnectorError::permanent(format!("entry {id} has an id that is too large to be kept"))
    })?;
    let fence = match parts.next() {
        Some(Value::Int(count)) => u64::try_from(count).unwrap_or(1),
        _ => 1,
    };
    let kept = match parts.next() {
        Some(Value::BulkString(kept)) => String::from_utf8_lossy(&kept).into_owned(),
        _ => String::new(),
    };
    let (attempts, first) = kept.split_once(':').unwrap_or_default();
    let receipt = Receipt { position, fence };
    let mut incoming = Incoming::new(message(&fields, incarnation, position), receipt);
    incoming.attempts = attempts.parse().unwrap_or(0);
    incoming.first_failed_at = first.parse().ok().map(Timestamp);
    let handed_out = u32::try_from(fence).unwrap_or(u32::MAX);
    incoming.redeliveries = handed_out.saturating_sub(1).saturating_sub(incoming.attempts);
    let time = i64::try_from(position >> SEQUENCE_BITS).unwrap_or(i64::MAX);
    incoming.enqueued_at = Some(Timestamp(time));
    Ok(Some(incoming))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_packed_and_come_back() {
        for id in ["1526919030474-0", "1526919030474-55", "0-1", "1795218252961-1048575"] {
            assert_eq!(unpack(pack(id).expect("it fits")), id);
        }
        for id in ["1526919030474", "x-1", "1-1048576", "18446744073709551615-0"] {
            assert_eq!(pack(id), None, "{id}");
        }
    }
}
