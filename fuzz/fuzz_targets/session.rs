//! See `gatepost_fuzz::session`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gatepost_fuzz::session::run(input));
