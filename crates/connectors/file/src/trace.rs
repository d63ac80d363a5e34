//! What is kept of a record that was read: enough to know it again.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::lines::{Lines, Record, Records};

/// How long a record may be, with its end, that is read again to know its file by.
const LENGTH_MAX: u64 = 1 << 20;

/// A record as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trace {
    pub(crate) number: u64,
    /// Where it begins and where the next one does, in uncompressed bytes.
    pub(crate) range: (u64, u64),
    /// The XXH3-128 of what was handed out.
    #[serde(with = "hex")]
    hash: u128,
}

impl Trace {
    pub(crate) fn of(number: u64, record: &Record) -> Self {
        Self { number, range: (record.from, record.to), hash: hash(record) }
    }

    /// Of a record by which its file can be known later: one that has its end, and is not too long to be read
    /// again.
    pub(crate) fn lasting(number: u64, record: &Record) -> Option<Self> {
        let lasts = !record.unfinished && record.to - record.from <= LENGTH_MAX;
        lasts.then(|| Self::of(number, record))
    }

    /// Whether what was handed out is the same.
    pub(crate) fn has_text_of(&self, record: &Record) -> bool {
        self.hash == hash(record)
    }

    /// Whether it is the same record, as far as it was there: a row that ends in a carriage return may have got the
    /// rest of its line's end.
    pub(crate) fn is_of(&self, record: &Record) -> bool {
        self.range.0 == record.from && self.has_text_of(record)
    }

    /// Whether this line stands in a file of plain lines where it stood.
    pub(crate) fn stands_in(&self, file: &File) -> std::io::Result<bool> {
        let (from, to) = self.range;
        let length = to.checked_sub(from).filter(|length| *length <= LENGTH_MAX);
        let Some(length) = length.and_then(|length| usize::try_from(length).ok()) else {
            return Ok(false);
        };
        let mut bytes = vec![0; length];
        match file.read_exact_at(&mut bytes, from) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            read => read?,
        }
        let record = Lines::new(&bytes[..], from, usize::MAX).next()?;
        Ok(record.is_some_and(|record| Self::of(self.number, &record) == *self))
    }
}

/// The XXH3-128 of what was handed out.
pub(crate) fn hash(record: &Record) -> u128 {
    let whole = record.truncated.as_ref();
    let known = whole.and_then(|whole| u128::from_str_radix(&whole.xxh3, 16).ok());
    known.unwrap_or_else(|| XxHash3_128::oneshot(&record.bytes))
}

/// A hash as it stands in the state.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(hash: &u128, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{hash:032x}"))
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<u128, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(from)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}
