//! The metadata of a commit: which offsets beyond the committed one are resolved.

use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use brigade_core::watermark::Watermark;
use rdkafka::topic_partition_list::TopicPartitionListElem;

/// How the metadata begins: for ranges, or for a bit per offset. Any other beginning is another
/// program's, or a later version's. Then comes the offset that it is committed with, since metadata
/// may end up with a different one: tools that carry a group over to another cluster translate its
/// offset, but not this.
const RANGES: &str = "b1:";
const BITS: &str = "b2:";
/// The longest metadata that is written: brokers take 4,096 bytes (`offset.metadata.max.bytes`).
const MAX: usize = 4000;
/// The bytes that fit into it.
const BYTES_MAX: usize = (MAX - BEGINNING_MAX) / 4 * 3;
/// The beginning, the offset, and the separator.
const BEGINNING_MAX: usize = 3 + 20 + 1;
/// This many ranges always fit.
pub(crate) const RANGES_MAX: usize = 450;
/// This many offsets from the committed one on always fit, whichever of them are resolved.
pub(crate) const SPAN_MAX: u64 = BYTES_MAX as u64 * 8;

/// Encodes the resolved ranges, or, if there is no room for all of them, a bit for each of the
/// first [`SPAN_MAX`] offsets.
pub(crate) fn encode(watermark: &Watermark) -> String {
    let mut bytes = Vec::new();
    let low = watermark.low();
    let mut at = low;
    for (first, past) in watermark.beyond() {
        write(&mut bytes, first - at);
        write(&mut bytes, past - first);
        if bytes.len() > BYTES_MAX {
            return format!("{BITS}{low}:{}", BASE64.encode(bits(watermark)));
        }
        at = past;
    }
    match bytes.is_empty() {
        true => String::new(),
        false => format!("{RANGES}{low}:{}", BASE64.encode(bytes)),
    }
}

/// A bit for each offset from the committed one on, the lowest bit of a byte first.
fn bits(watermark: &Watermark) -> Vec<u8> {
    let low = watermark.low();
    let mut bytes = vec![0_u8; BYTES_MAX];
    for (first, past) in watermark.beyond() {
        for offset in first - low..(past - low).min(SPAN_MAX) {
            bytes[(offset / 8) as usize] |= 1 << (offset % 8);
        }
    }
    let last = bytes.iter().rposition(|byte| *byte != 0);
    bytes.truncate(last.map_or(0, |last| last + 1));
    bytes
}

/// What is resolved according to a commit. Metadata that cannot be read, or was committed with
/// another offset, says nothing: its messages come again. Earlier versions wrote no offset.
pub(crate) fn decode(committed: u64, metadata: &str) -> Watermark {
    let mut watermark = Watermark::starting_at(committed);
    let bytes = |prefix| {
        let text = metadata.strip_prefix(prefix)?;
        let (offset, text) =
            text.split_once(':').map_or((None, text), |(at, text)| (Some(at), text));
        let is_of_it = offset.is_none_or(|offset| offset.parse() == Ok(committed));
        BASE64.decode(text).ok().filter(|_| is_of_it)
    };
    if let Some(bytes) = bytes(BITS) {
        let set = |at: &u64| bytes[(at / 8) as usize] & 1 << (at % 8) != 0;
        // The committed offset itself is not resolved.
        let offsets = (1..bytes.len() as u64 * 8).filter(set);
        for offset in offsets.map_while(|at| committed.checked_add(at)) {
            watermark.resolve(offset);
        }
    }
    let bytes = bytes(RANGES).unwrap_or_default();
    let (mut rest, mut at) = (bytes.as_slice(), committed);
    while let (Some(gap), Some(length)) = (read(&mut rest), read(&mut rest)) {
        let range = at.checked_add(gap).and_then(|first| Some((first, first.checked_add(length)?)));
        let Some((first, past)) = range.filter(|_| gap > 0) else { break };
        watermark.resolve_range(first, past);
        at = past;
    }
    watermark
}

/// The metadata of a commit returned by the broker.
pub(crate) fn of(committed: &TopicPartitionListElem<'_>) -> String {
    // The client panics on metadata that is not UTF-8: then it is not ours.
    catch_unwind(AssertUnwindSafe(|| committed.metadata().to_owned())).unwrap_or_default()
}

/// LEB128, unsigned.
fn write(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_encoding_never_changes() {
        let mut watermark = Watermark::starting_at(1000);
        assert_eq!(encode(&watermark), "");
        watermark.resolve_range(1001, 1003);
        watermark.resolve_range(1300, 1301);
        assert_eq!(encode(&watermark), "b1:1000:AQKpAgE");
        for offset in (2000..10_000).step_by(2) {
            watermark.resolve(offset);
        }
        let text = encode(&watermark);
        assert!(text.starts_with("b2:1000:BgAAAAAAAA"), "{text}");
        assert_eq!(text.len(), 1508);
    }

    #[test]
    fn beside_another_offset_it_tells_nothing() {
        let mut watermark = Watermark::starting_at(1000);
        watermark.resolve_range(1001, 1003);
        let text = encode(&watermark);
        for text in [&text, &text.replace("1000:", "")] {
            assert_eq!(decode(1000, text).beyond().collect::<Vec<_>>(), [(1001, 1003)]);
        }
        for translated in [0, 999, 1001, 10_000] {
            let read = decode(translated, &text);
            assert_eq!((read.low(), read.beyond().count()), (translated, 0));
        }
    }

    #[test]
    fn what_may_be_in_flight_always_fits() {
        let mut watermark = Watermark::starting_at(7);
        for at in 0..RANGES_MAX as u64 {
            watermark.resolve_range(8 + at * 2_000_000, 8 + at * 2_000_000 + 1_999_999);
        }
        assert!(encode(&watermark).starts_with(RANGES));
        let mut watermark = Watermark::starting_at(7);
        for offset in (8..7 + SPAN_MAX).step_by(2) {
            watermark.resolve(offset);
        }
        let read = decode(7, &encode(&watermark));
        assert_eq!(read.beyond().collect::<Vec<_>>(), watermark.beyond().collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            low in 0_u64..1 << 40,
            ranges in prop::collection::vec((1_u64..300, 1_u64..100_000), 0..400),
        ) {
            let mut watermark = Watermark::starting_at(low);
            let mut at = low;
            for (gap, length) in ranges {
                watermark.resolve_range(at + gap, at + gap + length);
                at += gap + length;
            }
            let text = encode(&watermark);
            prop_assert!(text.len() <= MAX);
            let read = decode(low, &text);
            prop_assert_eq!(read.low(), low);
            let (all, some) = (watermark.beyond().collect::<Vec<_>>(), read.beyond().collect::<Vec<_>>());
            if text.starts_with(BITS) {
                let near = |offset: &u64| *offset < low + SPAN_MAX;
                let offsets = |ranges: Vec<(u64, u64)>| {
                    let all = ranges.into_iter().flat_map(|(first, past)| first..past);
                    all.take_while(near).collect::<Vec<_>>()
                };
                prop_assert_eq!(offsets(some), offsets(all));
            } else {
                prop_assert_eq!(some, all);
            }
        }

        #[test]
        fn nothing_that_is_read_resolves_what_is_committed_next(text in "(b[12]:7:)?[A-Za-z0-9+/]{0,40}") {
            prop_assert_eq!(decode(7, &text).low(), 7);
        }
    }
}
