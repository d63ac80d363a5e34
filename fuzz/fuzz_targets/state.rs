//! What is kept in the state: positions of files, headers of messages.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind {
        b'h' => brigade_embedded::fuzzing::headers(bytes),
        _ => brigade_file::fuzzing::position(bytes),
    }
});
