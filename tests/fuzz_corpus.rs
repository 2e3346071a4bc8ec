//! The fuzz targets in plain `cargo test`: every committed seed, and a bounded number of mutations
//! of each by a generator with a fixed seed. A finding of `cargo fuzz` becomes a file of its
//! target's corpus, and so is run here ever after.

#[allow(dead_code, unused_imports, reason = "the targets' own crate uses all of it")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::path::Path;

/// Mutations of all seeds of one target together.
const MUTATIONS: usize = 2000;
const OCTETS_MAX: usize = 8 << 10;

/// What mutations put in, besides octets of the seeds.
const TOKENS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b".",
    b"\r\n.\r\n",
    b"\0",
    b"\xff",
    b"\xffc",
    b"\xfft\x40",
    b"\xfff",
    b"\xffb",
    b"\xffs",
    b"\xffh",
    b"\xffH",
    b"STARTTLS\r\n\xffh",
    b"AUTH PLAIN AGEAYg==\r\n",
    b"AUTH LOGIN\r\n",
    b"AUTH NTLM TlRMTVNTUAABAAAABoIIAAAAAAAAAAAAAAAAAAAAAAA=\r\n",
    b"*\r\n",
    b"XEXCH50 3 2\r\n",
    b"EHLO x\r\n",
    b"MAIL FROM:<>\r\n",
    b"RCPT TO:<a@b.c>\r\n",
    b"DATA\r\n",
    b"BDAT 3\r\n",
    b"BDAT 2 LAST\r\n",
    b"RSET\r\n",
    b"QUIT\r\n",
    b"<",
    b">",
    b"@",
    b"\"",
    b"\\",
    b"[",
    b"]",
    b"IPv6:",
    b"::",
    b" ",
    b"=",
    b"Received: by mx",
    b"(",
    b")",
    b";",
    b":",
    b"\r\n\r\n",
    b"PROXY ",
    b"TCP4 192.0.2.1 ",
    b"TCP6 2001:db8::1 ",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\x21\x11\0\x0c",
];

/// xorshift64*: the same numbers on every machine, for ever.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }
}

fn mutated(seed: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut input = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(input.len() + 1);
        let end = (at + 1 + numbers.below(16)).min(input.len());
        match numbers.below(6) {
            0 => _ = input.drain(at..end),
            1 => {
                let copy = input[at..end].to_vec();
                input.splice(at..at, copy);
            }
            2 => {
                let from = numbers.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            3 => {
                if let Some(octet) = input.get_mut(at) {
                    *octet = numbers.next() as u8;
                }
            }
            _ => {
                let token = TOKENS[numbers.below(TOKENS.len())];
                input.splice(at..at, token.iter().copied());
            }
        }
    }
    input.truncate(OCTETS_MAX);
    input
}

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        fs::read_dir(&folder).expect("a corpus").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("a seed")).collect();
    for (file, seed) in files.iter().zip(&seeds) {
        // The name of what fails, before its panic.
        println!("{}", file.display());
        run(seed);
    }
    let mut numbers = Numbers(20_261_121);
    for count in 0..MUTATIONS {
        let seed = &seeds[count % seeds.len()];
        let other = &seeds[numbers.below(seeds.len())];
        let input = mutated(seed, other, &mut numbers);
        println!("{}", input.escape_ascii());
        run(&input);
    }
}

#[test]
fn command() {
    replay("command", fuzz::command::run);
}

#[test]
fn data() {
    replay("data", fuzz::data::run);
}

#[test]
fn bdat() {
    replay("bdat", fuzz::bdat::run);
}

#[test]
fn session() {
    replay("session", fuzz::session::run);
}

#[test]
fn ntlm() {
    replay("ntlm", fuzz::ntlm::run);
}

#[test]
fn proxy() {
    replay("proxy", fuzz::proxy::run);
}

#[test]
fn sasl() {
    replay("sasl", fuzz::sasl::run);
}
