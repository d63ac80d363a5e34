//! What fuzzers hold this crate against; see `fuzz/` at the top of the tree.

use crate::headers;

/// Bytes that a row keeps for a message's headers.
///
/// # Panics
/// If headers that were read are not written as the same.
pub fn headers(bytes: &[u8]) {
    if let Ok(found) = headers::decode(bytes) {
        let again = headers::encode(&found).map_or_else(Default::default, |bytes| {
            headers::decode(&bytes).expect("it was written just now")
        });
        assert_eq!(again, found);
    }
}
