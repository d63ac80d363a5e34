//! Bytes into lines, with bounded memory however long a line is.

use std::io::{ErrorKind, Read};

use brigade_core::Truncated;
use bytes::{Bytes, BytesMut};
use twox_hash::XxHash3_128;

/// How much is read at once.
const READ: usize = 64 << 10;
/// How much is kept of a line that is too long.
const PREFIX: usize = 64 << 10;
/// A byte order mark.
pub(crate) const MARK: &[u8] = b"\xEF\xBB\xBF";

/// One record of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Where it begins, in uncompressed bytes.
    pub(crate) from: u64,
    /// Where the next one begins.
    pub(crate) to: u64,
    /// Its bytes, without the line's end; only the first if it is too long.
    pub(crate) bytes: Bytes,
    /// Set if it is too long.
    pub(crate) truncated: Option<Truncated>,
    /// Why it cannot be a message, if it cannot.
    pub(crate) broken: Option<String>,
    /// Whether the file ended before its end: it may still be written.
    pub(crate) unfinished: bool,
}

/// What a file is split into.
pub(crate) trait Records {
    /// The next record; `None` at the end, after which it may be asked again.
    fn next(&mut self) -> std::io::Result<Option<Record>>;

    /// Whether the whole of the next record was read, so that to ask for it waits for nobody.
    fn is_ready(&self) -> bool;
}

/// Splits what it reads into lines. Empty lines are passed over, a carriage return before a line's
/// end belongs to the end, and a byte order mark at the beginning of the file to nothing.
pub(crate) struct Lines<R> {
    reader: R,
    max: usize,
    /// What is read at once. A message keeps the buffer that it is a part of: that has no more than was read.
    chunk: Box<[u8]>,
    buffer: BytesMut,
    /// Where the buffer begins, in the file.
    offset: u64,
    /// How much of the buffer has no line's end in it.
    searched: usize,
    /// A line that is too long, and whose end was not read yet.
    long: Option<Long>,
    /// Whether a last line without an end is a record; while a file is followed it is not.
    pub(crate) takes_unfinished: bool,
}

impl<R: Read> Lines<R> {
    /// Lines of at most `max` bytes; the reader stands at `offset`.
    pub(crate) fn new(reader: R, offset: u64, max: usize) -> Self {
        let (chunk, buffer) = (vec![0; READ].into(), BytesMut::new());
        let (searched, long, takes_unfinished) = (0, None, true);
        Self { reader, max, chunk, buffer, offset, searched, long, takes_unfinished }
    }

