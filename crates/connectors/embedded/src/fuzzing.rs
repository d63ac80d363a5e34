//! What fuzzers test in this crate; see `fuzz/` at the top of the tree.

use crate::headers;

/// Decodes bytes as those that a row keeps for a message's headers, and checks that they encode to
/// the same.
///
/// # Panics
/// If decoded headers are not encoded to the same bytes.
pub fn headers(bytes: &[u8]) {
    if let Ok(found) = headers::decode(bytes) {
        let again = headers::encode(&found).map_or_else(Default::default, |bytes| {
            headers::decode(&bytes).expect("it was written just now")
        });
        assert_eq!(again, found);
    }
}
