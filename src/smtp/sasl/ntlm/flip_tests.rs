//! Messages of clients that others wrote, as they were received, and what becomes of every change of
//! one bit of them, and of every part. All are of "User" of "Domain" with "Password".

use super::message::flags;
use super::tests::{NONCE, example, negotiate, own, server};
use super::*;
use crate::smtp::sasl::decode;

struct Client {
    negotiate: &'static str,
    /// The time that it was told.
    filetime: u64,
    authenticate: &'static str,
}

impl Client {
    fn exchange(&self) -> (ServerExchange, Vec<u8>) {
        let octets = |line: &str| decode(line.as_bytes()).expect("base64").to_vec();
        let negotiate = octets(self.negotiate);
        let server = ServerExchange::new(&negotiate, "mx.example.org", NONCE, self.filetime).expect("NEGOTIATE");
        (server, octets(self.authenticate))
    }
}

/// pyspnego: Unicode, with an exchange of keys, and a MIC.
const PYSPNEGO: Client = Client {
    negotiate: "TlRMTVNTUAABAAAAN4II4gAAAAAoAAAAAAAAACgAAAAADAQAAAAADw==",
    filetime: 134_397_636_393_375_776,
    authenticate: "TlRMTVNTUAADAAAAGAAYAFgAAADCAMIAcAAAAAwADAAyAQAACAAIAD4BAAAEAAQARgEAABAAEABKAQAAFYKK4gAMBAAAAAAP\
         Kt11R3gyLNpm3jU/Q32sDgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAPd3rIeZIUvHXx7OYni2irYBAQAAAAAAACAY4S/wed0B\
         kjB2hQR2xP4AAAAAAgAEAE0AWAABAAQATQBYAAQAHABtAHgALgBlAHgAYQBtAHAAbABlAC4AbwByAGcAAwAcAG0AeAAuAGUA\
         eABhAG0AcABsAGUALgBvAHIAZwAHAAgAIBjhL/B53QEJACYAcwBtAHQAcAAvAG0AeAAuAGUAeABhAG0AcABsAGUALgBvAHIA\
         ZwAGAAQAAgAAAAAAAAAAAAAARABvAG0AYQBpAG4AVQBzAGUAcgBWAE0A1cgPKyC0TfDW47h0vVwDTQ==",
};

/// impacket: Unicode, without a MIC.
const IMPACKET: Client = Client {
    negotiate: "TlRMTVNTUAABAAAABQKIoAAAAAAAAAAAAAAAAAAAAAA=",
    filetime: 134_397_636_393_716_150,
    authenticate: "TlRMTVNTUAADAAAAGAAYAFgAAAC2ALYAcAAAAAwADABAAAAACAAIAEwAAAAEAAQAVAAAAAAAAAAmAQAABQKIoEQAbwBtAGEA\
         aQBuAFUAcwBlAHIAVwBTAM0PMR1RaFKsX77FNJxClKIxSklJOFZobX9/McZU/qwsHLtLpuh5ZOcBAQAAAAAAALZJ5i/wed0B\
         MUpJSThWaG0AAAAAAgAEAE0AWAABAAQATQBYAAQAHABtAHgALgBlAHgAYQBtAHAAbABlAC4AbwByAGcAAwAcAG0AeAAuAGUA\
         eABhAG0AcABsAGUALgBvAHIAZwAHAAgAtknmL/B53QEJACYAYwBpAGYAcwAvAG0AeAAuAGUAeABhAG0AcABsAGUALgBvAHIA\
         ZwAAAAAA",
};

/// curl: OEM, without a MIC.
const CURL: Client = Client {
    negotiate: "TlRMTVNTUAABAAAABoIIAAAAAAAAAAAAAAAAAAAAAAA=",
    filetime: 134_397_636_394_774_666,
    authenticate: "TlRMTVNTUAADAAAAGAAYAEAAAACQAJAAWAAAAAYABgDoAAAABAAEAO4AAAALAAsA8gAAAAAAAAAAAAAABoKKAA6DfKhbMmNo\
         c8Vo4yHRaMlEMjy0Ob4FRmgQagir469L24bzi/2os9wBAQAAAAAAAICVrS/wed0BRDI8tDm+BUYAAAAAAgAEAE0AWAABAAQA\
         TQBYAAQAHABtAHgALgBlAHgAYQBtAHAAbABlAC4AbwByAGcAAwAcAG0AeAAuAGUAeABhAG0AcABsAGUALgBvAHIAZwAHAAgA\
         inD2L/B53QEAAAAAAAAAAERvbWFpblVzZXJXT1JLU1RBVElPTg==",
};

fn accepted(server: &ServerExchange, message: &[u8]) -> bool {
    server.authenticate(message).is_some_and(|logon| logon.verify(&nt_hash("Password")))
}

