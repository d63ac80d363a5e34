//! The longest value that the server accepts: its `proto-max-bulk-len`. On a longer one it closes
//! the connection.

use std::sync::Arc;

use brigade_core::connector::{ConnectorError, Rejected};
use brigade_core::{CauseKind, Message};
use redis::cmd;

use crate::failure::Failure;
use crate::wire::Wire;

/// The length that every server accepts: the setting cannot be lower.
pub(crate) const SURE: u64 = 1 << 20;
/// How many connections have to break before the length written on them is taken to be the cause.
const BREAKS: u32 = 2;

/// The length of a message's longest value in an entry of a stream.
pub(crate) fn of_entry(message: &Message) -> u64 {
    let headers = message.headers.iter().map(|(name, value)| {
        // In an entry, `h:` precedes the name.
        (name.len() + 2).max(value.map_or(0, |value| value.len()))
    });
    let key = message.key.as_ref().map_or(0, |key| key.len());
    of_body(message).max(headers.max().unwrap_or(0).max(key) as u64)
}

/// The length of a message's payload.
pub(crate) fn of_body(message: &Message) -> u64 {
    message.payload.as_ref().map_or(0, |payload| payload.len() as u64)
}

/// The longest value that a server accepts.
#[derive(Debug, Clone, Copy)]
struct Longest {
    bytes: u64,
    /// Whether the server reported it; otherwise it was found by trying.
    told: bool,
}

impl Longest {
    fn refuse(self, length: u64) -> Option<Rejected> {
        let Self { bytes, told } = self;
        let why = match told {
            true => format!("the server's `proto-max-bulk-len` is {bytes}"),
            false => "the server closes the connection, as with a value longer than its \
                      `proto-max-bulk-len`"
                .to_owned(),
        };
        (length > bytes).then(|| Rejected {
            kind: CauseKind::TooLarge,
            message: format!("{length} bytes in one value; {why}"),
        })
    }
}

/// Which values the server does not accept, by their places among these lengths.
pub(crate) async fn too_long(
    wire: &Arc<Wire>,
    lengths: &[u64],
) -> Result<Vec<(usize, Rejected)>, ConnectorError> {
    let taken = wire.takes();
    let unsure: Vec<u64> = lengths.iter().copied().filter(|length| *length > taken).collect();
    if unsure.is_empty() {
        return Ok(Vec::new());
    }
    let longest = match ask(wire).await {
        Some(bytes) => Longest { bytes, told: true },
        None => Longest { bytes: find(wire, unsure).await?, told: false },
    };
    wire.set_takes(longest.bytes);
    let refused = |(at, length): (usize, &u64)| Some((at, longest.refuse(*length)?));
    Ok(lengths.iter().enumerate().filter_map(refused).collect())
}

/// What the server says, if it may be asked.
async fn ask(wire: &Arc<Wire>) -> Option<u64> {
    let mut config = cmd("CONFIG");
    config.arg("GET").arg("proto-max-bulk-len");
    let answer: (String, String) = wire.query_alone(config, 0).await.ok()?;
    answer.1.parse().ok()
}

/// The greatest of these lengths that the server accepts, found by bisection; if it accepts none, a
/// value below all of them.
async fn find(wire: &Arc<Wire>, mut lengths: Vec<u64>) -> Result<u64, ConnectorError> {
    lengths.sort_unstable();
    lengths.dedup();
    // Those before `good` are accepted, those from `bad` on are not. Usually all are, or there is
    // only one and it is not.
    let (mut good, mut bad, mut next) = (0, lengths.len(), lengths.len() - 1);
    while good < bad {
        match takes(wire, lengths[next]).await? {
            true => good = next + 1,
            false => bad = next,
        }
        next = good.midpoint(bad);
    }
    Ok(good.checked_sub(1).map_or(SURE, |last| lengths[last]))
}

/// Whether the server accepts a value of this length.
async fn takes(wire: &Arc<Wire>, length: u64) -> Result<bool, ConnectorError> {
    for _ in 0..BREAKS {
        match try_out(wire, length).await {
            Ok(taken) => return Ok(taken),
            Err(failure) if is_broken(&failure) => {}
            Err(failure) => return Err(wire.told(&failure)),
        }
    }
    // Unless the connection breaks whatever is written.
    match try_out(wire, SURE).await {
        Ok(_) => Ok(false),
        Err(failure) => Err(wire.told(&failure)),
    }
}

/// Asks the server for a key of this length, on a connection of its own so that no other request's
/// breaks; any answer means that the value was accepted.
async fn try_out(wire: &Arc<Wire>, length: u64) -> Result<bool, Failure> {
    let Ok(length) = usize::try_from(length) else { return Ok(false) };
    let mut exists = cmd("EXISTS");
    exists.arg(vec![b'x'; length]);
    match wire.query_alone::<redis::Value>(exists, length).await {
        Err(failure) if failure.is_of_protocol() => Ok(false),
        Err(failure) if failure.connecting || failure.error.is_timeout() => Err(failure),
        Err(failure) if is_broken(&failure) => Err(failure),
        _ => Ok(true),
    }
}

/// Whether a connection broke after it had been made.
fn is_broken(failure: &Failure) -> bool {
    !failure.connecting && !failure.error.is_timeout() && failure.error.is_io_error()
}
