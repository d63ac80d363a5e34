//! Standard output.

use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};

use crate::settings::Compression;

/// What has to follow before anything else, as its beginning was written when an error came.
static REST: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Prints a batch. After an error it is written again, whole: who reads finds some of it twice, but
/// no part of a line.
pub(crate) fn print(bytes: &[u8], compression: Compression) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.flush()?;
    // Without the buffer of the standard library, which does not say how much was written.
    let mut out = Patient(File::from(out.as_fd().try_clone_to_owned()?));
    let mut rest = REST.lock().unwrap_or_else(PoisonError::into_inner);
    write(&mut out, &mut rest, bytes, compression)
}

/// A file that waits for room, also where somebody who shares it wants it to say that there is none.
struct Patient(File);

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

fn write(
    out: &mut impl Write,
    rest: &mut Vec<u8>,
    bytes: &[u8],
    compression: Compression,
) -> Result<()> {
    let (written, result) = write_as_far_as_it_goes(out, rest);
    rest.drain(..written);
    result?;
    let (written, result) = write_as_far_as_it_goes(out, bytes);
    if result.is_err() {
        rest.extend_from_slice(torn(bytes, written, compression));
    }
    result
}

/// Says how much was written, too.
fn write_as_far_as_it_goes(out: &mut impl Write, bytes: &[u8]) -> (usize, Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return (written, Err(Error::from(ErrorKind::WriteZero))),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// What is missing of a line, or of a compressed batch, of which only the beginning was written.
fn torn(bytes: &[u8], written: usize, compression: Compression) -> &[u8] {
    let (before, after) = bytes.split_at(written);
    match compression {
        _ if before.is_empty() => &[],
        Compression::None if before.ends_with(b"\n") => &[],
        Compression::None => after.split_inclusive(|byte| *byte == b'\n').next().unwrap_or(&[]),
        Compression::Gzip | Compression::Zstd => after,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    /// A disk with so much room.
    struct Disk {
        room: usize,
        written: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            let length = bytes.len().min(self.room);
            if length == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.room -= length;
            self.written.extend_from_slice(&bytes[..length]);
            Ok(length)
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    /// Writes a batch to a disk on which there is room for a part of it, and again once there is
    /// more. What stands there then.
    fn read_after_an_error(batch: &[u8], compression: Compression) -> Vec<u8> {
        let mut out = Disk { room: 20_000, written: Vec::new() };
        let mut rest = Vec::new();
        let error = write(&mut out, &mut rest, batch, compression).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        out.room = usize::MAX;
        write(&mut out, &mut rest, batch, compression).unwrap();
        assert!(rest.is_empty());
        out.written
    }

    /// More than any pipe holds.
    #[test]
    fn a_pipe_that_says_when_it_is_full_is_waited_for() {
        const LENGTH: usize = 4 << 20;
        let (mut reader, out) = std::io::pipe().unwrap();
        fcntl_setfl(&out, OFlags::NONBLOCK).unwrap();
        let written = std::thread::spawn(move || {
            let mut out = Patient(File::from(OwnedFd::from(out)));
            write(&mut out, &mut Vec::new(), &[b'x'; LENGTH], Compression::None)
        });
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        written.join().unwrap().unwrap();
        assert_eq!(read.len(), LENGTH);
    }

    #[test]
    fn no_part_of_a_line_is_joined_with_the_next_try() {
        let line = |n: usize| format!("{n:050}\n");
        let batch: String = (0..1000).map(line).collect();
        let read = read_after_an_error(batch.as_bytes(), Compression::None);
        let read = String::from_utf8(read).unwrap();
        assert!(read.ends_with(&batch) && read.len() > batch.len());
        let expected = (0..1000).map(line).cycle();
        let first = read.len() - batch.len();
        let before = expected.take(first / line(0).len()).collect::<String>();
        assert_eq!(&read[..first], before, "whole lines, one after the other");
    }

    #[test]
    fn a_compressed_batch_comes_to_its_end_before_the_next_try() {
        let random: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(30_000).collect();
        let batch = zstd::encode_all(&random[..], 0).unwrap();
        let read = read_after_an_error(&batch, Compression::Zstd);
        assert_eq!(zstd::decode_all(&read[..]).unwrap(), [&random[..], &random].concat());
    }

    #[test]
    fn where_a_line_ends_nothing_is_missing() {
        let torn = |written| torn(b"a\nbc\nd\n", written, Compression::None);
        assert_eq!([torn(0), torn(2), torn(5)], [b""; 3]);
        assert_eq!([torn(1), torn(3), torn(6)], [&b"\n"[..], b"c\n", b"\n"]);
    }
}
