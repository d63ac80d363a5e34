//! CSV records as JSON objects of texts.

use std::io::{Error, Read};

use bytes::{Bytes, BytesMut};
use twox_hash::XxHash3_128;

use crate::lines::{MARK, Record, Records};

/// How much is kept of a row that is too long.
const PREFIX: usize = 64 << 10;

/// Reads rows. A row that cannot be an object of the header's columns without something being lost
/// is a record of its own text, with what is wrong with it.
pub(crate) struct Rows<R> {
    reader: csv::Reader<Watched<R>>,
    header: Option<csv::StringRecord>,
    max: usize,
}

/// A reader that keeps what was read until the row that it belongs to ends, and that ends in an error
/// when more is read than is allowed: a row whose quote is never closed would else be the rest of the
/// file.
struct Watched<R> {
    reader: R,
    /// How many bytes may be read before the next row ends.
    left: usize,
    /// Where the next row begins.
    row: csv::Position,
    /// What was read and belongs to no row yet.
    text: BytesMut,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        let Some(left) = self.left.checked_sub(read) else {
            let (line, byte) = (self.row.line(), self.row.byte());
            return Err(Error::other(format!(
                "the row that begins in line {line} (byte {byte}) is far longer than `max_message_bytes`: is a \
                 quote not closed?"
            )));
        };
        self.left = left;
        self.text.extend_from_slice(&buffer[..read]);
        Ok(read)
    }
}

impl<R: Read> Rows<R> {
    pub(crate) fn new(reader: R, max: usize) -> Self {
        let reader = Watched { reader, left: 0, row: csv::Position::new(), text: BytesMut::new() };
        // How many fields a row has is looked at here.
        let reader = csv::ReaderBuilder::new().flexible(true).from_reader(reader);
        Self { reader, header: None, max }
    }

    /// The names of the columns: each has to be there once, as each becomes a key.
    fn read_header(&mut self) -> std::io::Result<csv::StringRecord> {
        let header = self.reader.headers().map_err(wrong)?.clone();
        let text = self.take(self.reader.position().byte());
        if let Some(why) = malformed(text.strip_prefix(MARK).unwrap_or(&text)) {
            return Err(Error::other(format!("in its header {why}")));
        }
        let mut names = header.iter().enumerate();
        if let Some((_, name)) =
            names.find(|(at, name)| header.iter().take(*at).any(|n| n == *name))
        {
            let text = format!("its header has the column `{name}` twice: give each its own name");
            return Err(Error::other(text));
        }
        Ok(header)
    }

    /// Takes out the text of what was read last.
    fn take(&mut self, length: u64) -> Bytes {
        let text = &mut self.reader.get_mut().text;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(text.len());
        text.split_to(length).freeze()
    }
}

impl<R: Read> Records for Rows<R> {
    fn next(&mut self) -> std::io::Result<Option<Record>> {
        /// What may be read ahead.
        const AHEAD: usize = 1 << 20;
        // What is not in quotes may take several bytes in JSON, what is in quotes fewer.
        self.reader.get_mut().left = self.max.saturating_mul(2).saturating_add(AHEAD);
        let header = match self.header.take() {
            Some(header) => header,
            None => self.read_header()?,
        };
        let mut row = csv::ByteRecord::new();
        self.reader.get_mut().row = self.reader.position().clone();
        let from = self.reader.position().byte();
        let any = self.reader.read_byte_record(&mut row).map_err(wrong)?;
        let record = any.then(|| {
            let to = self.reader.position().byte();
            let text = self.take(to - from);
            record(&header, row, text, (from, to), self.max)
        });
        self.header = Some(header);
        Ok(record)
    }

    fn is_ready(&self) -> bool {
        let text = &self.reader.get_ref().text;
        let begin = text.iter().position(|byte| !is_end(*byte)).unwrap_or(text.len());
        let mut quoted = false;
        text[begin..].iter().any(|byte| {
            quoted ^= *byte == b'"';
            !quoted && is_end(*byte)
        })
    }
}

fn wrong(error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        // Rows are read as bytes.
        csv::ErrorKind::Utf8 { .. } => Error::other("its header is not UTF-8"),
        other => Error::other(format!("{other:?}")),
    }
}

fn record(
    header: &csv::StringRecord,
    row: csv::ByteRecord,
    text: Bytes,
    (from, to): (u64, u64),
    max: usize,
) -> Record {
    let malformed = malformed(&text);
    let broken = malformed.map(str::to_owned).or_else(|| {
        let (fields, columns) = (row.len(), header.len());
        (fields > columns).then(|| format!("{fields} fields, but the header has {columns}"))
    });
    // No JSON can say what is not UTF-8.
    let (row, broken) = match (csv::StringRecord::from_byte_record(row), broken) {
        (Ok(row), None) => (Some(row), None),
        (Err(_), None) => (None, Some("a field is not UTF-8".to_owned())),
        (_, broken) => (None, broken),
    };
    let bytes: Bytes = match row {
        Some(row) => {
            let fields = header.iter().zip(row.iter());
            let object: serde_json::Map<String, serde_json::Value> =
                fields.map(|(name, value)| (name.to_owned(), value.into())).collect();
            serde_json::Value::Object(object).to_string().into()
        }
        None => text.slice_ref(trimmed(&text)),
    };
    let truncated = (bytes.len() > max).then(|| brigade_core::Truncated {
        bytes: to - from,
        xxh3: format!("{:032x}", XxHash3_128::oneshot(&bytes)),
        from,
        to,
    });
    let kept = if truncated.is_some() { bytes.len().min(PREFIX) } else { bytes.len() };
    // In a quoted field a line's end ends nothing.
    let unfinished = malformed == Some(UNCLOSED) || !text.last().is_some_and(|last| is_end(*last));
    Record { from, to, bytes: bytes.slice(..kept), truncated, broken, unfinished }
}

