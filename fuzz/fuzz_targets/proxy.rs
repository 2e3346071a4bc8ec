//! See `gatepost_fuzz::proxy`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gatepost_fuzz::proxy::run(input));