fn with_mic() -> [(&'static str, (ServerExchange, Vec<u8>)); 2] {
    [("pyspnego", PYSPNEGO.exchange()), ("own", own(true))]
}

fn without_mic() -> [(&'static str, (ServerExchange, Vec<u8>)); 4] {
    let document = (server(&negotiate(flags::UNICODE), NONCE), example());
    [("impacket", IMPACKET.exchange()), ("curl", CURL.exchange()), ("own", own(false)), ("[MS-NLMP]", document)]
}

#[test]
fn messages_of_clients_are_accepted() {
    for (client, (server, message)) in with_mic().into_iter().chain(without_mic()) {
        assert!(accepted(&server, &message), "{client}");
        let logon = server.authenticate(&message).expect("AUTHENTICATE");
        assert_eq!((logon.name(), logon.domain()), ("User", "Domain"), "{client}");
        for other in ["", "password", "Passwor", "Password "] {
            assert!(!logon.verify(&nt_hash(other)), "{client}: {other:?}");
        }
    }
}

#[test]
fn no_part_of_a_message_is_accepted() {
    for (client, (server, message)) in with_mic().into_iter().chain(without_mic()) {
        for length in 0..message.len() {
            assert!(!accepted(&server, &message[..length]), "{client}: {length} octets");
        }
    }
}

/// A MIC covers all there is: no bit can be changed.
#[test]
fn with_a_mic_every_bit_matters() {
    for (client, (server, message)) in with_mic() {
        for (at, bit, changed) in flips(&message) {
            assert!(!accepted(&server, &changed), "{client}: octet {at}, bit {bit}");
        }
    }
}

/// What a bit is part of, in a message without a MIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Covered by the proof, or what the proof is found by: it matters.
    Proved,
    /// Nobody looks at it.
    Ignored,
    /// Where a field is that nobody looks into: it matters that it is inside the message, as a
    /// message that was cut off is told by that.
    Place,
    /// Which character set it is, and nothing else.
    Flags,
    /// The user name, which is proved in upper case.
    Name,
}

/// Length, MaxLen and offset of the fields, and what is in them.
const FIELDS: [(usize, Part, Part); 6] = [
    (12, Part::Place, Part::Ignored), // LM response
    (20, Part::Proved, Part::Proved), // NT response
    (28, Part::Proved, Part::Proved), // domain
    (36, Part::Proved, Part::Name),   // user name
    (44, Part::Place, Part::Ignored), // workstation
    (52, Part::Place, Part::Ignored), // encrypted session key, which only a MIC needs
];

/// The part of every octet. Those of no field, between the flags and the first of them, are the
/// version, and a MIC that is not there.
fn parts(message: &[u8]) -> Vec<Part> {
    let number = |at: usize| usize::from(message[at]) + 256 * usize::from(message[at + 1]);
    let mut parts = vec![Part::Ignored; message.len()];
    parts[..12].fill(Part::Proved);
    parts[60..64].fill(Part::Flags);
    for (at, place, value) in FIELDS {
        parts[at..at + 2].fill(place);
        parts[at + 4..at + 8].fill(place);
        let (length, offset) = (number(at), number(at + 4));
        parts[offset..offset + length].fill(value);
    }
    parts
}

/// Whether `changed` must be refused: its bit, in an octet of this part, was changed.
fn matters(part: Part, at: usize, bit: u32, message: &[u8], changed: &[u8]) -> bool {
    let is_unicode = message[60] & 1 != 0;
    match part {
        Part::Proved => true,
        Part::Ignored => false,
        Part::Flags => at == 60 && (bit == 0 || bit == 1 && !is_unicode),
        Part::Name => !(message[at].is_ascii_alphabetic() && bit == 5),
        Part::Place => FIELDS.iter().any(|&(at, ..)| {
            let length = u64::from(u16::from_le_bytes([changed[at], changed[at + 1]]));
            let offset = (0..4).map(|index| u64::from(changed[at + 4 + index]) << (8 * index)).sum::<u64>();
            length > 0 && (offset < 64 || offset + length > changed.len() as u64)
        }),
    }
}

/// Without a MIC what the proof does not cover can be changed, and nothing else; none of it has a
/// meaning here.
#[test]
fn without_a_mic_some_bits_do_not_matter() {
    for (client, (server, message)) in without_mic() {
        let parts = parts(&message);
        let mut refused = 0;
        for (at, bit, changed) in flips(&message) {
            let matters = matters(parts[at], at, bit, &message, &changed);
            assert_eq!(accepted(&server, &changed), !matters, "{client}: octet {at}, bit {bit}: {:?}", parts[at]);
            refused += u32::from(matters);
        }
        assert!(refused > 8 * 100, "{client}");
    }
}

/// Every message that differs from this one in one bit.
fn flips(message: &[u8]) -> impl Iterator<Item = (usize, u32, Vec<u8>)> {
    (0..message.len()).flat_map(move |at| {
        (0..8).map(move |bit| {
            let mut changed = message.to_vec();
            changed[at] ^= 1 << bit;
            (at, bit, changed)
        })
    })
}
