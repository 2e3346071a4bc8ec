//! See `gatepost_fuzz::ntlm`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gatepost_fuzz::ntlm::run(input));
