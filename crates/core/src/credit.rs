//! Credit: how many more messages and bytes downstream will take. Credit, rather than the size of a
//! mailbox, bounds memory.

use crate::connector::Want;

/// A consumer's limits on what is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credit {
    /// At most this many messages.
    pub messages: usize,
    /// At most this many bytes; a larger message goes alone.
    pub bytes: usize,
}

impl Credit {
    /// What may be pulled while `messages` and `bytes` are in flight; `None` means nothing.
    pub fn want(&self, messages: usize, bytes: usize, batch_max: usize) -> Option<Want> {
        let free = self.messages.saturating_sub(messages);
        if free == 0 || bytes >= self.bytes {
            return None;
        }
        Some(Want { messages: free.min(batch_max.max(1)), bytes: self.bytes - bytes })
    }

    /// Whether it is worth waiting a moment before this is pulled: less than a quarter of the
    /// messages' credit is free, and less than `batch_max`. So queues are asked for batches and not
    /// for every single message that is settled.
    pub fn is_little(&self, want: Want, batch_max: usize) -> bool {
        want.messages < batch_max.min(self.messages.div_ceil(4)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_wanted_never_exceeds_the_limits(
            limit in 1_usize..5000, bytes_limit in 1_usize..5000,
            in_flight in 0_usize..6000, bytes in 0_usize..6000, batch in 1_usize..600,
        ) {
            let credit = Credit { messages: limit, bytes: bytes_limit };
            match credit.want(in_flight, bytes, batch) {
                Some(want) => {
                    prop_assert!(want.messages >= 1 && want.bytes >= 1);
                    prop_assert!(in_flight > 0 || !credit.is_little(want, batch));
                    prop_assert!(in_flight + want.messages <= limit);
                    prop_assert!(bytes + want.bytes <= bytes_limit);
                }
                None => prop_assert!(
                    in_flight >= limit || bytes >= bytes_limit,
                    "what is free would never be used"
                ),
            }
        }
    }
}
