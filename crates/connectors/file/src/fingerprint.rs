//! What tells a file from another that has its name and its inode: how it begins.

use std::fs::File;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

/// How many of a file's first bytes make its fingerprint, at most.
const MAX: u64 = 1024;

/// What a file begins with: how many bytes, and their XXH3-128.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fingerprint(u64, String);

impl Fingerprint {
    pub(crate) fn of(file: &File) -> std::io::Result<Self> {
        Ok(Self::of_bytes(&first_bytes(file)?))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        Self(bytes.len() as u64, hash(bytes))
    }

    /// The fingerprint of the file as it is now, which may have grown; none if it begins otherwise.
    pub(crate) fn now(&self, file: &File) -> std::io::Result<Option<Self>> {
        let bytes = first_bytes(file)?;
        let begin = usize::try_from(self.0).ok().and_then(|length| bytes.get(..length));
        let is_same = begin.is_some_and(|begin| hash(begin) == self.1);
        let has_grown = bytes.len() as u64 > self.0;
        Ok(is_same.then(|| if has_grown { Self::of_bytes(&bytes) } else { self.clone() }))
    }

    /// Whether a file that grows has enough to be told from others by: a line, or a whole fingerprint.
    pub(crate) fn can_be_of(file: &File) -> std::io::Result<bool> {
        let bytes = first_bytes(file)?;
        Ok(bytes.contains(&b'\n') || bytes.len() as u64 == MAX)
    }
}

/// As ids hung on the fingerprint before lives had names.
impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", XxHash3_128::oneshot(bytes))
}

/// The first bytes of a file, as many as a fingerprint has or all.
fn first_bytes(file: &File) -> std::io::Result<Vec<u8>> {
    bytes_at(file, 0, MAX as usize)
}

/// So many bytes, or as many as there are; where the file is read stays as it is.
fn bytes_at(file: &File, from: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], from + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// A file of which only what belongs to one life is read: who waited for room for an hour may find it cut and
/// written anew, and would go on in the middle of something else.
pub(crate) struct OneLife {
    file: File,
    /// Where it is read next.
    at: u64,
    /// What stands before that, as it was read.
    tail: Vec<u8>,
    /// How this life begins.
    pub(crate) fingerprint: Fingerprint,
    /// Whether the end of its life is the end of the file for now, as its follower looks again; else it is an
    /// error.
    ends: bool,
}

impl OneLife {
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn new(
        file: File,
        at: u64,
        fingerprint: Fingerprint,
        ends: bool,
    ) -> std::io::Result<Self> {
        let from = at.saturating_sub(MAX);
        let tail = bytes_at(&file, from, (at - from) as usize)?;
        Ok(Self { file, at, tail, fingerprint, ends })
    }

    /// Whether what was read last stands there still: who is written anew may begin alike, as with a header.
    pub(crate) fn has_tail(&self) -> std::io::Result<bool> {
        let from = self.at - self.tail.len() as u64;
        Ok(bytes_at(&self.file, from, self.tail.len())? == self.tail)
    }

    /// Whether what was read up to here is of this life.
    fn reached(&self, to: u64) -> std::io::Result<bool> {
        let is_there = self.file.metadata()?.len() >= to;
        Ok(is_there && self.fingerprint.now(&self.file)?.is_some() && self.has_tail()?)
    }

    /// Goes on behind what was read.
    fn pass(&mut self, read: &[u8]) {
        let kept = &read[read.len().saturating_sub(MAX as usize)..];
        let too_many = (self.tail.len() + kept.len()).saturating_sub(MAX as usize);
        self.tail.drain(..too_many);
        self.tail.extend_from_slice(kept);
        self.at += read.len() as u64;
    }
}

impl std::io::Read for OneLife {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        let to = self.at + read as u64;
        // Looked at after the bytes are there: nothing can come between. That there are no more is not the end of
        // this life either, if it was cut.
        if !self.reached(to)? {
            return match self.ends {
                true => Ok(0),
                false => Err(std::io::Error::other(
                    "it was cut, or written anew, while it was read; it is read from its beginning at the next \
                     start",
                )),
            };
        }
        self.pass(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("room");
        file
    }

    #[test]
    fn a_fingerprint_grows_with_its_file_until_it_is_whole() {
        let mut file = file(b"{\"event\":\"start\"}\n");
        let first = Fingerprint::of(&file).unwrap();
        assert_eq!(first.0, 18);
        file.write_all(&[b'x'; 2000]).unwrap();
        let grown = first.now(&file).unwrap().expect("it begins alike");
        assert_eq!(grown.0, MAX);
        assert_eq!(grown.now(&file).unwrap(), Some(grown.clone()));
        let other = self::file(b"{\"event\":\"start\"}\nand goes on otherwise");
        assert!(first.now(&other).unwrap().is_some(), "so much is the same");
        assert_eq!(grown.now(&other).unwrap(), None);
        assert_eq!(first.now(&self::file(b"")).unwrap(), None, "shorter");
    }

    #[test]
    fn what_is_impossible_is_the_fingerprint_of_nothing() {
        let file = file(b"abc");
        let of = |length| Fingerprint(length, hash(b"abc")).now(&file).unwrap();
        assert!(of(3).is_some());
        assert!(of(4).is_none() && of(u64::MAX).is_none());
    }

    #[test]
    fn nothing_is_read_of_another_life() {
        for ends in [true, false] {
            let mut written = file(b"first life\n");
            let fingerprint = Fingerprint::of(&written).unwrap();
            let mut read =
                OneLife::new(written.try_clone().unwrap(), 0, fingerprint, ends).unwrap();
            let mut buffer = [0; 6];
            assert_eq!(read.read(&mut buffer).unwrap(), 6);
            let mut is_over = || match ends {
                true => read.read(&mut buffer).unwrap() == 0,
                false => read.read(&mut buffer).is_err(),
            };
            written.set_len(0).unwrap();
            assert!(is_over(), "it is shorter than what was read");
            std::io::Seek::rewind(&mut written).unwrap();
            written.write_all(b"second life\n").unwrap();
            assert!(is_over(), "it begins otherwise");
        }
    }

    #[test]
    fn what_begins_alike_and_goes_on_otherwise_is_another_life() {
        let day = |day: u8| [vec![b'-'; 5000], vec![day; 5000]].concat();
        for (begin, other) in [(0, 7000), (3, 9000)] {
            let written = file(&day(b'1'));
            let fingerprint = Fingerprint::of(&written).unwrap();
            let clone = || written.try_clone().unwrap();
            let mut read = OneLife::new(clone(), begin, fingerprint, true).unwrap();
            let mut buffer = vec![0; other];
            assert_eq!(read.read(&mut buffer).unwrap(), other);
            assert!(read.has_tail().unwrap());
            written.write_all_at(&day(b'2'), 0).unwrap();
            assert_eq!((read.has_tail().unwrap(), read.read(&mut buffer).unwrap()), (false, 0));
        }
        // What is read on behind what was read before it was opened, too.
        let written = file(&day(b'1'));
        let fingerprint = Fingerprint::of(&written).unwrap();
        let mut read = OneLife::new(written.try_clone().unwrap(), 6000, fingerprint, true).unwrap();
        written.write_all_at(&day(b'2'), 0).unwrap();
        assert_eq!(read.read(&mut [0; 10]).unwrap(), 0);
    }
}