    /// How far the file was read, with what belongs to no line yet.
    pub(crate) fn read_to(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    /// What it reads.
    pub(crate) fn reader_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    /// Takes a line out of the buffer, and so many bytes after it.
    fn take(&mut self, length: usize, after: usize) -> Bytes {
        let mut line = self.buffer.split_to(length + after);
        line.truncate(length);
        self.offset += (length + after) as u64;
        self.searched = 0;
        line.freeze()
    }

    fn record(&self, mut line: Bytes, mut from: u64) -> Option<Record> {
        if from == 0 && line.starts_with(MARK) {
            line = line.slice(MARK.len()..);
            from = MARK.len() as u64;
        }
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        if line.is_empty() {
            return None;
        }
        let truncated = (line.len() > self.max).then(|| Truncated {
            bytes: line.len() as u64,
            xxh3: format!("{:032x}", XxHash3_128::oneshot(&line)),
            from,
            to: from + line.len() as u64,
        });
        let bytes = if truncated.is_some() { line.slice(..PREFIX.min(line.len())) } else { line };
        let to = self.offset;
        Some(Record { from, to, bytes, truncated, broken: None, unfinished: false })
    }

    /// The rest at the end of the file.
    fn last(&mut self) -> Option<Record> {
        if !self.takes_unfinished || self.buffer.is_empty() {
            return None;
        }
        let (length, from) = (self.buffer.len(), self.offset);
        let line = self.take(length, 0);
        self.record(line, from).map(|record| Record { unfinished: true, ..record })
    }

    /// Reads on to the end of a line that is too long, keeping only its beginning; `None` if it may
    /// still be written.
    fn too_long(&mut self) -> std::io::Result<Option<Record>> {
        let mut long = match self.long.take() {
            Some(long) => long,
            None => {
                if self.offset == 0 && self.buffer.starts_with(MARK) {
                    self.take(MARK.len(), 0);
                }
                Long::beginning(self.offset)
            }
        };
        loop {
            let end = memchr(&self.buffer);
            let length = end.unwrap_or(self.buffer.len());
            long.go_on(&self.take(length, usize::from(end.is_some())));
            if end.is_some() {
                break;
            }
            if self.fill()? == 0 {
                if self.takes_unfinished {
                    let record = long.record(self.offset);
                    return Ok(Some(Record { unfinished: true, ..record }));
                }
                self.long = Some(long);
                return Ok(None);
            }
        }
        Ok(Some(long.record(self.offset)))
    }

    fn fill(&mut self) -> std::io::Result<usize> {
        let read = loop {
            match self.reader.read(&mut self.chunk) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.buffer.extend_from_slice(&self.chunk[..read]);
        Ok(read)
    }
}

impl<R: Read> Records for Lines<R> {
    fn next(&mut self) -> std::io::Result<Option<Record>> {
        loop {
            if self.long.is_some() {
                return self.too_long();
            }
            if let Some(at) = memchr(&self.buffer[self.searched..]) {
                let length = self.searched + at;
                let from = self.offset;
                let line = self.take(length, 1);
                match self.record(line, from) {
                    Some(record) => return Ok(Some(record)),
                    None => continue,
                }
            }
            self.searched = self.buffer.len();
            // What does not belong to the record may come before and after it.
            if self.buffer.len() > self.max.saturating_add(MARK.len() + 1) {
                return self.too_long();
            }
            if self.fill()? == 0 {
                return Ok(self.last());
            }
        }
    }

    fn is_ready(&self) -> bool {
        let mut rest = &self.buffer[..];
        while let Some(at) = memchr(rest) {
            // Empty lines are passed over: behind them more may have to be waited for.
            if !matches!(&rest[..at], b"" | b"\r") {
                return true;
            }
            rest = &rest[at + 1..];
        }
        false
    }
}

/// What is kept of a line that is too long.
struct Long {
    from: u64,
    hash: XxHash3_128,
    prefix: Vec<u8>,
    bytes: u64,
    /// Whether a carriage return was read last: it may belong to the line's end.
    held: bool,
}

impl Long {
    fn beginning(from: u64) -> Self {
        Self { from, hash: XxHash3_128::new(), prefix: Vec::new(), bytes: 0, held: false }
    }

    /// The next part of it.
    fn go_on(&mut self, part: &[u8]) {
        if self.held && !part.is_empty() {
            self.keep(b"\r");
            self.held = false;
        }
        match part.split_last() {
            Some((b'\r', before)) => {
                self.keep(before);
                self.held = true;
            }
            _ => self.keep(part),
        }
    }

    fn keep(&mut self, part: &[u8]) {
        self.hash.write(part);
        self.bytes += part.len() as u64;
        let room = PREFIX - self.prefix.len();
        self.prefix.extend_from_slice(&part[..room.min(part.len())]);
    }

    /// The line, when its end was read; the next one begins at `to`.
    fn record(self, to: u64) -> Record {
        let Self { from, hash, prefix, bytes, .. } = self;
        let xxh3 = format!("{:032x}", hash.finish_128());
        let truncated = Some(Truncated { bytes, xxh3, from, to: from + bytes });
        let bytes = prefix.into();
        Record { from, to, bytes, truncated, broken: None, unfinished: false }
    }
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    memchr::memchr(b'\n', bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use proptest::prelude::*;

    fn all(text: &[u8], max: usize) -> Vec<Record> {
        let mut lines = Lines::new(text, 0, max);
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    #[test]
    fn a_line_that_is_too_long_keeps_its_beginning_its_length_and_its_hash() {
        let long = vec![b'x'; 200_000];
        let text = [&b"{}\n"[..], &long, b"\nlast"].concat();
        let records = all(&text, 1000);
        assert_eq!(records.len(), 3);
        let truncated = records[1].truncated.clone().unwrap();
        assert_eq!((truncated.bytes, truncated.from, truncated.to), (200_000, 3, 200_003));
        assert_eq!(truncated.xxh3, format!("{:032x}", XxHash3_128::oneshot(&long)));
        assert_eq!(records[1].bytes.len(), PREFIX);
        assert_eq!(records[2].bytes, "last");
    }

    /// What there is to read each time, until there is nothing for now.
    struct Growing(VecDeque<Vec<u8>>);

    impl Read for Growing {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let part = self.0.pop_front().unwrap_or_default();
            buffer[..part.len()].copy_from_slice(&part);
            Ok(part.len())
        }
    }

    #[test]
    fn a_line_that_is_too_long_and_still_written_is_one() {
        let (begin, end) = (vec![b'x'; 200], vec![b'y'; 49]);
        let text = [&begin[..], b"\r", &end].concat();
        let parts = [[&begin[..], b"\r"].concat(), vec![], vec![], [&end[..], b"\r\nz"].concat()];
        let mut lines = Lines::new(Growing(parts.into()), 0, 100);
        lines.takes_unfinished = false;
        assert_eq!((lines.next().unwrap(), lines.next().unwrap()), (None, None));
        let long = lines.next().unwrap().unwrap();
        let truncated = long.truncated.unwrap();
        assert_eq!((truncated.bytes, truncated.from, long.to), (250, 0, 252));
        assert_eq!(truncated.xxh3, format!("{:032x}", XxHash3_128::oneshot(&text)));
        assert_eq!(long.bytes, text);
        assert_eq!(lines.next().unwrap(), None);
        lines.takes_unfinished = true;
        assert_eq!(lines.next().unwrap().unwrap().bytes, "z");
        // What is never finished is a record at the end.
        let mut lines = Lines::new(Growing([begin].into()), 0, 100);
        lines.takes_unfinished = false;
        assert_eq!(lines.next().unwrap(), None);
        lines.takes_unfinished = true;
        assert_eq!(lines.next().unwrap().unwrap().truncated.unwrap().bytes, 200);
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn behind_empty_lines_no_record_is_ready() {
        let parts = [&b"a\n\n\r\n"[..], b"\nb\n\nc"].map(<[u8]>::to_vec);
        let mut lines = Lines::new(Growing(parts.into()), 0, 100);
        assert_eq!(lines.next().unwrap().unwrap().bytes, "a");
        assert!(!lines.is_ready(), "what comes next was not read");
        assert_eq!(lines.next().unwrap().unwrap().bytes, "b");
        assert!(!lines.is_ready(), "it may go on");
        assert_eq!(lines.next().unwrap().unwrap().bytes, "c");
    }

    #[test]
    fn a_line_may_be_as_long_as_a_number_says() {
        let records = all(b"a line\nanother", usize::MAX);
        assert_eq!(
            records.iter().map(|one| &one.bytes[..]).collect::<Vec<_>>(),
            [&b"a line"[..], b"another"]
        );
    }

    #[test]
    fn what_does_not_belong_to_a_line_does_not_count_in_its_length() {
        let all = |text: &[u8]| {
            let mut lines = Lines::new(std::io::Read::chain(&text[..4], &text[4..]), 0, 4);
            let records = std::iter::from_fn(|| lines.next().unwrap());
            records.map(|r| (r.bytes.to_vec(), r.truncated.map(|t| t.bytes))).collect::<Vec<_>>()
        };
        assert_eq!(
            all(b"\xEF\xBB\xBFabcd\r\nefgh\r"),
            [(b"abcd".to_vec(), None), (b"efgh".to_vec(), None)]
        );
        assert_eq!(all(b"\xEF\xBB\xBFabcde\r\n"), [(b"abcde".to_vec(), Some(5))]);
        assert_eq!(all(b"\xEF\xBB\xBFabcd\r\r"), [(b"abcd\r".to_vec(), Some(5))]);
        assert_eq!(all(b"\xEF\xBB\xBF\r\n"), []);
    }

    proptest! {
        #[test]
        fn lines_are_those_between_line_ends(text in "[ab\r\n]{0,60}") {
            let expected: Vec<&str> = text
                .split('\n')
                .map(|line| line.strip_suffix('\r').unwrap_or(line))
                .filter(|line| !line.is_empty())
                .collect();
            let records = all(text.as_bytes(), 1000);
            let found: Vec<_> =
                records.iter().map(|r| std::str::from_utf8(&r.bytes).unwrap()).collect();
            prop_assert_eq!(found, expected);
            for pair in records.windows(2) {
                prop_assert!(pair[0].to <= pair[1].from);
            }
        }

        #[test]
        fn reading_can_begin_again_after_any_record(text in "[ab\n]{0,60}", at in 0_usize..10) {
            let records = all(text.as_bytes(), 1000);
            let Some(record) = records.get(at) else { return Ok(()) };
            let start = usize::try_from(record.to).unwrap();
            let mut rest = Lines::new(&text.as_bytes()[start..], record.to, 1000);
            let rest: Vec<_> = std::iter::from_fn(|| rest.next().unwrap()).collect();
            prop_assert_eq!(&rest[..], &records[at + 1..]);
        }
    }
}
