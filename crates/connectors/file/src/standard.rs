//! Standard input and output.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, StdinLock, Write};
use std::os::fd::AsFd;

use parking_lot::Mutex;
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
    let mut rest = REST.lock();
    write(&mut out, &mut rest, bytes, compression)
}

/// Standard input, which is waited for.
pub(crate) fn input() -> Patient<StdinLock<'static>> {
    Patient(std::io::stdin().lock())
}

/// A file that waits for room, or for what there is to read, also where somebody who shares it wants it to say that
/// there is none.
pub(crate) struct Patient<F>(F);

impl<F: AsFd> Patient<F> {
    /// Does it, as often as there was nothing to be had, once there is.
    fn wait<T>(&mut self, flags: PollFlags, mut act: impl FnMut(&mut F) -> Result<T>) -> Result<T> {
        loop {
            match act(&mut self.0) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    match poll(&mut [PollFd::new(&self.0, flags)], None) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                other => return other,
            }
        }
    }
}

impl<F: AsFd + Read> Read for Patient<F> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.wait(PollFlags::IN, |file| file.read(buffer))
    }
}

impl<F: AsFd + Write> Write for Patient<F> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.wait(PollFlags::OUT, |file| file.write(bytes))
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

    /// What is written waits until the reader has found nothing.
    #[test]
    fn a_pipe_that_says_when_it_is_empty_is_waited_for() {
        /// Asks for the next part whenever there is nothing.
        struct Asking(std::io::PipeReader, std::sync::mpsc::Sender<()>);
        impl AsFd for Asking {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.0.as_fd()
            }
        }
        impl Read for Asking {
            fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
                let read = self.0.read(buffer);
                if read.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
                    let _ = self.1.send(());
                }
                read
            }
        }
        let (reader, mut out) = std::io::pipe().unwrap();
        fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
        let (ask, asked) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            for part in ["1\n2", "3\n", "4\n"] {
                asked.recv().unwrap();
                out.write_all(part.as_bytes()).unwrap();
            }
        });
        let mut read = String::new();
        Patient(Asking(reader, ask)).read_to_string(&mut read).unwrap();
        writer.join().unwrap();
        assert_eq!(read, "1\n23\n4\n");
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
