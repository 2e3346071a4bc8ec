//! See `gatepost_fuzz::data`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gatepost_fuzz::data::run(input));
