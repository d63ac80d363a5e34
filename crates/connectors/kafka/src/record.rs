//! Messages as records, and back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime};

use brigade_core::connector::{Defect, Incoming, Receipt, Rejected};
use brigade_core::{CauseKind, Headers, IncarnationId, Message, MessageId, Timestamp};
use bytes::{Bytes, BytesMut};
use rdkafka::message::{
    BorrowedHeaders, BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders,
};
use rdkafka::producer::BaseRecord;
use rdkafka::util::IntoOpaque;

use crate::retry;

const ID: &str = "brigade-id";
pub(crate) const EVENT_TIME: &str = "brigade-event-time";

/// The partition that a record should go to; it does not become a header of the record.
pub(crate) const PARTITION: &str = "brigade-partition";

/// The partition that a message requests.
pub(crate) fn partition(message: &Message) -> Result<Option<i32>, Rejected> {
    let Some(asked) = message.headers.get(PARTITION) else { return Ok(None) };
    let text = asked.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
    match text.parse() {
        Ok(partition @ 0..) => Ok(Some(partition)),
        _ => {
            let message = format!("the header `{PARTITION}`: expected a number, found {text:?}");
            Err(Rejected { kind: CauseKind::Refused, message })
        }
    }
}

/// How far ahead of this machine's clock a record's timestamp may be. Brokers refuse what is more
/// than an hour ahead of theirs (`message.timestamp.after.max.ms`), and clocks differ.
const AHEAD_MAX: Duration = Duration::from_secs(1800);

/// A message's event time, as the timestamp of its record and in a header. Kafka has no timestamps
/// before 1970, and takes none that are far ahead: such a record has that of when it is put.
fn times(message: &Message, now: SystemTime) -> (Option<i64>, Option<i64>) {
    let Some(Timestamp(time)) = message.event_time else { return (None, None) };
    match time > 0 && time <= Timestamp::from(now + AHEAD_MAX).0 {
        true => (Some(time), None),
        false => (None, Some(time)),
    }
}

/// The headers of a message's record, with the event time if it is to be one.
fn headers(message: &Message, event_time: Option<i64>) -> OwnedHeaders {
    let id = message.id.to_string();
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.len() + 2);
    for (key, value) in message.headers.iter().filter(|(key, _)| *key != PARTITION) {
        headers = headers.insert(Header { key, value: value.map(|value| &value[..]) });
    }
    // A record without one gets one where it is read.
    if message.id != MessageId::default() {
        headers = headers.insert(Header { key: ID, value: Some(&id) });
    }
    if let Some(time) = event_time {
        headers = headers.insert(Header { key: EVENT_TIME, value: Some(&time.to_string()) });
    }
    headers
}

/// A message's record; the message is borrowed until it is sent.
pub(crate) fn record<'m, D: IntoOpaque>(
    topic: &'m str,
    message: &'m Message,
    opaque: D,
) -> BaseRecord<'m, [u8], [u8], D> {
    let (timestamp, in_header) = times(message, SystemTime::now());
    let headers = headers(message, in_header);
    let mut record = BaseRecord::with_opaque_to(topic, opaque).headers(headers);
    if let Ok(Some(partition)) = partition(message) {
        record = record.partition(partition);
    }
    if let Some(payload) = &message.payload {
        record = record.payload(&payload[..]);
    }
    if let Some(key) = &message.key {
        record = record.key(&key[..]);
    }
    match timestamp {
        Some(time) => record.timestamp(time),
        None => record,
    }
}

/// What a record on a retry topic says in addition to its message.
#[derive(Debug, Default)]
pub(crate) struct CopyHeaders {
    /// The group it is for; `None` if it is not a copy.
    pub(crate) group: Option<String>,
    /// It is not handed out before this.
    pub(crate) due: Option<Timestamp>,
    /// Where its original message is.
    pub(crate) origin: Option<String>,
    attempts: u32,
    first_failed_at: Option<Timestamp>,
}

/// The receipt of a message that has no place in a consumer's list yet.
pub(crate) const UNPLACED: Receipt = Receipt { position: 0, fence: 0 };

/// Reads a message from a record, and what else the record says. A message without an id gets one
/// from its position: `incarnation` identifies cluster, topic and partition. Its receipt is
/// [`UNPLACED`].
pub(crate) fn incoming(
    record: &BorrowedMessage<'_>,
    incarnation: IncarnationId,
    shelf: &mut Shelf,
) -> (Incoming, CopyHeaders) {
    let time = record.timestamp().to_millis().map(Timestamp);
    let (payload, key) = shelf.put(record.payload(), record.key());
    let mut message = Message { payload, key, event_time: time, ..Message::default() };
    // The client panics on a header whose name is not UTF-8.
    let headers = catch_unwind(AssertUnwindSafe(|| record.headers().map(read_headers)));
    let is_odd = headers.is_err();
    let (own, rest) = headers.ok().flatten().unwrap_or_default();
    message.event_time = own.event_time.or(time);
    message.headers = rest;
    let offset = u64::try_from(record.offset()).unwrap_or_default();
    message.id = own.id.unwrap_or_else(|| id_of(incarnation, offset, time));
    let mut incoming = Incoming::new(message, UNPLACED);
    incoming.enqueued_at = time;
    (incoming.attempts, incoming.first_failed_at) = (own.copy.attempts, own.copy.first_failed_at);
    if is_odd {
        let message = "a header's name is not UTF-8; the headers are left out".to_owned();
        let defect = Defect { kind: CauseKind::Decode, message, truncated: None };
        incoming.defect = Some(Box::new(defect));
    }
    (incoming, own.copy)
}

