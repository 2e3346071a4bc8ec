//! See `gatepost_fuzz::command`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gatepost_fuzz::command::run(input));
