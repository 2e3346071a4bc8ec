//! See `gatepost_fuzz::bdat`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gatepost_fuzz::bdat::run(input));