/// The id of a record that has none. A recreated topic has the same offsets, and a queue with
/// `dedup` would take its records for those of the old one: the timestamp distinguishes them.
fn id_of(place: IncarnationId, offset: u64, time: Option<Timestamp>) -> MessageId {
    let Some(Timestamp(time)) = time else { return MessageId::root(place, offset) };
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&place.0.to_le_bytes());
    bytes[16..].copy_from_slice(&time.to_le_bytes());
    MessageId::root(IncarnationId::of(&bytes), offset)
}

/// Where payloads and keys are copied to. Consecutive small ones share a piece of memory: one
/// allocation for about ten of them, and a message that is kept retains at most one piece.
#[derive(Default)]
pub(crate) struct Shelf(BytesMut);

/// The size of a shared piece. Anything longer than a quarter of it has a piece of its own.
const PIECE: usize = 2048;

impl Shelf {
    fn put(
        &mut self,
        payload: Option<&[u8]>,
        key: Option<&[u8]>,
    ) -> (Option<Bytes>, Option<Bytes>) {
        let (of_payload, of_key) = (payload.unwrap_or_default(), key.unwrap_or_default());
        let length = of_payload.len() + of_key.len();
        let mut own;
        let piece = if length > PIECE / 4 {
            own = BytesMut::with_capacity(length);
            &mut own
        } else {
            // It is empty: what was put there before has been split off.
            if self.0.capacity() < length {
                self.0 = BytesMut::with_capacity(PIECE);
            }
            &mut self.0
        };
        piece.extend_from_slice(of_payload);
        piece.extend_from_slice(of_key);
        let mut both = piece.split().freeze();
        let of_key = key.map(|_| both.split_off(of_payload.len()));
        (payload.map(|_| both), of_key)
    }
}

#[derive(Default)]
struct OwnHeaders {
    id: Option<MessageId>,
    event_time: Option<Timestamp>,
    copy: CopyHeaders,
}

fn read_headers(headers: &BorrowedHeaders) -> (OwnHeaders, Headers) {
    let (mut own, mut rest) = (OwnHeaders::default(), Headers::new());
    for header in headers.iter() {
        let text = || std::str::from_utf8(header.value?).ok();
        let time = || text().and_then(|text| text.parse().ok()).map(Timestamp);
        match header.key {
            ID => {
                let id = text().and_then(|text| text.parse().ok());
                own.id = id.filter(|id| *id != MessageId::default());
            }
            EVENT_TIME => own.event_time = time(),
            retry::GROUP => own.copy.group = text().map(str::to_owned),
            retry::DUE => own.copy.due = time(),
            retry::ORIGIN => own.copy.origin = text().map(str::to_owned),
            retry::FAILED_AT => own.copy.first_failed_at = time(),
            retry::ATTEMPTS => {
                own.copy.attempts = text().and_then(|text| text.parse().ok()).unwrap_or_default();
            }
            retry::ERROR => {}
            name => rest.push(name, header.value.map(Bytes::copy_from_slice)),
        }
    }
    (own, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shares_a_piece_of_memory_is_told_apart() {
        let mut shelf = Shelf::default();
        let long = [7; PIECE];
        let given = [
            (Some(&b"one"[..]), Some(&b"k"[..])),
            (None, Some(&b"tombstone"[..])),
            (Some(&b""[..]), None),
            (Some(&long[..]), Some(&b""[..])),
            (None, None),
        ];
        let copies: Vec<_> = (0..1000)
            .map(|at| given[at % given.len()])
            .map(|(payload, key)| (shelf.put(payload, key), payload, key))
            .collect();
        for ((payload, key), expected, of_key) in &copies {
            assert_eq!((payload.as_deref(), key.as_deref()), (*expected, *of_key));
        }
    }

    #[test]
    fn long_records_between_small_ones_cost_these_no_piece_each() {
        let (mut shelf, long) = (Shelf::default(), [7; PIECE]);
        let mut beside = 0;
        let mut last: Option<Bytes> = None;
        for _ in 0..100 {
            assert_eq!(shelf.put(Some(&long), None).0.unwrap().len(), PIECE);
            let short = shelf.put(Some(&[1; 50]), None).0.unwrap();
            let is_next = |last: &Bytes| last.as_ptr_range().end == short.as_ptr();
            beside += usize::from(last.as_ref().is_some_and(is_next));
            last = Some(short);
        }
        assert_eq!(beside, 97, "a hundred of fifty bytes need three pieces");
    }

    #[test]
    fn a_time_that_a_broker_might_refuse_is_in_a_header() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let of = |time: i64| {
            let event_time = Some(Timestamp(time));
            times(&Message { event_time, ..Message::new("x") }, now)
        };
        assert_eq!(times(&Message::new("x"), now), (None, None));
        for time in [1, 1_700_000_000_000, 1_700_001_800_000] {
            assert_eq!(of(time), (Some(time), None));
        }
        for time in [i64::MIN, 0, 1_700_001_800_001, i64::MAX] {
            assert_eq!(of(time), (None, Some(time)));
        }
    }

    #[test]
    fn a_topic_that_is_made_anew_gives_other_ids() {
        let place = IncarnationId::of(b"cluster/orders/3");
        let id = |offset, time| id_of(place, offset, time);
        assert_eq!(id(17, Some(Timestamp(5))), id(17, Some(Timestamp(5))), "also after a crash");
        let others = [
            id(17, Some(Timestamp(6))),
            id(18, Some(Timestamp(5))),
            id(17, None),
            id_of(IncarnationId::of(b"cluster/orders/4"), 17, Some(Timestamp(5))),
        ];
        assert!(!others.contains(&id(17, Some(Timestamp(5)))));
    }
}
