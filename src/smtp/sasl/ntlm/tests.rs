//! The examples of [MS-NLMP], and own clients before an own server.

use super::message::{self, CHALLENGE, Message, av, flags};
use super::*;

pub(super) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("hex")).collect()
}

/// AUTHENTICATE of [MS-NLMP] 4.2.4.3: user "User", domain "Domain", password "Password", workstation
/// "COMPUTER", with an LM response and an exchange of keys, without a MIC.
pub(super) fn example() -> Vec<u8> {
    hex("4e544c4d53535000 03000000 1800 1800 6c000000 5400 5400 84000000 0c00 0c00 48000000 0800 0800 54000000
        1000 1000 5c000000 1000 1000 d8000000 358288e2 0501280a0000000f
        44006f006d00610069006e00 5500730065007200 43004f004d0050005500540045005200
        86c35097ac9cec102554764a57cccc19aaaaaaaaaaaaaaaa
        68cd0ab851e51c96aabc927bebef6a1c
        01010000 00000000 0000000000000000 aaaaaaaaaaaaaaaa 00000000
        02000c0044006f006d00610069006e00 01000c00530065007200760065007200 00000000 00000000
        c5dad2544fc9799094ce1ce90bc9d03e")
}

/// CHALLENGE of [MS-NLMP] 4.2.4.3, which tells no time.
fn example_challenge() -> Vec<u8> {
    hex("4e544c4d53535000 02000000 0c00 0c00 38000000 33828ae2 0123456789abcdef 0000000000000000
        2400 2400 44000000 0600701700000 00f 530065007200760065007200
        02000c0044006f006d00610069006e00 01000c00530065007200760065007200 00000000")
}

pub(super) const NONCE: [u8; 8] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
pub(super) const TIME: u64 = 134_081_472_000_000_000;
const RANDOM: Randomness = Randomness { nonce: [0xaa; 8], session_key: [0x55; 16] };

/// NEGOTIATE that asks for `flags`.
pub(super) fn negotiate(flags: u32) -> Vec<u8> {
    [b"NTLMSSP\0\x01\0\0\0", &flags.to_le_bytes()[..], &[0; 16]].concat()
}

pub(super) fn server(negotiate: &[u8], nonce: [u8; 8]) -> ServerExchange {
    ServerExchange::new(negotiate, "mx.example.org", nonce, TIME).expect("NEGOTIATE")
}

/// An exchange of this client; `edit` is what happens to the challenge on its way.
fn exchange(client: &ClientExchange, edit: fn(&mut [u8])) -> (ServerExchange, Vec<u8>) {
    let server = server(&client.negotiate(), NONCE);
    let mut challenge = server.challenge().to_vec();
    edit(&mut challenge);
    let message = client.authenticate(&challenge, &RANDOM, TIME).expect("CHALLENGE");
    (server, message)
}

/// Makes the AV_PAIR with the time another, so that the client sends no MIC.
fn without_time(challenge: &mut [u8]) {
    let time = [&av::TIMESTAMP.to_le_bytes()[..], &8u16.to_le_bytes(), &TIME.to_le_bytes()].concat();
    let at = challenge.windows(time.len()).position(|window| window == time).expect("the time");
    challenge[at] = 0x77;
}

/// The user of the examples.
fn user() -> ClientExchange {
    ClientExchange::new("User", Some("Domain"), "Password")
}

/// Own AUTHENTICATE messages, and the exchange they belong to, for "User" of "Domain" with "Password".
pub(super) fn own(with_mic: bool) -> (ServerExchange, Vec<u8>) {
    exchange(&user(), if with_mic { |_| () } else { without_time })
}

fn verifies(server: &ServerExchange, message: &[u8], password: &str) -> bool {
    server.authenticate(message).expect("AUTHENTICATE").verify(&nt_hash(password))
}

#[test]
fn the_example_of_the_document_is_verified() {
    let logon = server(&negotiate(flags::UNICODE), NONCE).authenticate(&example()).expect("AUTHENTICATE");
    assert_eq!((logon.name(), logon.domain()), ("User", "Domain"));
    assert!(logon.verify(&nt_hash("Password")));
    assert!(!logon.verify(&nt_hash("password")));
    assert!(!logon.verify(&[0; 16]));
    assert_eq!(format!("{logon:?}"), "Logon { name: \"User\", domain: \"Domain\", .. }");
}

/// But for the workstation and the version, which are not told, and the places, all fields are those
/// of the document.
#[test]
fn the_client_answers_the_example_as_the_document_does() {
    let answer = user().authenticate(&example_challenge(), &RANDOM, 0).expect("CHALLENGE");
    let (answer, example) = (Message::new(&answer, 3).expect("a message"), example());
    let example = Message::new(&example, 3).expect("a message");
    for field in [12, 20, 28, 36, 52] {
        assert_eq!(answer.field(field, 88), example.field(field, 72), "{field}");
        assert!(answer.field(field, 88).is_some_and(|value| !value.is_empty()));
    }
}

#[test]
fn the_challenge_tells_names_and_time() {
    let server = server(&negotiate(flags::UNICODE | flags::SIGN | flags::ENCRYPT_128), NONCE);
    let read = Message::new(server.challenge(), CHALLENGE).expect("CHALLENGE");
    assert_eq!(read.field(12, 56), Some(&message::utf16("MX")[..]));
    assert_eq!(read.u32(20), Some(0x208a_0215));
    assert_eq!(read.array(24), Some(NONCE));
    let pairs = message::av_pairs(read.field(40, 56).expect("a field")).expect("pairs");
    let host = message::utf16("mx.example.org");
    assert_eq!(
        pairs,
        [(2, &message::utf16("MX")[..]), (1, &message::utf16("MX")), (4, &host), (3, &host), (7, &TIME.to_le_bytes()),]
    );
}

#[test]
fn own_clients_before_an_own_server() {
    let key_exchanges = [flags::KEY_EXCHANGE, 0];
    for charset in [flags::UNICODE, flags::OEM, flags::UNICODE | flags::OEM] {
        for key_exchange in key_exchanges {
            for (with_mic, edit) in [(true, (|_| ()) as fn(&mut [u8])), (false, without_time)] {
                for (name, domain) in [("User", Some("Domain")), ("user@example.org", None), ("Jürgen", Some("Küche"))]
                {
                    if charset == flags::OEM && !name.is_ascii() {
                        continue;
                    }
                    let client = ClientExchange::new(name, domain, "Pässword 𐐨").offering(charset | key_exchange);
                    let (server, message) = exchange(&client, edit);
                    let logon = server.authenticate(&message).expect("AUTHENTICATE");
                    assert_eq!((logon.name(), logon.domain()), (name, domain.unwrap_or_default()));
                    assert!(logon.verify(&nt_hash("Pässword 𐐨")), "{charset} {key_exchange} {with_mic} {name}");
                    assert!(!logon.verify(&nt_hash("Pässword 𐐩")));
                    let fields = Message::new(&message, 3).expect("AUTHENTICATE");
                    assert_eq!(fields.array(72) == Some([0; 16]), !with_mic);
                    assert_eq!(fields.field(52, 88).map(<[u8]>::len), Some(if key_exchange == 0 { 0 } else { 16 }));
                }
            }
        }
    }
}

#[test]
fn what_a_client_cannot_answer() {
    let client = ClientExchange::new("Jürgen", None, "x");
    let answers = |challenge: &[u8]| client.authenticate(challenge, &RANDOM, 0).is_some();
    assert!(answers(&example_challenge()));
    // The server's character set is OEM, and does not say which.
    let oem = server(&negotiate(flags::OEM), NONCE);
    assert!(!answers(oem.challenge()));
    for length in 0..example_challenge().len() {
        assert!(!answers(&example_challenge()[..length]), "{length}");
    }
    assert!(!answers(&client.negotiate()));
    assert!(!answers(&example()));
    // A time of seven octets; target information that does not end, or is too long for an answer.
    let told = |info: &[u8]| {
        let mut writer = message::Writer::new(CHALLENGE, 56);
        writer.field(&[]).expect("short");
        writer.u32(flags::UNICODE | flags::TARGET_INFO);
        writer.octets(&[0; 16]);
        writer.field(info).expect("short");
        writer.finish()
    };
    assert!(answers(&told(&hex("0700 0800 0000000000000000 00000000"))));
    assert!(!answers(&told(&hex("0700 0700 00000000000000 00000000"))));
    assert!(answers(&told(&hex("0600 0400 01000000 00000000"))));
    assert!(!answers(&told(&hex("0600 0300 010000 00000000"))));
    assert!(!answers(&told(&hex("0300 0200 6100"))));
    assert!(answers(&told(&[&hex("0300 0023")[..], &[0; 0x2300], &[0; 4]].concat())));
    assert!(!answers(&told(&[&hex("0300 0024")[..], &[0; 0x2400 - 60], &[0; 4]].concat())));
}

#[test]
fn a_client_keeps_the_flags_it_was_told() {
    let client = ClientExchange::new("User", None, "x");
    let challenge = hex("4e544c4d53535000 02000000 0000 0000 00000000 05008080 0123456789abcdef 0000000000000000
        1800 1800 38000000 0000000000000000 0600 0400 01000000 0700 0800 8877665544332211 00000000");
    let message = client.authenticate(&challenge, &RANDOM, TIME).expect("CHALLENGE");
    let response = Message::new(&message, 3).and_then(|read| read.field(20, 88)).expect("a response");
    let blob = &response[16..];
    assert_eq!(blob[..28], hex("0101 0000 00000000 8877665544332211 aaaaaaaaaaaaaaaa 00000000"));
    let time = hex("8877665544332211");
    assert_eq!(message::av_pairs(&blob[28..]), Some(vec![(7, &time[..]), (6, &[3, 0, 0, 0])]));
}

#[test]
fn who_negotiates() {
    let good = negotiate(flags::OEM);
    let new = |message: &[u8]| ServerExchange::new(message, "mx.example.org", NONCE, TIME).is_some();
    assert!(new(&good));
    // The places of domain and workstation came with Windows 95, and are of no interest.
    assert!(new(&good[..16]));
    for length in 0..16 {
        assert!(!new(&good[..length]), "{length}");
    }
    assert!(!new(&negotiate(0)), "no character set");
    assert!(!new(&example()), "another type");
    assert!(!new(&[&good[..], &[0; 9200]].concat()), "longer than a line");
    // The least and the longest of names.
    for hostname in ["", ".", "localhost", "bücher.example", &"x".repeat(255)] {
        assert!(ServerExchange::new(&good, hostname, NONCE, TIME).is_some(), "{hostname}");
    }
}

#[test]
fn replays_are_refused() {
    for (server_once, message) in [own(true), own(false), (server(&negotiate(flags::UNICODE), NONCE), example())] {
        assert!(verifies(&server_once, &message, "Password"));
        let later = server(&user().negotiate(), [0x77; 8]);
        assert!(!verifies(&later, &message, "Password"));
    }
}

/// With a MIC all three messages are covered: nobody between the two can take away what was asked for.
#[test]
fn negotiate_and_challenge_are_covered_by_the_mic() {
    let (_, message) = own(true);
    for bit in 0..8 * user().negotiate().len() {
        let mut asked = user().negotiate();
        asked[bit / 8] ^= 1 << (bit % 8);
        if let Some(other) = ServerExchange::new(&asked, "mx.example.org", NONCE, TIME) {
            assert!(!verifies(&other, &message, "Password"), "bit {bit}");
        }
    }
    let later = ServerExchange::new(&user().negotiate(), "mx.example.org", NONCE, TIME + 1).expect("NEGOTIATE");
    assert!(!verifies(&later, &message, "Password"));
}

/// The example, with another value in one of its fields, put behind all others.
pub(super) fn with_field(message: &[u8], field: usize, value: &[u8]) -> Vec<u8> {
    let mut out = [message, value].concat();
    out[field..field + 2].copy_from_slice(&(value.len() as u16).to_le_bytes());
    out[field + 4..field + 8].copy_from_slice(&(message.len() as u32).to_le_bytes());
    out
}

#[test]
fn malformed_answers_are_refused() {
    let server = server(&negotiate(flags::UNICODE), NONCE);
    let read = |message: &[u8]| server.authenticate(message).is_some();
    let response = |blob: &str| with_field(&example(), 20, &[&[0; 16][..], &hex(blob)].concat());
    assert!(read(&example()));
    assert!(read(&with_field(&example(), 36, &message::utf16("User"))));
    let fixed = "0101 0000 00000000 0000000000000000 aaaaaaaaaaaaaaaa 00000000";
    assert!(read(&response(&format!("{fixed} 00000000"))), "the shortest");
    for (message, why) in [
        (with_field(&example(), 20, &[0; 24]), "NTLM version 1"),
        (with_field(&example(), 20, &[]), "LM only, or anonymous"),
        (with_field(&example(), 36, &[]), "anonymous"),
        (with_field(&example(), 36, b"U\0s"), "half a character"),
        (with_field(&example(), 36, &hex("00d8 5500")), "half a character of two units"),
        (with_field(&example(), 36, &hex("5500 0000")), "NUL in the name"),
        (with_field(&example(), 28, &hex("4400 0a00")), "a line feed in the domain"),
        (response(""), "no blob"),
        (response(fixed), "no AV_PAIRs"),
        (response(&format!("{fixed} 000000")), "no whole AV_PAIR"),
        (response(&format!("{fixed} 0300 0200 6100")), "AV_PAIRs without an end"),
        (response(&format!("{fixed} 0300 ffff 6100 00000000")), "an AV_PAIR that goes on outside"),
        (response(&format!("{fixed} 0600 0300 020000 00000000")), "flags of three octets"),
        (response(&format!("0201 {} 00000000", &fixed[4..])), "another version"),
        (response(&format!("0102 {} 00000000", &fixed[4..])), "another highest version"),
        (response(&format!("{fixed} 0600 0400 02000000 00000000"))[..80].to_vec(), "cut off"),
        (with_field(&response(&format!("{fixed} 0600 0400 02000000 00000000")), 52, &[0; 15]), "a short key"),
        ([&example()[..], &[0; 9200]].concat(), "longer than a line"),
    ] {
        assert!(!read(&message), "{why}");
    }
}

/// Fields may share octets with each other, but not with the fixed part.
#[test]
fn fields_that_overlap() {
    let server = server(&negotiate(flags::UNICODE), NONCE);
    let mut message = example();
    // The workstation is where the name is.
    message[48..52].copy_from_slice(&0x54u32.to_le_bytes());
    assert!(verifies(&server, &message, "Password"));
    for offset in [0, 63, u32::MAX, u32::MAX - 15, 0xd9, 0xe8] {
        message[48..52].copy_from_slice(&offset.to_le_bytes());
        assert!(server.authenticate(&message).is_none(), "{offset}");
    }
    // One that is empty is nowhere.
    message[44..46].copy_from_slice(&[0; 2]);
    assert!(verifies(&server, &message, "Password"));
}

proptest::proptest! {
    #[test]
    fn nothing_panics(octets: Vec<u8>, places: [(u16, u32); 6], flags: u32) {
        let _ = ServerExchange::new(&octets, "mx.example.org", NONCE, TIME);
        let server = server(&negotiate(flags | 1), NONCE);
        let client = ClientExchange::new("User", None, "Password");
        // Behind a header that is right up to its fields, which point anywhere, mostly near.
        for message_type in 1..=3u32 {
            let mut message = [&b"NTLMSSP\0"[..], &message_type.to_le_bytes()].concat();
            for (length, offset) in places {
                message.extend_from_slice(&(length % 100).to_le_bytes());
                message.extend_from_slice(&[0; 2]);
                message.extend_from_slice(&(offset % 300).to_le_bytes());
            }
            message.extend_from_slice(&flags.to_le_bytes());
            message.extend_from_slice(&octets);
            let _ = client.authenticate(&message, &RANDOM, TIME);
            if let Some(logon) = server.authenticate(&message) {
                assert!(!logon.verify(&nt_hash("Password")));
            }
        }
        assert!(server.authenticate(&octets).is_none());
    }

    #[test]
    fn any_user_and_password(name in "[^\\p{Cc}]{1,20}", domain in "[^\\p{Cc}]{0,20}", password: String, other: String) {
        let client = ClientExchange::new(&name, Some(&domain), &password);
        let (server, message) = exchange(&client, |_| ());
        assert!(verifies(&server, &message, &password));
        assert_eq!(verifies(&server, &message, &other), password == other);
    }
}
