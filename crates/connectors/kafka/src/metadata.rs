//! The metadata of a commit: which offsets beyond the committed one are resolved.

use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use brigade_core::watermark::Watermark;
use rdkafka::topic_partition_list::TopicPartitionListElem;

/// How the metadata begins; another beginning is another program's, or a later version's.
const PREFIX: &str = "b1:";
/// The most that is written: brokers take 4,096 bytes (`offset.metadata.max.bytes`).
const MAX: usize = 4000;

/// Writes the resolved ranges, the lowest first, as many as there is room for.
pub(crate) fn encode(watermark: &Watermark) -> String {
    let mut bytes = Vec::new();
    let mut at = watermark.low();
    for (first, past) in watermark.beyond() {
        let before = bytes.len();
        write(&mut bytes, first - at);
        write(&mut bytes, past - first);
        if PREFIX.len() + bytes.len().div_ceil(3) * 4 > MAX {
            bytes.truncate(before);
            break;
        }
        at = past;
    }
    match bytes.is_empty() {
        true => String::new(),
        false => format!("{PREFIX}{}", BASE64.encode(bytes)),
    }
}

/// What is resolved, by a commit. What cannot be read tells nothing: its messages come again.
pub(crate) fn decode(committed: u64, metadata: &str) -> Watermark {
    let mut watermark = Watermark::starting_at(committed);
    let bytes = metadata.strip_prefix(PREFIX).and_then(|text| BASE64.decode(text).ok());
    let bytes = bytes.unwrap_or_default();
    let (mut rest, mut at) = (bytes.as_slice(), committed);
    while let (Some(gap), Some(length)) = (read(&mut rest), read(&mut rest)) {
        let range = at.checked_add(gap).and_then(|first| Some((first, first.checked_add(length)?)));
        let Some((first, past)) = range.filter(|_| gap > 0) else { break };
        watermark.resolve_range(first, past);
        at = past;
    }
    watermark
}

/// The metadata of a commit that the broker tells of.
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
        assert_eq!(encode(&watermark), "b1:AQKpAgE");
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
            prop_assert!(all.starts_with(&some));
            prop_assert!(some.len() == all.len() || text.len() > MAX - 20);
        }

        #[test]
        fn nothing_that_is_read_resolves_what_is_committed_next(text in "(b1:)?[A-Za-z0-9+/]{0,40}") {
            prop_assert_eq!(decode(7, &text).low(), 7);
        }
    }
}
