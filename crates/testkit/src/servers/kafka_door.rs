use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Kafka;
use super::door::{Door, Way};

/// The requests whose answers name brokers.
const METADATA: u16 = 3;
const FIND_COORDINATOR: u16 = 10;

/// A [`Door`] before a broker; clients that ask which brokers there are get the door's address, or
/// none.
#[derive(Debug)]
pub struct KafkaDoor {
    door: Door,
    told: Arc<Told>,
}

/// What clients that ask for brokers are told.
#[derive(Debug, Default)]
struct Told {
    /// Whether they are told that there are none.
    of_none: AtomicBool,
    /// How often a client asked.
    asked: AtomicU64,
}

impl KafkaDoor {
    /// Opens one.
    ///
    /// # Panics
    /// No port is free.
    pub fn open(broker: &Kafka) -> Self {
        let told = Arc::<Told>::default();
        let here = Arc::clone(&told);
        let door = Door::open_with(broker.port(), move |port| {
            let (asked, told) = (Known::default(), Arc::clone(&here));
            let known = Arc::clone(&asked);
            let there: Way = Box::new(move |from, to| ask(from, to, &asked));
            let back: Way = Box::new(move |from, to| answer(from, to, &known, &told, port));
            [there, back]
        });
        Self { door, told }
    }

    /// Its address, as `bootstrap.servers` takes it.
    pub fn servers(&self) -> String {
        format!("127.0.0.1:{}", self.door.port())
    }

    /// As [`Door::cut`].
    pub fn cut(&self, unwelcome: u32) {
        self.door.cut(unwelcome);
    }

    /// From now on says that there are no brokers, or names the broker again.
    pub fn tell_of_none(&self, of_none: bool) {
        self.told.of_none.store(of_none, Ordering::Relaxed);
    }

    /// How often a client asked which brokers there are.
    pub fn asked(&self) -> u64 {
        self.told.asked.load(Ordering::Relaxed)
    }
}

impl Told {
    /// The answer, rewritten to name the broker on this port as the only one, or none.
    fn rewritten(&self, frame: &[u8], port: u16) -> Vec<u8> {
        // The correlation id, no tagged fields, the throttle time.
        let (head, mut rest) = frame.split_at(4 + 1 + 4);
        let (mut told, count) = (head.to_vec(), length(&mut rest));
        let of_none = self.of_none.load(Ordering::Relaxed);
        self.asked.fetch_add(1, Ordering::Relaxed);
        told.push(if of_none { 1 } else { short(count + 1) });
        for _ in 0..count {
            let start = rest;
            rest = &rest[4..];
            let host = length(&mut rest);
            let before = &start[..start.len() - rest.len() + host];
            rest = &rest[host + 4..];
            let after = rest;
            let rack = length(&mut rest);
            rest = &rest[rack + 1..];
            if !of_none {
                told.extend_from_slice(before);
                told.extend_from_slice(&u32::from(port).to_be_bytes());
                told.extend_from_slice(&after[..after.len() - rest.len()]);
            }
        }
        told.extend_from_slice(rest);
        told
    }
}

/// The answer, rewritten to name the broker on this port as the coordinator: the port comes last.
fn led_to(port: u16, mut frame: Vec<u8>) -> Vec<u8> {
    frame.truncate(frame.len() - 4);
    frame.extend_from_slice(&u32::from(port).to_be_bytes());
    frame
}

/// The length of what follows: written as 0 for a null, otherwise as the length plus one.
fn length(rest: &mut &[u8]) -> usize {
    let first = short(usize::from(rest[0]));
    *rest = &rest[1..];
    usize::from(first).saturating_sub(1)
}

/// A length that takes one byte.
fn short(length: usize) -> u8 {
    u8::try_from(length).ok().filter(|length| *length < 128).expect("it is short")
}

fn frame(mut from: &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame)?;
    Ok(frame)
}

fn pass_on(mut to: &TcpStream, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).expect("it was told in four bytes");
    to.write_all(&[&length.to_be_bytes(), frame].concat())
}

/// What was asked, by correlation id.
type Known = Arc<Mutex<HashMap<Vec<u8>, u16>>>;

fn ask(from: &TcpStream, to: &TcpStream, known: &Known) -> io::Result<()> {
    loop {
        let frame = frame(from)?;
        let at = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        // From version 9 on, lengths are of variable size; up to version 2, the port comes last.
        let is_known = match at(0) {
            METADATA => at(2) >= 9,
            FIND_COORDINATOR => at(2) <= 2,
            _ => true,
        };
        assert!(is_known, "the door does not know version {} of request {}", at(2), at(0));
        let mut known = known.lock();
        known.insert(frame[4..8].to_vec(), at(0));
        drop(known);
        pass_on(to, &frame)?;
    }
}

fn answer(
    from: &TcpStream,
    to: &TcpStream,
    known: &Known,
    told: &Told,
    port: u16,
) -> io::Result<()> {
    loop {
        let frame = frame(from)?;
        let asked = known.lock().remove(&frame[..4]);
        let frame = match asked {
            Some(METADATA) => told.rewritten(&frame, port),
            Some(FIND_COORDINATOR) => led_to(port, frame),
            _ => frame,
        };
        pass_on(to, &frame)?;
    }
}
