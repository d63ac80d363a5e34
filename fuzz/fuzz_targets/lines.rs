//! Lines are the same however the bytes arrive and wherever reading begins again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| brigade_file::fuzzing::lines(data));
