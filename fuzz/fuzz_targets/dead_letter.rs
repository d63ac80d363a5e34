//! No bytes panic, and what is read is written and read again as the same.
#![no_main]

use brigade::DeadLetter;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(letter) = DeadLetter::from_json(data) {
        let again = DeadLetter::from_json(&letter.to_json()).expect("it was written just now");
        assert_eq!(again, letter);
    }
});
