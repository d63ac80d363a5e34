//! Ids of messages, and how they are derived.

use std::fmt;
use std::str::FromStr;

use smallvec::{SmallVec, smallvec};
use twox_hash::XxHash3_128;

/// A message's identity: 128 bits, printed as 32 hexadecimal digits.
///
/// Ids are derived, never random: the same input, handled again after a crash, gives outputs with
/// the same ids, so a store that is able to can write each once.
///
/// ```
/// use brigade_core::MessageId;
/// let parent: MessageId = "000000000000000000000000000000ff".parse()?;
/// assert_eq!(parent.output("check", "checked", 0), parent.output("check", "checked", 0));
/// assert_ne!(parent.output("check", "checked", 0), parent.output("check", "checked", 1));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MessageId(pub u128);

/// Which life of a queue a position belongs to.
///
/// A position (a row number, an offset, a byte) can recur when a queue is deleted and recreated;
/// together with the incarnation it never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IncarnationId(pub u128);

impl IncarnationId {
    /// The incarnation identified by these bytes: a file's fingerprint, a store's random id.
    pub fn of(bytes: &[u8]) -> Self {
        Self(XxHash3_128::oneshot(bytes))
    }
}

/// What an id was derived from: the first of the hashed bytes, so that ids of different kinds
/// cannot collide.
const ROOT: u8 = 0;
const OUTPUT: u8 = 1;

impl MessageId {
    /// The id of a message that no stage made, from the queue's incarnation and its position there.
    pub fn root(incarnation: IncarnationId, position: u64) -> Self {
        let mut bytes = [0_u8; 25];
        bytes[0] = ROOT;
        bytes[1..17].copy_from_slice(&incarnation.0.to_le_bytes());
        bytes[17..].copy_from_slice(&position.to_le_bytes());
        Self(XxHash3_128::oneshot(&bytes))
    }

    /// The id of the `index`th message that `stage`, handling this message, puts on `output`.
    ///
    /// Encoding, hashed with XXH3-128 (seed 0): the byte 1, the parent (16 bytes, little-endian),
    /// each name as its length (u32, little-endian) and its UTF-8 bytes, the index (u32,
    /// little-endian).
    pub fn output(self, stage: &str, output: &str, index: u32) -> Self {
        const PARENT: usize = 1 + 16;
        let length = PARENT + 4 + stage.len() + 4 + output.len() + 4;
        // Computed for every output of every stage: names are short, and this stays on the stack.
        let mut bytes: SmallVec<[u8; 128]> = smallvec![0; length];
        bytes[0] = OUTPUT;
        bytes[1..PARENT].copy_from_slice(&self.0.to_le_bytes());
        let mut rest = &mut bytes[PARENT..];
        for name in [stage, output] {
            let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
            let (here, after) = rest.split_at_mut(4 + name.len());
            here[..4].copy_from_slice(&length.to_le_bytes());
            here[4..].copy_from_slice(name.as_bytes());
            rest = after;
        }
        rest.copy_from_slice(&index.to_le_bytes());
        Self(XxHash3_128::oneshot(&bytes))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // Outputs carry their ids as text, and the standard library takes ten times as long for 128
        // bits.
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.pad(std::str::from_utf8(&text).expect("digits are ASCII"))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

impl FromStr for MessageId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(text, 16).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_encoding_of_ids_never_changes() {
        let root = MessageId::root(IncarnationId::of(b"flights.jsonl"), 42);
        assert_eq!(root.to_string(), GOLDEN_ROOT);
        assert_eq!(root.output("check", "checked", 7).to_string(), GOLDEN_OUTPUT);
    }

    #[test]
    fn names_cannot_run_into_each_other() {
        let parent = MessageId(1);
        assert_ne!(parent.output("ab", "c", 0), parent.output("a", "bc", 0));
    }

    // Computed by another implementation of XXH3 from the encodings above.
    const GOLDEN_ROOT: &str = "9a82c8fd40ed8f73252e2934756e9e17";
    const GOLDEN_OUTPUT: &str = "36be288062de5da1ac0ae907ca401312";

    proptest! {
        #[test]
        fn an_id_is_read_back(id in any::<u128>()) {
            prop_assert_eq!(MessageId(id).to_string(), format!("{id:032x}"));
            prop_assert_eq!(MessageId(id).to_string().parse(), Ok(MessageId(id)));
        }

        #[test]
        fn different_origins_have_different_ids(
            one in (any::<u128>(), "[a-c]{0,3}", "[a-c]{0,3}", 0_u32..3),
            other in (any::<u128>(), "[a-c]{0,3}", "[a-c]{0,3}", 0_u32..3),
        ) {
            let id = |(parent, stage, output, index): &(u128, String, String, u32)| {
                MessageId(*parent).output(stage, output, *index)
            };
            prop_assert_eq!(one == other, id(&one) == id(&other));
        }
    }
}