fn is_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

/// A row's text without the line ends before and after it.
fn trimmed(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|byte| !is_end(*byte)).unwrap_or(text.len());
    let text = &text[start..];
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.strip_suffix(b"\r").unwrap_or(text)
}

/// What is wrong with a row within which the file ends.
const UNCLOSED: &str = "a quote is not closed";

/// What is wrong with the quotes of a row, whose text this is.
fn malformed(text: &[u8]) -> Option<&'static str> {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Start,
        Plain,
        Quoted,
        /// After a quote within quotes: the end, or the first of two.
        Quote,
    }
    memchr::memchr(b'"', text)?;
    let mut at = At::Start;
    for byte in text {
        at = match (at, byte) {
            (At::Start, b'"') | (At::Quote, b'"') => At::Quoted,
            (At::Quoted, b'"') => At::Quote,
            (At::Quoted, _) => At::Quoted,
            (_, b',' | b'\n' | b'\r') => At::Start,
            (At::Quote, _) => {
                return Some(
                    "something follows a quote that was closed: is one not closed before?",
                );
            }
            (_, _) => At::Plain,
        };
    }
    (at == At::Quoted).then_some(UNCLOSED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(text: &[u8]) -> std::io::Result<Vec<(String, Option<String>)>> {
        let mut rows = Rows::new(text, 1000);
        let mut all = Vec::new();
        while let Some(record) = rows.next()? {
            let text = String::from_utf8_lossy(&record.bytes).into_owned();
            all.push((text, record.broken));
        }
        Ok(all)
    }

    fn broken(rest: &str) -> (String, String) {
        let mut all = rows(format!("a,b\n1,2\n{rest}").as_bytes()).unwrap();
        let (text, why) = all.remove(1);
        (text, why.expect("it is broken"))
    }

    #[test]
    fn a_row_that_would_lose_something_is_its_own_text() {
        for rest in ["3,4,5\n6,7\n", "3,4,5", "\n\r\n3,4,5\r\n"] {
            let (text, why) = broken(rest);
            assert_eq!((text.as_str(), why.as_str()), ("3,4,5", "3 fields, but the header has 2"));
        }
        let (text, why) = broken("3,\"4\n5,6\n");
        assert_eq!((text.as_str(), why.as_str()), ("3,\"4\n5,6", "a quote is not closed"));
        let (text, why) = broken("3,\"4\n5,\"6\"\n7,8\n");
        assert_eq!(text, "3,\"4\n5,\"6\"");
        assert!(why.starts_with("something follows"), "{why}");
    }

    #[test]
    fn a_header_that_cannot_make_keys_is_an_error() {
        let error = rows(b"a,b,a\n1,2,3\n").unwrap_err().to_string();
        assert!(error.contains("the column `a` twice"), "{error}");
        let error = rows(b"a,\"b\n1,2\n").unwrap_err().to_string();
        assert!(error.contains("in its header a quote is not closed"), "{error}");
        assert_eq!(rows(b"").unwrap(), []);
        assert_eq!(rows(b"a,b\n").unwrap(), []);
    }

    #[test]
    fn a_byte_order_mark_and_quotes_within_a_field_are_fine() {
        let text = "\u{feff}\"a\",b\r\n5\" pipe,\"x\"\"y\"\r\n";
        let expected = r#"{"a":"5\" pipe","b":"x\"y"}"#.to_owned();
        assert_eq!(rows(text.as_bytes()).unwrap(), [(expected, None)]);
        let text = "\u{feff}\"x,\",y\n1,2";
        let expected = r#"{"x,":"1","y":"2"}"#.to_owned();
        assert_eq!(rows(text.as_bytes()).unwrap(), [(expected, None)]);
    }

    proptest! {
        /// Whatever the fields hold, what was written as CSV is read as it was.
        #[test]
        fn what_is_written_as_csv_is_never_broken(
            written in prop::collection::vec(["[a\",\r\n ]{0,6}", "[a\",\r\n ]{0,6}"], 0..20),
            crlf in any::<bool>(),
        ) {
            let end = if crlf { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') };
            let mut writer = csv::WriterBuilder::new().terminator(end).from_writer(Vec::new());
            writer.write_record(["k", "l"]).unwrap();
            for [k, l] in &written {
                writer.write_record([k, l]).unwrap();
            }
            let read = rows(&writer.into_inner().unwrap()).unwrap();
            prop_assert_eq!(read.len(), written.len());
            for ((text, broken), [k, l]) in read.iter().zip(&written) {
                prop_assert_eq!(broken, &None);
                prop_assert_eq!(text, &serde_json::json!({ "k": k, "l": l }).to_string());
            }
        }
    }
}
