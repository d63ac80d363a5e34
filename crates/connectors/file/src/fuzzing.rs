//! What fuzzers hold this crate against; see `fuzz/` at the top of the tree.

use std::io::Read;

use crate::ledger::{Position, Progress};
use crate::lines::{Lines, Record, Records};

/// Hands bytes out a few at a time.
struct Slowly<'b> {
    bytes: &'b [u8],
    step: usize,
}

impl Read for Slowly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.bytes.len().min(buffer.len()).min(self.step);
        buffer[..length].copy_from_slice(&self.bytes[..length]);
        self.bytes = &self.bytes[length..];
        Ok(length)
    }
}

fn records(bytes: &[u8], offset: u64, step: usize, max: usize) -> Vec<Record> {
    let mut lines = Lines::new(Slowly { bytes, step }, offset, max);
    let next = || lines.next().expect("reading from memory does not fail");
    std::iter::from_fn(next).collect()
}

/// The first two bytes say how long a line may be and how much is read at once, the rest is the
/// file.
///
/// # Panics
/// If lines depend on how the bytes arrive, or on where reading begins again.
pub fn lines(data: &[u8]) {
    let [max, step, bytes @ ..] = data else { return };
    let (max, step) = (usize::from(*max).max(1), usize::from(*step).max(1));
    let all = records(bytes, 0, usize::MAX, max);
    assert_eq!(records(bytes, 0, step, max), all, "lines depend on how the bytes arrive");
    for pair in all.windows(2) {
        assert!(pair[0].to <= pair[1].from, "records overlap");
    }
    for (at, record) in all.iter().enumerate() {
        let rest = usize::try_from(record.to).expect("it is in memory");
        let again = records(&bytes[rest..], record.to, step, max);
        assert_eq!(again, all[at + 1..], "reading cannot begin again after record {at}");
        match &record.truncated {
            None => assert!(record.bytes.len() <= max && !record.bytes.is_empty()),
            Some(whole) => assert!(whole.bytes > max as u64 && whole.to <= record.to),
        }
    }
}

/// A record of nothing that stands here.
fn whole(from: u64, to: u64) -> Record {
    let bytes = bytes::Bytes::new();
    Record { from, to, bytes, truncated: None, broken: None, unfinished: false }
}

/// Bytes that the state keeps for a file's position.
///
/// # Panics
/// If a position that was read is not written as the same, or cannot be gone on from.
pub fn position(bytes: &[u8]) {
    let Some(position) = Position::decode(bytes) else { return };
    assert_eq!(Position::decode(&position.encode()).as_ref(), Some(&position));
    let (first, from) = position.next;
    let mut progress = Progress::new(None, position.clone());
    for (at, record) in (first..first + 4).enumerate() {
        let (from, to) = (from + at as u64, from + at as u64 + 1);
        match position.records.is_resolved(record) {
            true => progress.pass_over(record, &whole(from, to)),
            false => progress.hand_out(record, &whole(from, to)),
        }
    }
    for record in (first..first + 4).rev().filter(|record| !position.records.is_resolved(*record)) {
        progress.resolve(record);
        assert!(progress.position.records.is_resolved(record));
    }
}
